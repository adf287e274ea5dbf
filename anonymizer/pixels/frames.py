"""Turns the frames of an image into pictures the text detector can read, whatever their depth, sign or colour."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

ODD_CELLS = 60  # fewer cells make no readable word


def picture(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] or [rows, columns, 3] from one frame of any integer depth.

    The 0.1..99.9 percentile window keeps burned-in text (at an end of the range) at an end of the picture.
    """
    if frame.dtype == np.uint8 and frame.ndim == 3:
        return np.asarray(frame[..., :3])
    values = frame.astype(np.float32)
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(frame.shape[:2] if frame.ndim == 2 else (*frame.shape[:2], 3), dtype=np.uint8)
    scaled = np.clip((values - low) * (255.0 / (high - low)), 0, 255).astype(np.uint8)
    return scaled if scaled.ndim == 2 else scaled[..., :3]


def evened(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its local mean and contrast evened out, which brings out gray text on gray anatomy."""
    plane = (view if view.ndim == 2 else view.max(axis=2)).astype(np.float32)
    centred = plane - ndimage.uniform_filter(plane, 25)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(centred * centred, 41), 0.0)) + 6.0
    return np.clip(128 + centred / spread * 45, 0, 255).astype(np.uint8)


def calmed(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture, blurred a little when it is noise: there the detector sees letters everywhere, and a person sees none."""
    plane = (view if view.ndim == 2 else view.mean(axis=2)).astype(np.float32)
    left, right = plane[:, :-1], plane[:, 1:]
    spread = float(left.std() * right.std())
    if spread == 0 or float(((left - left.mean()) * (right - right.mean())).mean()) > 0.5 * spread:
        return view
    sigma = (1.2, 1.2) if view.ndim == 2 else (1.2, 1.2, 0)
    return np.asarray(ndimage.gaussian_filter(view.astype(np.float32), sigma), dtype=np.uint8)


def projections(frames: Iterable[NDArray[np.generic]]) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Pixelwise maximum and minimum over the frames: bright text on any frame shows in the one, dark text in the other."""
    iterator = iter(frames)
    first = next(iterator)
    highest, lowest = first.copy(), first.copy()
    for frame in iterator:
        np.maximum(highest, frame, out=highest)
        np.minimum(lowest, frame, out=lowest)
    return highest, lowest


def standing_out(
    frames: Iterable[NDArray[np.generic]], highest: NDArray[np.generic], lowest: NDArray[np.generic]
) -> list[int]:
    """Frames that alone hold far more of the extreme cells than the others do: what is written on one frame only.

    The noise of many frames together hides faint or small letters in the projections ``highest`` and ``lowest``.
    """
    low, high = float(lowest.min()), float(highest.max())
    bright = np.greater(highest, low + 0.75 * (high - low))
    dark = np.less(lowest, low + 0.25 * (high - low))
    counts = np.array(
        [[((f == highest) & bright).sum(), ((f == lowest) & dark).sum()] for f in frames], dtype=np.float64
    )
    usual = np.median(counts, axis=0)
    spread = np.median(np.abs(counts - usual), axis=0)
    return [int(i) for i in np.flatnonzero((counts > usual + 6 * spread + ODD_CELLS).any(axis=1))]


def carries(frame: NDArray[np.generic], projected: NDArray[np.generic], mask: NDArray[np.bool_]) -> bool:
    """Whether ``frame`` (cropped to a region) holds the strokes seen in the ``projected`` crop.

    Strokes are the projected pixels on the far side of Otsu's threshold; text stays put, so a frame that has it equals
    the projection there. Doubt (more than three strokes in ten) counts as text.
    """
    plane = (projected if projected.ndim == 2 else projected.max(axis=2)).astype(np.float64)
    own = (frame if frame.ndim == 2 else frame.max(axis=2)).astype(np.float64)
    values = plane[mask]
    threshold = _otsu(values)
    bright = plane > threshold
    strokes = bright if bright[mask].mean() <= 0.5 else ~bright
    strokes = strokes & mask
    if not strokes.any():
        return True
    tolerance = max(2.0, 0.08 * float(np.ptp(values)))
    same = np.abs(own - plane) <= tolerance
    return bool(same[strokes].mean() > 0.3)


def _otsu(values: NDArray[np.float64]) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9, 1979) of a flat sample."""
    counts, edges = np.histogram(values, bins=64)
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * (weight[-1] - weight))
    between = np.nan_to_num(between[:-1])
    return float(centres[int(between.argmax())]) if between.size else float(values.mean())
