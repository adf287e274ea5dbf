"""Histogram landmarks of an image and the piecewise linear map that moves them (Nyúl and Udupa 1999; Nyúl, Udupa, Zhang 2000).

The landmarks are the 1st, the tens' and the 99th percentile of the image's values, or of those above its mean, which leaves air
out. A map is given by an image's own landmarks and where they go; between two it is linear, outside it goes on with the end
pieces' slopes, and it never turns brightness round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


def foreground(values: np.ndarray) -> np.ndarray:
    """float [N], the values above the mean; all of them when none is (an image without contrast)."""
    flat = np.ravel(values)
    above = flat[flat > flat.mean()]
    return above if above.size else flat


def landmarks_of(values: np.ndarray) -> np.ndarray:
    """float64 [11]: the values at `PERCENTILES`, ascending, in the image's units."""
    return np.percentile(np.ravel(values).astype(np.float64), PERCENTILES)


def mapped(values: np.ndarray, own: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`values` with each landmark of `own` moved to that of `target`: float32 of the same shape, never descending.

    own, target: float [K], ascending. Equal landmarks of `own` (a flat part of the histogram) go to the mean of their targets;
    an image without contrast goes to the mean of the target.
    """
    places, index = np.unique(own, return_inverse=True)
    goals = np.bincount(index, np.asarray(target, np.float64)) / np.bincount(index)
    if len(places) == 1:
        return np.full(values.shape, goals[0], np.float32)
    flat = np.asarray(values, np.float64)
    out = np.interp(flat, places, goals)
    slopes = np.diff(goals) / np.diff(places)
    out = np.where(flat < places[0], goals[0] + (flat - places[0]) * slopes[0], out)
    out = np.where(flat > places[-1], goals[-1] + (flat - places[-1]) * slopes[-1], out)
    return out.astype(np.float32)


def harmonised(values: np.ndarray, scale: Sequence[float], above_mean: bool = False) -> np.ndarray:
    """`values` with its landmarks moved to `scale`: float32 of the same shape; unchanged where `scale` is empty.

    scale: where the 11 landmarks go, ascending. above_mean: take the image's landmarks from the values above its mean.
    """
    if not len(scale):
        return values
    own = landmarks_of(foreground(values) if above_mean else values)
    return mapped(values, own, np.asarray(scale, np.float64))
