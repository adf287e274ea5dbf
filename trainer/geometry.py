"""Where slices lie in the patient: order along the normal, spacing, gaps, duplicates, tilt, and one orientation for all.

Pure functions over positions and direction cosines (PS3.3 C.7.6.2.1.1); millimetres in the patient's LPS frame throughout.
A volume's array axes are (slice, row, column); its affine maps (slice, row, column, 1) to LPS millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from trainer.errors import PixelError

_SAME_PLACE = 1e-3  # mm
_GAP = 1.5  # times the usual distance
_TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Plane:
    """One slice or frame: instance, frame number (from 1), first voxel's centre, row and column cosines, spacing
    (row, column).
    """

    sop_uid: str
    frame: int
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    number: int = 0  # instance or temporal order, to choose among planes at one place

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def distance(self) -> float:
        """mm along the normal."""
        return float(np.dot(self.normal, self.position))


@dataclass(frozen=True)
class Stack:
    """Planes in order of distance, the distance between neighbours in mm, and what is odd about them, in words."""

    planes: list[Plane]
    step: float
    issues: list[str]

    @property
    def affine(self) -> np.ndarray:
        """4 × 4: (slice, row, column, 1) → LPS mm; slice direction from first to last plane, so a tilt is kept."""
        first, last = self.planes[0], self.planes[-1]
        out = np.eye(4)
        count = len(self.planes)
        along = (np.subtract(last.position, first.position) / (count - 1)) if count > 1 else first.normal * self.step
        out[:3, 0] = along
        out[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
        out[:3, 2] = np.array(first.orientation[:3]) * first.spacing[1]
        out[:3, 3] = first.position
        return out


def stack(planes: Sequence[Plane]) -> Stack:
    """Order planes along their common normal. Errors: PixelError when they cannot form one volume.

    Planes at one place (a time series, a repeated slice) keep the one with the lowest number and are reported.
    """
    if not planes:
        raise PixelError("the series holds no image plane; exclude it from the cohort")
    first = planes[0]
    for plane in planes:
        if plane.shape != first.shape or not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise PixelError(
                f"instance {plane.sop_uid} has another matrix or spacing than its series; split the series"
            )
        if not np.allclose(plane.orientation, first.orientation, atol=1e-3):
            raise PixelError(f"instance {plane.sop_uid} is oriented unlike its series (a localizer?); split the series")
    ordered = sorted(planes, key=lambda p: (round(p.distance, 3), p.number, p.sop_uid, p.frame))
    kept: list[Plane] = []
    issues: list[str] = []
    repeated = 0
    for plane in ordered:
        if kept and abs(plane.distance - kept[-1].distance) < _SAME_PLACE * 2:
            repeated += 1
        else:
            kept.append(plane)
    if repeated:
        issues.append(
            f"{repeated} planes lie where another already is (a time series or duplicates); the first was kept"
        )
    steps = np.diff([plane.distance for plane in kept])
    step = float(np.median(steps)) if len(steps) else 1.0
    missing = int(sum(round(s / step) - 1 for s in steps if s > step * _GAP))
    if missing:
        issues.append(f"{missing} slices are missing")
    elif len(steps) and float(np.ptp(steps)) > 0.1 * step:
        issues.append(f"the distance between slices varies from {steps.min():.2f} to {steps.max():.2f} mm")
    if (tilt := _tilt_degrees(kept)) > _TILT_DEGREES:
        issues.append(f"the slices are sheared by {tilt:.1f} degrees (gantry tilt)")
    return Stack(kept, step, issues)


def _tilt_degrees(planes: list[Plane]) -> float:
    """Angle between the stacking direction and the planes' normal."""
    if len(planes) < 2:
        return 0.0
    along = np.subtract(planes[-1].position, planes[0].position)
    cosine = abs(np.dot(along, planes[0].normal)) / max(float(np.linalg.norm(along)), 1e-9)
    return float(np.degrees(np.arccos(min(cosine, 1.0))))


def to_canonical(volume: np.ndarray, affine: np.ndarray, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Turn the last three axes to one convention by moving and flipping them; nothing is resampled.

    The slice axis stays first (in-plane resolution is the better one); the two in-plane axes are ordered superior before
    posterior before left; all run towards superior, posterior or left. With `whole` all three axes are ordered so, whatever
    plane the series was acquired in. Returns the volume with its new affine.
    """
    order, flips = _canonical_moves(affine, whole)
    lead = volume.ndim - 3
    moved = np.transpose(volume, [*range(lead), *(lead + axis for axis in order)])
    new = affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            moved = np.flip(moved, lead + axis)
            new[:3, 3] += new[:3, axis] * (moved.shape[lead + axis] - 1)
            new[:3, axis] *= -1
    return np.ascontiguousarray(moved), new


def from_canonical(volume: np.ndarray, affine: np.ndarray, whole: bool = False) -> np.ndarray:
    """Undo `to_canonical`: `affine` is the affine of the original stack."""
    order, flips = _canonical_moves(affine, whole)
    lead = volume.ndim - 3
    for axis, flip in enumerate(flips):
        if flip:
            volume = np.flip(volume, lead + axis)
    back = np.argsort(order)
    return np.ascontiguousarray(np.transpose(volume, [*range(lead), *(lead + axis for axis in back)]))


def _canonical_moves(affine: np.ndarray, whole: bool) -> tuple[list[int], list[bool]]:
    """For each new axis: which old one it is, and whether it must be flipped (LPS: x left, y posterior, z superior)."""
    directions = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-9)
    if whole:
        orders = [list(order) for order in permutations(range(3))]
        order = max(orders, key=lambda axes: sum(abs(directions[2 - i, axis]) for i, axis in enumerate(axes)))
        return order, [bool(directions[2 - i, axis] < 0) for i, axis in enumerate(order)]
    slices = int(np.abs(directions[:, 0]).argmax())
    rest = [component for component in (2, 1, 0) if component != slices]
    straight = abs(directions[rest[0], 1]) + abs(directions[rest[1], 2])
    crossed = abs(directions[rest[0], 2]) + abs(directions[rest[1], 1])
    order = [0, 1, 2] if straight >= crossed else [0, 2, 1]
    components = [slices, *rest]
    return order, [bool(directions[c, axis] < 0) for c, axis in zip(components, order, strict=True)]
