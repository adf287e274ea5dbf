"""The local training loop: starting weights and a site's samples in, updated weights out.

Readable top to bottom; everything federated about it (proximal term, control variates, kept norm layers) sits in
trainer.local.algorithms and is called at marked places. Memory, half precision and sharing a batch among processes are
trainer.local.backward's.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from trainer.errors import CohortError
from trainer.local.algorithms import LocalAlgorithm
from trainer.local.augment import augment, augment_pair
from trainer.local.backward import Backward, Precision, Report
from trainer.local.checkpoint import Checkpoints, Progress
from trainer.local.data import Samples
from trainer.local.parallel import ALONE, Team
from trainer.spec import LocalSpec, lr_at_round


@dataclass(frozen=True)
class Trained:
    """What one local training did. `loss` is the mean over its steps; `waiting` the share of time spent getting
    batches.
    """

    samples: int
    steps: int
    loss: float
    seconds: float
    waiting: float
    state: dict[str, np.ndarray] = field(default_factory=dict)


def class_weights(counts: np.ndarray, limit: float = 4.0) -> torch.Tensor:
    """Inverse-frequency weights of the classes present, mean 1 over samples, no weight above `limit` × the smallest.

    A class the site lacks gets weight 0 (it never occurs), so it moves nobody's gradient.
    """
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = 1.0 / counts[present]
    weights[present] = np.minimum(weights[present], weights[present].min() * limit)
    weights *= counts.sum() / max((weights * counts).sum(), 1e-12)
    return torch.tensor(weights, dtype=torch.float32)


def make_optimizer(model: nn.Module, local: LocalSpec) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9; no weight decay on norms and biases (they have one dimension)."""
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": local.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if local.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=local.lr, momentum=0.0 if local.algorithm == "scaffold" else 0.9)
    return torch.optim.AdamW(groups, lr=local.lr)


def train(
    model: nn.Module,
    samples: Samples,
    local: LocalSpec,
    *,
    classes: int,
    seed: int,
    device: torch.device | str = "cpu",
    algorithm: LocalAlgorithm | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
    team: Team = ALONE,
) -> Trained:
    """Fit `model` in place. Deterministic with a seed on one machine and thread count, and the same in every process of a team.

    Errors: CohortError with fewer than two samples; DivergedError when the loss is not finite; MemoryLimitError.
    """
    if len(samples) < 2:
        raise CohortError(
            f"training needs at least 2 labelled images and this site has {len(samples)}; label more studies"
        )
    started = time.monotonic()
    torch.manual_seed(seed)
    model.to(device).train()
    balanced = local.class_weighted and not samples.masks and samples.labels.ndim == 1
    weights = class_weights(samples.class_counts(classes)).to(device) if balanced else None
    precision = Precision(device, local.precision == "mixed")
    run = _Run(
        make_optimizer(model, local),
        algorithm or LocalAlgorithm(),
        Progress.start(seed, total_steps(len(samples), local)),
        Backward(model, weights, local.label_smoothing, report, local.accumulate, precision, team, seed),
    )
    run.algorithm.begin(model, local)
    if checkpoints is not None:
        checkpoints.resume(model, run.optimizer, run.algorithm, run.progress)
        precision.restore(run.progress.scaling)
        checkpoints = checkpoints if team.leads else None
    while run.progress.step < run.progress.total:
        _epoch(model, samples, local, run, device, checkpoints, report)
    progress = run.progress
    state = run.algorithm.finish(model, progress.step)  # SCAFFOLD's new control variate
    seconds = time.monotonic() - started
    return Trained(len(samples), progress.step, progress.mean_loss, seconds, run.waited / max(seconds, 1e-9), state)


@dataclass
class _Run:
    """What one training carries from step to step."""

    optimizer: torch.optim.Optimizer
    algorithm: LocalAlgorithm
    progress: Progress
    backward: Backward
    waited: float = 0.0


def _epoch(
    model: nn.Module,
    samples: Samples,
    local: LocalSpec,
    run: _Run,
    device: torch.device | str,
    checkpoints: Checkpoints | None,
    report: Report | None,
) -> None:
    """The rest of the current epoch, or of the training when that ends first."""
    progress = run.progress
    precision = run.backward.precision
    for rows in progress.epoch_rows(len(samples), local.batch)[progress.at :]:
        _set_lr(run.optimizer, local, progress.step / progress.total)
        before = time.monotonic()
        images, labels = _batch(samples, rows, local.augment, progress.generator, device)
        run.waited += time.monotonic() - before
        loss = run.backward(images, labels, progress.step)
        precision.unscale(run.optimizer)
        run.algorithm.adjust_gradients(model)  # proximal term
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if precision.step(run.optimizer):
            run.algorithm.adjust_step(model, run.optimizer.param_groups[0]["lr"])  # control variates
        progress.advance(loss, precision.state())
        if checkpoints is not None:
            checkpoints.maybe_save(model, run.optimizer, run.algorithm, progress)
        if report is not None:
            report({"event": "step", "step": progress.step, "steps": progress.total, "loss": round(loss, 5)})
        if progress.step >= progress.total:
            return
    progress.next_epoch()


def _batch(
    samples: Samples, rows: np.ndarray, strength: str, generator: torch.Generator, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """One augmented batch on the device."""
    images, labels = (part.to(device, non_blocking=True) for part in samples.draw(rows, generator))
    if samples.masks:
        return augment_pair(images, labels, strength, generator)
    return augment(images, strength, generator), labels


def _set_lr(optimizer: torch.optim.Optimizer, local: LocalSpec, share: float) -> None:
    """The learning rate after `share` of the training, by the epoch it falls in."""
    if local.schedule == "cosine":
        for group in optimizer.param_groups:
            group["lr"] = lr_at_round(local.lr, int(share * local.epochs), local.epochs)


def total_steps(count: int, local: LocalSpec) -> int:
    """Optimiser steps of one local training."""
    if local.steps is not None:
        return local.steps
    batches = math.ceil(count / local.batch)
    if batches > 1 and count % local.batch == 1:
        batches -= 1
    return batches * local.epochs


@torch.no_grad()
def reestimate_norm(model: nn.Module, samples: Samples, *, batch: int = 64, device: torch.device | str = "cpu") -> None:
    """Re-estimate BatchNorm's running mean and variance on these samples, in place, with the weights left as they are.

    Averaged statistics do not fit averaged weights; a cumulative mean over one pass repairs that (Li et al. 2021,
    FedBN).
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers or len(samples) < 2:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    model.to(device).train()
    for images, _ in samples.batches(batch):
        if len(images) > 1:
            model(images.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
