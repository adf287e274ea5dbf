"""Finds head and brain in a volume from its own gray values, so that a wrong registration cannot cost any of the brain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anonymizer.faces.volume import Grid

Array = NDArray[Any]
AIR, BONE = -400.0, 250.0  # HU
_BRAIN_HU = (-5.0, 110.0)
SCALP = 7.0  # mm, the least that skin and bone above the brain measure


def grown(mask: Array, mm: float, spacing: float) -> Array:
    """The mask and all that is within some mm of it."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= mm) if mask.any() else mask


def shrunk(mask: Array, mm: float, spacing: float) -> Array:
    """What of the mask is more than some mm away from everything outside it."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing) > mm)


def closing(mask: Array, mm: float, spacing: float) -> Array:
    """The mask with gaps of up to twice some mm closed; the volume's border counts as outside."""
    edge = int(np.ceil(mm / spacing)) + 1
    wide = shrunk(grown(np.pad(mask, edge), mm, spacing), mm, spacing)
    return np.asarray(wide[edge:-edge, edge:-edge, edge:-edge] | mask)


def largest(mask: Array) -> Array:
    """The largest connected part."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))


def otsu(values: Array) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9, 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    weight, total = np.cumsum(counts), np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * (weight[-1] - weight))
    return float(centres[int(np.nan_to_num(between).argmax())])


def head_of(grid: Grid, ct: bool) -> Array:
    """The head (or body) without the air around it and with its cavities; tubes, straps and cushions come off."""
    values = grid.values
    if ct:
        mask = values > AIR
    else:
        scanned = values[grid.valid]
        top = np.percentile(scanned, 99.5)
        level = otsu(np.clip(scanned, None, top))
        noise = scanned[scanned < level]
        low = float(np.median(noise)) if noise.size else 0.0
        mask = values > low + 0.35 * (level - low)
    mask &= grid.valid
    # bridges of under 4 mm come off; the part that is left grows back to its own surface
    core = largest(shrunk(mask, 4.0, grid.spacing))
    mask = mask & grown(core, 8.0, grid.spacing)
    closed = closing(mask, 6.0, grid.spacing) & grid.valid
    for axis in range(3):
        filled = [ndimage.binary_fill_holes(plane) for plane in np.moveaxis(closed, axis, 0)]
        closed = np.moveaxis(np.stack(filled), 0, axis) & grid.valid
    return np.asarray(closed)


def brain_of_mr(grid: Grid, head: Array, centre: Array, bounds: Array) -> Array:
    """Brain of an MR (or PET) volume: bright and parted from the rest by the dark of the skull.

    ``centre``: where most of it must lie; ``bounds``: where it may lie at all.
    """
    inside = grid.values[centre & head]
    if inside.size < 100:
        return np.zeros_like(head)
    middle = float(np.median(inside))
    low = float(np.percentile(grid.values[grid.valid & ~head], 50)) if (grid.valid & ~head).any() else 0.0
    tissue = (grid.values > low + 0.5 * (middle - low)) & bounds & head
    return _connected(tissue, centre, bounds & head, grid.spacing)


def brain_of_ct(grid: Grid, head: Array, centre: Array, bounds: Array) -> Array:
    """Brain of a CT volume: soft tissue inside the bone of the skull."""
    bone = closing(grid.values > BONE, 3.0, grid.spacing)
    smooth = ndimage.uniform_filter(grid.values, 3)
    soft = (smooth > _BRAIN_HU[0]) & (smooth < _BRAIN_HU[1]) & ~bone & bounds & head
    return _connected(soft, centre, ~bone & bounds & head, grid.spacing)


def _connected(tissue: Array, centre: Array, allowed: Array, spacing: float) -> Array:
    """The part of the tissue around the centre once bridges of up to 8 mm are cut, grown back and its ventricles filled."""
    labels, count = ndimage.label(shrunk(tissue, 4.0, spacing))
    if not count:
        return np.zeros_like(tissue)
    share = np.bincount(labels[centre].ravel(), minlength=count + 1)
    share[0] = 0
    keep = share >= 0.1 * max(1, share.max())
    core = keep[labels] & (labels > 0)
    back = grown(core, 6.0, spacing) & tissue
    return np.asarray(ndimage.binary_fill_holes(closing(back, 8.0, spacing) & allowed))
