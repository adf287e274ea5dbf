"""Tells from the gray values of a scan, without reading it, whether letters may have been burned into it.

A scan's own values thin out towards the ends of their range; letters put many cells at the very end: at the highest value, or,
written dark on bright anatomy, thin strokes of the lowest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXT_CELLS = 60  # fewer cells make no readable word
STROKE = 5  # cells: letters' strokes are thinner, and have brighter cells on all four sides this far away


def may_hold_letters(frames: Iterable[NDArray[Any]]) -> bool:
    """Whether any gray frame [rows, columns] has many cells at its highest value, or thin strokes of its lowest."""
    return any(frame.size >= 64 and (_bright(frame) or _dark(frame)) for frame in frames)


def _bright(cells: NDArray[Any]) -> bool:
    top = cells.max()
    at_top = int(np.count_nonzero(cells == top))
    if at_top < TEXT_CELLS:
        return False
    near = int(top) - (int(top) - int(cells.min())) // 64
    return at_top > int(np.count_nonzero(cells >= near)) - at_top


def _dark(cells: NDArray[Any]) -> bool:
    if cells.ndim != 2 or min(cells.shape) < 4 * STROKE:
        return False
    bottom, top = int(cells.min()), int(cells.max())
    lowest = cells == bottom
    count = int(np.count_nonzero(lowest))
    if count < TEXT_CELLS or count <= int(np.count_nonzero(cells <= bottom + (top - bottom) // 64)) - count:
        return False
    bright, inner = cells > bottom + (top - bottom) // 4, slice(STROKE, -STROKE)
    strokes = lowest[inner, inner] & bright[inner, : -2 * STROKE] & bright[inner, 2 * STROKE :]
    strokes &= bright[: -2 * STROKE, inner] & bright[2 * STROKE :, inner]
    return int(np.count_nonzero(strokes)) >= TEXT_CELLS // 2
