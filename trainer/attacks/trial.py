"""One trial of the attacks on a site's own images: on the bare gradient of one image, then on what a project's step tells.

What is attacked is the gradient of a single step, of the project's batch, clipped and noisy where the project asks for it, before
masking. An update of several steps, an adaptive optimiser, compression and the sum over sites stand in the attacker's way beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.attacks.inversion import Gradients, Search, invert
from trainer.attacks.matching import matches, rank
from trainer.attacks.recognition import psnr, recognised, residual_correlations
from trainer.errors import CohortError
from trainer.local.data import Samples
from trainer.privacy.gradients import ClippedSum, require_private
from trainer.privacy.noise import SecureRandom, add_noise

CANDIDATES = 64
FEWEST = 8
CALIBRATED = 0.9
"""The share of bare gradients that matching must resolve before its failure on the real object means anything."""


@dataclass(frozen=True)
class Noise:
    """DP-SGD's clipping norm, and its noise in units of the norm."""

    clip: float
    multiplier: float


@dataclass(frozen=True)
class Reach:
    """What the attackers reach on `targets` images, each to be told from all of `candidates` (by chance: 1 / candidates)."""

    batch: int
    targets: int
    candidates: int
    matched: int
    """Images that an attacker who holds the candidates picks out."""
    recognised: int
    """Images that one who has only the update reconstructs so well that they point to themselves."""
    share: float
    """Of `targets`, told by either."""
    correlation: float
    """Mean residual correlation of each image with its best reconstruction."""
    psnr: float


@dataclass(frozen=True)
class Trial:
    """`plain`: bare gradients of one image; `leaves`: the project's step. images [T, C, H, W] and what was made of them."""

    plain: Reach
    leaves: Reach
    images: torch.Tensor
    found_plain: torch.Tensor
    found: torch.Tensor

    @property
    def calibrated(self) -> bool:
        """Whether a failure says something of the defence, and not of the attack."""
        return self.plain.matched >= CALIBRATED * self.plain.targets

    def facts(self) -> dict[str, Any]:
        return {"plain": asdict(self.plain), "leaves": asdict(self.leaves), "calibrated": self.calibrated}


@dataclass(frozen=True)
class _Told:
    """One target's outcome."""

    matched: bool
    recognised: bool
    correlation: float
    psnr: float
    candidates: int
    best: torch.Tensor


@dataclass(frozen=True)
class Attack:
    """How a trial is done. `batch` images a step, `noise` for DP-SGD; `smoothing` of the labels as the project trains."""

    batch: int
    noise: Noise | None
    smoothing: float = 0.0
    targets: int = 16
    search: Search = field(default_factory=Search)
    seed: int = 0

    def run(self, model: nn.Module, samples: Samples, progress: Callable[[int, int], None] | None = None) -> Trial:
        """Errors: CohortError with images of fewer than 8 patients, SpecError for BatchNorm with noise."""
        if self.noise is not None:
            require_private(model)
        chosen = _one_of_each(samples, self.seed)
        if len(chosen) < FEWEST:
            raise CohortError(f"An attack needs training images of {FEWEST} patients and this site has {len(chosen)}.")
        images, labels = samples.batch(chosen)
        count, batch = min(self.targets, len(chosen)), min(self.batch, len(chosen) // 2)
        random = np.random.default_rng(self.seed)
        plain, leaves = list[_Told](), list[_Told]()
        for target in range(count):
            others = random.choice(np.delete(np.arange(len(chosen)), target), batch - 1, replace=False)
            plain.append(self._one(model, images, labels, target, np.zeros(0, np.int64), None))
            leaves.append(self._one(model, images, labels, target, others, self.noise))
            if progress is not None:
                progress(target + 1, count)
        best = [torch.stack([one.best for one in side]) for side in (plain, leaves)]
        return Trial(_reach(plain, 1), _reach(leaves, batch), images[:count], best[0], best[1])

    def _one(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        own: int,
        others: np.ndarray,
        noise: Noise | None,
    ) -> _Told:
        gradients = Gradients(model, self.smoothing)
        rows = [own, *others.tolist()]
        seen = self._step(model, gradients, images[rows], labels[rows], noise)
        outside = torch.from_numpy(np.setdiff1d(np.arange(len(images)), rows))
        kept = torch.cat([torch.tensor([own]), outside])  # the target first; the rest of its batch is no wrong answer
        matched = rank(matches(gradients, seen, images[kept], labels[kept]), 0) == 1
        shape = tuple(images.shape[1:])
        made = invert(model, seen[None], labels[rows][None], shape, self.search, self.seed + own, self.smoothing)[0]
        correlations = residual_correlations(made, images[kept])
        best = made[int(correlations[:, 0].argmax())]
        shown = recognised(correlations, 0)
        return _Told(matched, shown, float(correlations[:, 0].max()), psnr(best, images[own]), len(kept), best)

    def _step(
        self, model: nn.Module, gradients: Gradients, images: torch.Tensor, labels: torch.Tensor, noise: Noise | None
    ) -> torch.Tensor:
        """float32 [P]: what one step tells of its batch."""
        if noise is None:
            return gradients(images[None], labels[None])[0].detach()
        total, _ = ClippedSum(model, noise.clip, self.smoothing)(images, labels, np.arange(len(images)))
        return add_noise(total, noise.clip, noise.multiplier, SecureRandom()).float() / len(images)


def _one_of_each(samples: Samples, seed: int) -> np.ndarray:
    """At most 64 samples of as many patients, in an order by chance."""
    groups = np.arange(len(samples)) if samples.groups is None else np.asarray(samples.groups)
    _, first = np.unique(groups, return_index=True)
    return np.random.default_rng(seed).permutation(first)[:CANDIDATES]


def _reach(told: list[_Told], batch: int) -> Reach:
    either = sum(one.matched or one.recognised for one in told)
    return Reach(
        batch=batch,
        targets=len(told),
        candidates=told[0].candidates,
        matched=sum(one.matched for one in told),
        recognised=sum(one.recognised for one in told),
        share=round(either / len(told), 4),
        correlation=round(float(np.mean([one.correlation for one in told])), 4),
        psnr=round(float(np.mean([one.psnr for one in told])), 2),
    )
