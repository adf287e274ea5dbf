"""Puts the frames of a series into stacks with patient geometry (PS3.3 C.7.6.2) and onto a coarse grid to reason on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

GRID = 2.0  # mm, the coarse grid along the patient's axes (LPS)
_HIGHEST = 380.0  # mm below the top of a volume that are looked at: a head and neck
Array = NDArray[Any]


class Frame(NamedTuple):
    """One frame: its object, its ``number`` there (from 0) and where it lies. Lengths in mm, patient axes (LPS)."""

    source: int
    number: int
    rows: int
    columns: int
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]  # between rows, between columns
    order: int
    slope: float
    intercept: float


@dataclass
class Stack:
    """Parallel frames of one size, sorted along their normal; several may share a position (phases, echoes)."""

    frames: list[Frame]
    normal: Array
    depths: Array = field(default_factory=lambda: np.empty(0))  # distinct, ascending, mm along the normal
    chosen: list[Frame] = field(default_factory=list)  # the first frame at each depth

    @property
    def sagittal(self) -> bool:
        """Whether a frame shows a profile: its normal is nearer to left-right than to any other axis."""
        return bool(np.argmax(np.abs(self.normal)) == 0)

    @property
    def extents(self) -> tuple[float, float, float]:
        """(height, width, thickness) in mm."""
        first = self.frames[0]
        gap = float(np.median(np.diff(self.depths))) if len(self.depths) > 1 else 0.0
        return first.rows * first.spacing[0], first.columns * first.spacing[1], float(np.ptp(self.depths)) + gap


def read_frames(ds: Dataset, source: int) -> list[Frame]:
    """The frames of one object, classic or enhanced; raises ValueError when the header does not say where they lie."""
    count = int(ds.get("NumberOfFrames") or 1)
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != count:
        raise ValueError("the functional groups do not match the number of frames")
    if not groups and count > 1:
        raise ValueError("a multi-frame object without functional groups has no positions")
    return [_frame(ds, source, i, groups[i] if groups else Dataset(), shared) for i in range(count)]


def _frame(ds: Dataset, source: int, index: int, own: Dataset, shared: Dataset) -> Frame:
    def value(sequence: str, keyword: str) -> Any:
        for place in (own, shared):
            if place.get(sequence):
                found = place[sequence][0].get(keyword)
                if found is not None:
                    return found
        return ds.get(keyword)

    position = value("PlanePositionSequence", "ImagePositionPatient")
    orientation = value("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = value("PixelMeasuresSequence", "PixelSpacing")
    if position is None or orientation is None or spacing is None or len(position) != 3 or len(orientation) != 6:
        raise ValueError("position, orientation or pixel spacing is missing")
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    numbers = [float(v) for v in (*position, *orientation, *spacing)]
    if not np.all(np.isfinite(numbers)) or min(numbers[9:]) <= 0:
        raise ValueError("position, orientation or pixel spacing is impossible")
    return Frame(
        source,
        index,
        int(ds.Rows),
        int(ds.Columns),
        (numbers[0], numbers[1], numbers[2]),
        tuple(numbers[3:9]),
        (numbers[9], numbers[10]),
        int(ds.get("InstanceNumber") or 0) if not len(own) else index,
        float(slope) if slope not in (None, "") else 1.0,
        float(intercept) if intercept not in (None, "") else 0.0,
    )


def stacks(frames: Iterable[Frame]) -> list[Stack]:
    """Frames grouped by size, spacing and orientation (to 2 degrees), each group sorted along its normal."""
    groups: list[Stack] = []
    for frame in frames:
        normal = np.cross(frame.orientation[:3], frame.orientation[3:])
        for group in groups:
            first = group.frames[0]
            if (first.rows, first.columns) == (frame.rows, frame.columns) and np.allclose(
                (*first.orientation, *first.spacing), (*frame.orientation, *frame.spacing), atol=0.035
            ):
                group.frames.append(frame)
                break
        else:
            groups.append(Stack([frame], normal))
    for group in groups:
        _sort(group)
    return groups


def _sort(stack: Stack) -> None:
    def depth(frame: Frame) -> float:
        return float(np.dot(stack.normal, frame.position))

    stack.frames.sort(key=lambda f: (round(depth(f), 2), f.order, f.source, f.number))
    depths: list[float] = []
    for frame in stack.frames:
        if not depths or depth(frame) - depths[-1] > 0.05:
            depths.append(depth(frame))
            stack.chosen.append(frame)
    stack.depths = np.array(depths)


@dataclass
class Grid:
    """A volume on a regular grid along the patient's axes: ``values`` [z, y, x] (float32), ``valid`` where it was scanned."""

    values: Array
    valid: Array
    origin: Array  # mm, (x, y, z) of the first voxel's centre
    spacing: float = GRID

    def points(self) -> tuple[Array, Array, Array]:
        """Patient coordinates (x, y, z) in mm, open grids that broadcast to the grid's shape."""
        z, y, x = (self.origin[2 - a] + self.spacing * np.arange(n) for a, n in enumerate(self.values.shape))
        return x[None, None, :], y[None, :, None], z[:, None, None]


def coarse(stack: Stack, read: Callable[[Frame], Array]) -> Grid:
    """The stack on the coarse grid, rescaled by slope and intercept; ``read`` gives one frame's stored values.

    Works for oblique and sheared (tilted gantry) stacks: a frame's place comes from its own Image Position.
    """
    first, last = stack.chosen[0], stack.chosen[-1]
    factors = [max(1, int(1.2 // s)) for s in first.spacing]
    steps = len(stack.chosen)
    slabs = np.stack([_reduced(read(f), factors, f) for f in stack.chosen])
    even = np.linspace(stack.depths[0], stack.depths[-1], max(steps, round(float(np.ptp(stack.depths))) // 2 + 1))
    slabs = _evened(slabs, stack.depths, even)
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    step = (np.array(last.position) - np.array(first.position)) / (len(even) - 1)
    to_patient = np.stack([step, column * first.spacing[0] * factors[0], row * first.spacing[1] * factors[1]], axis=1)
    start = np.array(first.position) + to_patient @ [
        0,
        (factors[0] - 1) / 2 / factors[0],
        (factors[1] - 1) / 2 / factors[1],
    ]
    corners = np.array(
        [[i, j, k] for i in (0, slabs.shape[0] - 1) for j in (0, slabs.shape[1] - 1) for k in (0, slabs.shape[2] - 1)]
    )
    reach = start + corners @ to_patient.T
    low, high = reach.min(axis=0), reach.max(axis=0)
    low[2] = max(low[2], high[2] - _HIGHEST)
    shape = np.ceil((high - low) / GRID).astype(int) + 1
    # output index (z, y, x) -> slab index (depth, row, column)
    inverse = np.linalg.inv(to_patient)
    matrix = inverse[:, ::-1] * GRID
    offset = inverse @ (low - start)
    values = ndimage.affine_transform(slabs, matrix, offset, output_shape=tuple(shape[::-1]), order=1, cval=np.nan)
    valid = np.isfinite(values)
    fill = float(np.percentile(values[valid], 1)) if valid.any() else 0.0
    return Grid(np.where(valid, values, fill).astype(np.float32), valid, low)


def _reduced(frame: Array, factors: list[int], facts: Frame) -> Array:
    rows, columns = (n // f * f for n, f in zip(frame.shape, factors, strict=True))
    blocks = (
        frame[:rows, :columns]
        .astype(np.float32)
        .reshape(rows // factors[0], factors[0], columns // factors[1], factors[1])
    )
    return np.asarray(blocks.mean(axis=(1, 3)) * facts.slope + facts.intercept, dtype=np.float32)


def _evened(slabs: Array, depths: Array, even: Array) -> Array:
    place = np.interp(even, depths, np.arange(len(depths)))
    below = np.minimum(place.astype(int), len(depths) - 2)
    part = (place - below).astype(np.float32)[:, None, None]
    return np.asarray(slabs[below] * (1 - part) + slabs[below + 1] * part)


def on_frame(mask: Array, grid: Grid, frame: Frame) -> Array:
    """A mask of the grid as seen on one frame (nearest cell): bool [rows, columns]; outside the grid False."""
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    start = (np.array(frame.position) - grid.origin) / grid.spacing
    down, right = column * frame.spacing[0] / grid.spacing, row * frame.spacing[1] / grid.spacing
    inside = np.ones((frame.rows, frame.columns), dtype=bool)
    cells = []
    for axis in range(3):
        cell = np.rint(
            start[axis] + np.arange(frame.rows)[:, None] * down[axis] + np.arange(frame.columns)[None, :] * right[axis]
        ).astype(np.int32)
        size = mask.shape[2 - axis]
        inside &= (cell >= 0) & (cell < size)
        cells.append(np.clip(cell, 0, size - 1))
    return np.asarray(mask[cells[2], cells[1], cells[0]] & inside)
