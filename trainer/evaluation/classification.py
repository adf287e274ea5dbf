"""Classification metrics from probabilities: AUC, accuracy, sensitivity, specificity, log loss and calibration.

A class without cases (or without controls) has no AUC: it is reported as None and left out of the macro mean, never
as 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from trainer.errors import CohortError
from trainer.local.data import Samples

Point = Callable[[np.ndarray, np.ndarray, float], float | None]
SET_POINTS = (0.9, 0.95)


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, *, batch: int = 128, device: torch.device | str = "cpu") -> np.ndarray:
    """Class probabilities float64 [N, classes]."""
    model.to(device).eval()
    several = samples.labels.ndim == 2
    parts = [
        probabilities_of(model(images.to(device)), several).cpu().double().numpy()
        for images, _ in samples.batches(batch)
    ]
    if not parts:
        raise CohortError("there is no labelled image to evaluate on; label more studies or widen the cohort")
    return np.concatenate(parts)


def probabilities_of(logits: torch.Tensor, multilabel: bool) -> torch.Tensor:
    """[N, classes] logits → probabilities: one class a sample, or each class for itself."""
    return torch.sigmoid(logits) if multilabel else torch.softmax(logits, 1)


def has_class(labels: np.ndarray, k: int) -> np.ndarray:
    """Which samples have class k: labels [N] of class indices, or 0 and 1 [N, classes]."""
    return np.asarray(labels[:, k] == 1 if labels.ndim == 2 else labels == k)


def auc(positive: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted half; None without both cases and controls."""
    positive = np.asarray(positive, bool)
    cases, controls = int(positive.sum()), int((~positive).sum())
    if not cases or not controls:
        return None
    _, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    ranks = (upper - (counts - 1) / 2)[where]
    return float((ranks[positive].sum() - cases * (cases + 1) / 2) / (cases * controls))


def macro_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean one-vs-rest AUC over the classes that have one; None when none has."""
    values = [auc(has_class(labels, k), probabilities[:, k]) for k in range(probabilities.shape[1])]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017), equal-width bins: of the predicted class, or multi-label of every class."""
    if labels.ndim == 2:
        confidence, correct = probabilities.ravel(), labels.ravel() == 1
    else:
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[index == b].mean() - confidence[index == b].mean()) * (index == b).mean() for b in np.unique(index)
    ]
    return float(sum(gaps))


def sensitivity_at(positive: np.ndarray, score: np.ndarray, specificity: float) -> float | None:
    """The largest sensitivity of any threshold whose specificity is at least the one given; None without both sides."""
    if not positive.any() or positive.all():
        return None
    controls = np.sort(score[~positive])
    allowed = int(np.floor((1 - specificity) * len(controls) + 1e-9))  # controls that may be called
    threshold = controls[len(controls) - allowed - 1]
    return float((score[positive] > threshold).mean())


def specificity_at(positive: np.ndarray, score: np.ndarray, sensitivity: float) -> float | None:
    """The largest specificity of any threshold whose sensitivity is at least the one given; None without both sides."""
    return sensitivity_at(~positive, -score, sensitivity)


def bootstrap(
    count: int, measure: Callable[[np.ndarray], float | None], *, draws: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a figure over row numbers; None when fewer than half the draws have one."""
    random = np.random.default_rng(seed)
    values = [measure(random.integers(0, count, count)) for _ in range(draws)]
    known = [value for value in values if value is not None]
    if not draws or len(known) < draws / 2:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    labels: np.ndarray, probabilities: np.ndarray, *, draws: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """The bootstrap interval of the macro AUC."""
    return bootstrap(
        len(labels), lambda rows: macro_auc(labels[rows], probabilities[rows]), draws=draws, level=level, seed=seed
    )


def metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], *, draws: int = 200
) -> dict[str, object]:
    """Every figure for one set of samples; labels int [N] or [N, classes], probabilities [N, classes]."""
    truth = np.stack([has_class(labels, k) for k in range(len(classes))], 1)
    several = labels.ndim == 2
    said = probabilities >= 0.5 if several else probabilities.argmax(1)[:, None] == np.arange(len(classes))
    right = (said == truth).mean() if several else (said & truth).any(1).mean()
    picked = np.where(truth, probabilities, 1 - probabilities) if several else probabilities[truth]
    span = interval(labels, probabilities, draws=draws)
    ece = bootstrap(len(labels), lambda rows: calibration_error(labels[rows], probabilities[rows]), draws=draws)
    return {
        "auc": _rounded(macro_auc(labels, probabilities)),
        "auc_interval": _span(span),
        "accuracy": _rounded(float(right)),
        "loss": _rounded(float(-np.log(np.clip(picked, 1e-12, 1.0)).mean())),
        "ece": _rounded(calibration_error(labels, probabilities)),
        "ece_interval": _span(ece),
        "cases": len(labels),
        "per_class": {
            name: _of_class(truth[:, k], said[:, k], probabilities[:, k], draws) for k, name in enumerate(classes)
        },
    }


def _of_class(truth: np.ndarray, said: np.ndarray, score: np.ndarray, draws: int) -> dict[str, object]:
    """One class against the rest, with its sensitivity and specificity at the set points."""
    points: dict[str, object] = {}
    for name, measure in (
        ("sensitivity_at_specificity", sensitivity_at),
        ("specificity_at_sensitivity", specificity_at),
    ):
        for point in SET_POINTS:

            def at(rows: np.ndarray, point: float = point, measure: Point = measure) -> float | None:
                return measure(truth[rows], score[rows], point)

            found = bootstrap(len(truth), at, draws=draws)
            points[f"{name}_{point:g}"] = {"value": _rounded(measure(truth, score, point)), "interval": _span(found)}
    return {
        "cases": int(truth.sum()),
        "auc": _rounded(auc(truth, score)),
        "sensitivity": _share(said, truth),
        "specificity": _share(~said, ~truth),
        "set_points": points,
    }


def _span(found: tuple[float, float] | None) -> list[float] | None:
    return None if found is None else [round(found[0], 6), round(found[1], 6)]


def _share(said: np.ndarray, among: np.ndarray) -> float | None:
    return _rounded(float(said[among].mean())) if among.any() else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
