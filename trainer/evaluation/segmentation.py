"""Segmentation metrics by volume: Dice and the 95th percentile Hausdorff distance, with bootstrap intervals over cases.

A class that neither reader saw in a volume has no figure there and is left out of the means; a class that only one of
them saw has Dice 0 and no distance, and is counted as missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CaseScores = dict[str, dict[str, float | None]]


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """2 |a ∩ b| / (|a| + |b|) of two masks; None when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else None


def hd95(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> float | None:
    """The larger of the two 95th percentiles of the distances (mm) between the masks' surfaces; None when one is empty.

    spacing: mm along each axis. The convention of Maier-Hein et al. 2024 (Metrics reloaded) and of MONAI.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not a.any() or not b.any():
        return None
    near = np.argwhere(a | b)
    box = tuple(slice(low, high + 1) for low, high in zip(near.min(0), near.max(0), strict=True))
    a, b = np.pad(a[box], 1), np.pad(b[box], 1)
    rims = [mask & ~binary_erosion(mask) for mask in (a, b)]
    away = [distance_transform_edt(~rim, sampling=spacing) for rim in rims]
    return float(max(np.percentile(away[1][rims[0]], 95), np.percentile(away[0][rims[1]], 95)))


def case_scores(
    truth: np.ndarray, said: np.ndarray, classes: Sequence[str], spacing: Sequence[float] | None = None
) -> CaseScores:
    """{class: {"dice", "hd95"}} of one volume of class indices; classes[0] is the background and has none."""
    out: CaseScores = {}
    for index, name in enumerate(classes[1:], 1):
        a, b = truth == index, said == index
        out[name] = {"dice": dice(a, b), "hd95": None if spacing is None else hd95(a, b, spacing)}
    return out


def summary(cases: Sequence[CaseScores], classes: Sequence[str], *, draws: int = 200, seed: int = 0) -> dict[str, Any]:
    """Means over cases and classes, by class, and the percentile bootstrap interval of the mean Dice over cases."""
    dices = np.array([[_number(case[name]["dice"]) for name in classes[1:]] for case in cases])
    far = np.array([[_number(case[name]["hd95"]) for name in classes[1:]] for case in cases])
    per_class = {
        name: {
            "cases": int(np.isfinite(dices[:, column]).sum()),
            "dice": _mean(dices[:, column]),
            "hd95": _mean(far[:, column]),
            "missed": int((dices[:, column] == 0).sum()),
        }
        for column, name in enumerate(classes[1:])
    }
    out: dict[str, Any] = {"dice": _mean(dices), "hd95": _mean(far), "cases": len(cases), "per_class": per_class}
    if draws and len(cases) > 1:
        random = np.random.default_rng(seed)
        means = [_mean(dices[random.integers(0, len(cases), len(cases))]) for _ in range(draws)]
        known = [mean for mean in means if mean is not None]
        if len(known) > draws / 2:
            out["dice_interval"] = [round(float(edge), 6) for edge in np.quantile(known, [0.025, 0.975])]
    return out


def dice_metrics(truth: np.ndarray, said: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Dice over whole volumes: truth and said [N, H, W] class indices, groups [N] the volume of each slice."""
    return summary(
        [case_scores(truth[groups == group], said[groups == group], classes) for group in np.unique(groups)], classes
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 6) if known.size else None
