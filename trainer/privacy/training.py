"""Local training with differential privacy (DP-SGD): units drawn by chance, gradients clipped by unit, noise on each sum.

Abadi et al. 2016. Everything the optimiser, the proximal term or the coordinator do with the noisy sums afterwards costs nothing
more. What is assumed by the accountant holds here: Poisson sampling with a fixed rate, a fixed number of steps, division by a
fixed number of units; no class weights, no count of the batch, no early end.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from trainer.errors import CohortError, DivergedError, SpecError
from trainer.local.algorithms import LocalAlgorithm
from trainer.local.augment import augment, augment_pair
from trainer.local.backward import Report
from trainer.local.checkpoint import Checkpoints, Progress
from trainer.local.data import Samples
from trainer.local.training import Trained, make_optimizer
from trainer.privacy.gradients import ClippedSum, require_private
from trainer.privacy.noise import SecureRandom, add_noise
from trainer.spec import LocalSpec, PrivateSteps


def train_privately(
    model: nn.Module,
    samples: Samples,
    local: LocalSpec,
    private: PrivateSteps,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    algorithm: LocalAlgorithm | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
) -> Trained:
    """Fit `model` in place; augmentation follows the seed, sampling and noise never do, so no two runs are equal.

    Errors: SpecError for a network with BatchNorm or for records that share a patient; CohortError without samples;
    DivergedError when the weights are no longer finite; MemoryLimitError.
    """
    require_private(model)
    units = units_of(samples, private)
    started, waited = time.monotonic(), 0.0
    torch.manual_seed(seed)
    model.to(device).train()
    optimizer, chosen = make_optimizer(model, local), algorithm or LocalAlgorithm()
    progress, random = Progress.start(seed, private.steps), SecureRandom()
    summed = ClippedSum(model, private.clip, local.label_smoothing)
    chosen.begin(model, local)
    if checkpoints is not None:
        checkpoints.resume(model, optimizer, chosen, progress)
    numbers = np.unique(units)
    while progress.step < progress.total:
        before = time.monotonic()
        drawn = numbers[random.chosen(len(numbers), private.rate)]
        rows = _rows(units, drawn, private.per_unit, random)
        images, labels = _batch(samples, rows, local.augment, progress.generator, device)
        waited += time.monotonic() - before
        total, loss = summed(images, labels, units[rows]) if len(rows) else (torch.zeros(summed.size), 0.0)
        noisy = add_noise(total, private.clip, private.noise_multiplier, random).div_(private.expected_units)
        _into_gradients(model, noisy)
        chosen.adjust_gradients(model)
        optimizer.step()
        progress.advance(loss / max(len(drawn), 1))
        if checkpoints is not None:
            checkpoints.maybe_save(model, optimizer, chosen, progress)
        if report is not None:
            facts = {"event": "step", "step": progress.step, "steps": progress.total}
            report(facts | {"loss": round(progress.last, 5)})
    _require_finite(model)
    state = chosen.finish(model, progress.step)
    seconds = time.monotonic() - started
    return Trained(len(samples), progress.step, progress.mean_loss, seconds, waited / max(seconds, 1e-9), state)


def units_of(samples: Samples, private: PrivateSteps) -> np.ndarray:
    """int64 [N]: the unit of each sample. Errors: CohortError without samples, SpecError for what cannot be told apart."""
    if not len(samples):
        raise CohortError("training needs at least one labelled image and this site has none; label more studies")
    if samples.groups is None:
        raise SpecError("the samples do not say which patient each is of; differential privacy cannot be kept for them")
    groups = np.asarray(samples.groups, np.int64)
    if private.unit == "record" and len(np.unique(groups)) < len(groups):
        raise SpecError(
            "several training records are of one patient, whom noise for single records does not protect;"
            ' ask for privacy.dp.unit = "patient"'
        )
    return groups


def _rows(units: np.ndarray, drawn: np.ndarray, per_unit: int, random: SecureRandom) -> np.ndarray:
    """The samples of the drawn units, at most `per_unit` of each, chosen afresh."""
    found = []
    for unit in drawn:
        rows = np.flatnonzero(units == unit)
        if len(rows) > per_unit:
            rows = rows[np.argsort(random.uniform(len(rows)).numpy())[:per_unit]]
        found.append(rows)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _batch(
    samples: Samples, rows: np.ndarray, strength: str, generator: torch.Generator, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    if not len(rows):
        return torch.zeros(0, device=device), torch.zeros(0, device=device)
    images, labels = (part.to(device) for part in samples.draw(rows, generator))
    if samples.masks:
        return augment_pair(images, labels, strength, generator)
    return augment(images, strength, generator), labels


def _into_gradients(model: nn.Module, flat: torch.Tensor) -> None:
    at = 0
    for p in model.parameters():
        if p.requires_grad:
            p.grad = flat[at : at + p.numel()].view_as(p).to(p.device, p.dtype)
            at += p.numel()


def _require_finite(model: nn.Module) -> None:
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise DivergedError("the weights are no longer finite numbers; lower the learning rate")
