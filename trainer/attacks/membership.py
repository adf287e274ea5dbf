"""Membership inference: whether a trained model tells which patients it was trained with.

Two attacks. Loss threshold (Yeom et al. 2018): what the model is surest of, it has seen. Likelihood ratio (LiRA, Carlini et al.
2022, "Membership inference attacks from first principles"): how much likelier the sureness is from models that saw the image than
from models that did not, learnt on shadow models; with few of them the deviations are pooled over images, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.errors import CohortError, SpecError
from trainer.local.data import Samples

Fit = Callable[[torch.Tensor, torch.Tensor, int], nn.Module]
"""Trains a fresh model on images [N, C, H, W] and labels int64 [N], with a seed."""
FEWEST = 8
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Inferred:
    """How well scores tell members from others; by chance `auc` is 0.5 and `tpr` 0.01."""

    auc: float
    tpr: float
    """Members told at no more than 1 % false alarms; below 100 others that means none."""


@dataclass(frozen=True)
class Membership:
    """Both attacks on one model. `members` and `others` are images."""

    members: int
    others: int
    shadows: int
    threshold: Inferred
    ratio: Inferred

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def infer(fit: Fit, samples: Samples, shadows: int = 8, seed: int = 0) -> Membership:
    """Train with half of the patients, and with halves of them `shadows` (even) times more; attack the first model.

    Errors: CohortError with fewer than 8 patients, SpecError for anything but class indices or an odd number of shadows.
    """
    if samples.masks or samples.labels.ndim != 1:
        raise SpecError("membership inference knows classification with one class per image only")
    if shadows < 2 or shadows % 2:
        raise SpecError(f"membership inference needs an even number of shadow models and was given {shadows}")
    groups = np.arange(len(samples)) if samples.groups is None else np.asarray(samples.groups)
    patients, patient = np.unique(groups, return_inverse=True)
    if len(patients) < FEWEST:
        raise CohortError(f"Membership inference needs images of {FEWEST} patients and this site has {len(patients)}.")
    images, labels = samples.batch(np.arange(len(samples)))
    random = np.random.default_rng(seed)

    def sureness_of(inside: np.ndarray, number: int) -> np.ndarray:
        return sureness(fit(images[inside], labels[inside], seed + number), images, labels)

    member = _half(len(patients), random)[patient]
    seen = sureness_of(member, 0)
    insides = list[np.ndarray]()
    for _ in range(shadows // 2):
        half = _half(len(patients), random)[patient]
        insides += [half, ~half]  # so that every image is in as many shadows as it is out of
    known = np.stack([sureness_of(inside, 1 + number) for number, inside in enumerate(insides)])
    ratio = likelihood_ratio(seen, known, np.stack(insides))
    return Membership(
        int(member.sum()), int((~member).sum()), shadows, told_apart(seen, member), told_apart(ratio, member)
    )


def sureness(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """float64 [N]: log odds that the model gives each image's own class, of images [N, C, H, W] and labels [N]."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(64)]).double()
    own = logits.gather(1, labels[:, None])[:, 0]
    rest = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    odds: np.ndarray = (own - rest).numpy()
    return odds


def likelihood_ratio(seen: np.ndarray, known: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """float64 [N]: log likelihood ratio of `seen` [N], by Gaussians of `known` [S, N] in and out of bool `inside` [S, N]."""

    def likelihood(chosen: np.ndarray) -> np.ndarray:
        mean = np.where(chosen, known, 0).sum(0) / chosen.sum(0)
        spread = max(float(np.std((known - mean)[chosen])), 1e-6)
        found: np.ndarray = -0.5 * ((seen - mean) / spread) ** 2 - np.log(spread)
        return found

    return likelihood(inside) - likelihood(~inside)


def told_apart(scores: np.ndarray, member: np.ndarray) -> Inferred:
    """Area under the ROC curve and true positive rate at 1 % false alarms of scores [N] for bool `member` [N]."""
    inside, outside = scores[member], np.sort(scores[~member])
    below, upto = (np.searchsorted(outside, inside, side) for side in ("left", "right"))
    limit = outside[len(outside) - 1 - int(FALSE_ALARMS * len(outside))]
    return Inferred(round(float((below + upto).mean() / 2 / len(outside)), 4), round(float((inside > limit).mean()), 4))


def _half(count: int, random: np.random.Generator) -> np.ndarray:
    chosen = np.zeros(count, bool)
    chosen[random.permutation(count)[: count // 2]] = True
    return chosen
