"""Whether images or scores have moved away from those of an earlier time: PSI, Kolmogorov-Smirnov, and a two-sample test.

PSI compares shares over the reference's deciles (0.25 is the usual alarm), KS the distribution functions, and MMD (Gretton
et al. 2012) all features together with a permutation test. The reference stays in a file at the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer import weights
from trainer.errors import WeightsError
from trainer.local.data import Samples

FEATURES = ("skewness", "kurtosis", "low", "high", "sharpness", "centre")
LEAST = 30  # samples on either side below which nothing is claimed
PSI_ALARM = 0.25
P_ALARM = 0.01
_MOST = 300  # samples of each side in the two-sample test


def psi(reference: np.ndarray, current: np.ndarray, bins: int = 10) -> float:
    """Population stability index of `current` [M] over the quantile bins of `reference` [N]."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = [
        (np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1) + 0.5)
        / (len(values) + 0.5 * (len(edges) + 1))
        for values in (reference, current)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def ks(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """(largest distance between the distribution functions, p value)."""
    from scipy.stats import ks_2samp

    found = ks_2samp(reference, current)
    return float(found.statistic), float(found.pvalue)


def two_sample(reference: np.ndarray, current: np.ndarray, *, draws: int = 200, seed: int = 0) -> float:
    """p value of a permutation test on the maximum mean discrepancy of features [N, F] and [M, F].

    Gaussian kernel of median width, on at most 300 samples of each side, each feature scaled by the reference.
    """
    random = np.random.default_rng(seed)
    sides = [x[random.permutation(len(x))[:_MOST]] for x in (reference, current)]
    scale = np.maximum(sides[0].std(0), 1e-9)
    both = (np.concatenate(sides) - sides[0].mean(0)) / scale
    squared = np.maximum((both**2).sum(1)[:, None] + (both**2).sum(1)[None] - 2 * both @ both.T, 0)
    kernel = np.exp(-squared / max(float(np.median(squared[squared > 0], axis=None)) if squared.any() else 1.0, 1e-12))
    count, n = len(both), len(sides[0])
    sign = np.r_[np.full(n, 1.0 / n), np.full(count - n, -1.0 / (count - n))]
    observed = sign @ kernel @ sign
    shuffled = [(moved := sign[random.permutation(count)]) @ kernel @ moved for _ in range(draws)]
    return float((1 + sum(value >= observed - 1e-12 for value in shuffled)) / (draws + 1))


def features(samples: Samples, batch: int = 64) -> np.ndarray:
    """FEATURES of each prepared (z-scored) image: float64 [N, 6]."""
    out = []
    for images, _ in samples.batches(batch):
        x = images.numpy().astype(np.float64)
        flat = x.reshape(len(x), -1)
        flat = (flat - flat.mean(1, keepdims=True)) / np.maximum(flat.std(1, keepdims=True), 1e-6)
        low, high = np.quantile(flat, [0.05, 0.95], axis=1)
        inner = x[..., x.shape[-2] // 4 : -(x.shape[-2] // 4) or None, x.shape[-1] // 4 : -(x.shape[-1] // 4) or None]
        sharp = np.abs(np.diff(x, axis=-1)).reshape(len(x), -1).mean(1)
        middle = inner.reshape(len(x), -1).mean(1) - x.reshape(len(x), -1).mean(1)
        out.append(np.stack([(flat**3).mean(1), (flat**4).mean(1), low, high, sharp, middle], 1))
    return np.concatenate(out) if out else np.zeros((0, len(FEATURES)))


def compare(reference: np.ndarray, current: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """PSI and KS of each column and the two-sample test of all; `warning` is a sentence or None.

    A column warns when its PSI passes 0.25 and its KS p value, times the number of columns, is below 0.01. Below 30
    samples on either side nothing is claimed.
    """
    out: dict[str, Any] = {"reference": len(reference), "current": len(current), "warning": None}
    if min(len(reference), len(current)) < LEAST:
        return out
    moved = []
    columns: dict[str, Any] = {}
    for n, name in enumerate(names):
        index, (distance, p) = psi(reference[:, n], current[:, n]), ks(reference[:, n], current[:, n])
        columns[name] = {"psi": round(index, 4), "ks": round(distance, 4), "p": float(f"{p:.3g}")}
        if index > PSI_ALARM and p * len(names) < P_ALARM:
            moved.append(name)
    together = two_sample(reference, current)
    out |= {"columns": columns, "two_sample_p": round(together, 4)}
    if moved or together < P_ALARM:
        what = ", ".join(moved) or "all features together"
        out["warning"] = (
            f"{what} differ from the reference; look at new scanners, protocols or patients before training"
        )
    return out


def against_reference(file: Path, inputs: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Compare image features [N, 6] and scores [N, classes] with those kept in `file`, which the first call writes.

    Scores change whenever the model does, so they are told without a warning. A damaged reference, or one of another task,
    is renewed.
    """
    try:
        kept = weights.load(file) if file.exists() else {}
    except WeightsError:
        kept = {}
    known, said = kept.get("inputs"), kept.get("scores")
    if known is None or said is None or known.shape[1:] != inputs.shape[1:] or said.shape[1:] != scores.shape[1:]:
        file.parent.mkdir(parents=True, exist_ok=True)
        weights.save(file, {"inputs": inputs, "scores": scores})
        return {"inputs": None, "scores": None, "warning": None}
    images, outputs = compare(known, inputs, FEATURES), compare(said, scores, names)
    outputs.pop("warning")
    return {"inputs": images, "scores": outputs, "warning": images["warning"]}
