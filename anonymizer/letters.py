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
SAMPLED = 4  # every so many-th row is looked at first
FEWEST = TEXT_CELLS // SAMPLED
STROKE = 5  # cells: letters' strokes are thinner, and have brighter cells on all four sides this far away


def may_hold_letters(frames: Iterable[NDArray[Any]]) -> bool:
    """Whether any gray frame [rows, columns] has many cells at its highest value, or thin strokes of its lowest."""
    return any(frame.size >= 64 and _letters(frame) for frame in frames)


def _letters(frame: NDArray[Any]) -> bool:
    few = np.ascontiguousarray(
        frame[::SAMPLED]
    )  # letters stand in several rows: one in four tells as much in a quarter of the time
    top, bottom = few.max(), few.min()
    if top == bottom:
        return False
    margin = (int(top) - int(bottom)) // 64
    at_top = int(np.count_nonzero(few == top))
    if at_top >= FEWEST and at_top > int(np.count_nonzero(few >= int(top) - margin)) - at_top:
        return True
    at_bottom = int(np.count_nonzero(few == bottom))
    if at_bottom < FEWEST or min(frame.shape) < 4 * STROKE:
        return False
    if at_bottom <= int(np.count_nonzero(few <= int(bottom) + margin)) - at_bottom:
        return False
    return _thin_strokes(frame, int(bottom), int(bottom) + (int(top) - int(bottom)) // 4)


def _thin_strokes(cells: NDArray[Any], bottom: int, bright_from: int) -> bool:
    """Whether enough of the lowest cells have brighter ones on all four sides, a stroke's width away."""
    inner = slice(STROKE, -STROKE)
    lowest, bright = cells == bottom, cells > bright_from
    strokes = lowest[inner, inner] & bright[inner, : -2 * STROKE] & bright[inner, 2 * STROKE :]
    strokes &= bright[: -2 * STROKE, inner] & bright[2 * STROKE :, inner]
    return int(np.count_nonzero(strokes)) >= TEXT_CELLS // 2
