"""Classification metrics from probabilities: AUC, accuracy, sensitivity, specificity, log loss and calibration.

A class without cases (or without controls) has no AUC: it is reported as None and left out of the macro mean, never
as 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from trainer.errors import CohortError
from trainer.local.data import Samples


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, *, batch: int = 128, device: torch.device | str = "cpu") -> np.ndarray:
    """Class probabilities float64 [N, classes]."""
    model.to(device).eval()
    parts = [torch.softmax(model(images.to(device)), 1).cpu().double().numpy() for images, _ in samples.batches(batch)]
    if not parts:
        raise CohortError("there is no labelled image to evaluate on; label more studies or widen the cohort")
    return np.concatenate(parts)


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
    values = [auc(labels == k, probabilities[:, k]) for k in range(probabilities.shape[1])]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017), equal-width bins."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[index == b].mean() - confidence[index == b].mean()) * (index == b).mean() for b in np.unique(index)
    ]
    return float(sum(gaps))


def interval(
    labels: np.ndarray, probabilities: np.ndarray, *, draws: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the macro AUC; None when too few draws have one."""
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        rows = random.integers(0, len(labels), len(labels))
        value = macro_auc(labels[rows], probabilities[rows])
        if value is not None:
            values.append(value)
    if len(values) < draws / 2:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], *, draws: int = 200
) -> dict[str, object]:
    """Every figure for one set of samples; labels int [N], probabilities [N, classes]."""
    chosen = probabilities.argmax(1)
    per_class: dict[str, dict[str, object]] = {}
    for k, name in enumerate(classes):
        is_class, said_class = labels == k, chosen == k
        per_class[name] = {
            "cases": int(is_class.sum()),
            "auc": _rounded(auc(is_class, probabilities[:, k])),
            "sensitivity": _share(said_class, is_class),
            "specificity": _share(~said_class, ~is_class),
        }
    picked = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1.0)
    span = interval(labels, probabilities, draws=draws) if draws else None
    return {
        "auc": _rounded(macro_auc(labels, probabilities)),
        "auc_interval": None if span is None else [round(span[0], 6), round(span[1], 6)],
        "accuracy": _rounded(float((chosen == labels).mean())),
        "loss": _rounded(float(-np.log(picked).mean())),
        "ece": _rounded(calibration_error(labels, probabilities)),
        "cases": len(labels),
        "per_class": per_class,
    }


def _share(said: np.ndarray, among: np.ndarray) -> float | None:
    return _rounded(float(said[among].mean())) if among.any() else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
