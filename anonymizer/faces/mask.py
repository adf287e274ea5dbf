"""Decides which voxels of a head volume go: the skin's outer 9 mm where it shows a face, and the face's depth, never brain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anonymizer.faces.register import Match, register
from anonymizer.faces.template import in_face_zone, template
from anonymizer.faces.tissue import AIR, SCALP, brain_of_ct, brain_of_mr, grown, head_of, largest, shrunk
from anonymizer.faces.volume import Grid

Array = NDArray[Any]
DEPTH = 9.0  # mm under the skin that go; with cells of 2 mm at least 6 mm are sure
GUARD = 3.0  # mm around the brain that stay: a cell in every direction
MOVED = 6.0  # mm by which the surface must move at least
_SURE = 0.95  # share of the face's skin that must move so far


@dataclass(frozen=True)
class Plan:
    """What is to be done with a volume: ``removed`` and ``brain`` are bool [z, y, x] on its grid; ``reason``: why not.

    With a reason, ``removed`` is what can go of a face that cannot go as a whole.
    """

    reason: str = ""
    absent: bool = False  # surely no head
    removed: Array | None = None
    brain: Array | None = None
    head: Array | None = None
    overlap: float = 0.0
    moved: float = 0.0  # share of the face's skin that moves by at least MOVED


def plan(grid: Grid, modality: str, certain: bool) -> Plan:
    """The plan for one volume. ``certain``: the header says it is a head; else its anatomy decides."""
    ct = modality == "CT"
    head = head_of(grid, ct)
    absent = _no_head(grid, head, ct)
    if absent and not certain:
        return Plan(absent, absent=True)
    if absent:
        return Plan(f"its face cannot be found: {absent}")
    match = register(grid, head, ct)
    mean = template()
    theirs = match.warped(mean.brain, grid) & grid.valid
    bounds = grown(theirs, 6.0, grid.spacing) & head
    if ct or _scalp_shows(grid, theirs):
        bounds &= shrunk(head, SCALP, grid.spacing) | theirs
    brain = (brain_of_ct if ct else brain_of_mr)(grid, head, shrunk(theirs, 8.0, grid.spacing), bounds)
    doubt = _doubt(match, brain, theirs, grid)
    if doubt:
        return Plan(doubt, overlap=match.overlap)
    guard = grown(brain | theirs, GUARD, grid.spacing)
    zone = in_face_zone(*match.to_template(grid))
    deep = match.warped(mean.deep, grid, beyond=True) & (zone | head)
    within = np.pad(head | ~grid.valid, 1, constant_values=True)  # where the scan ends there is no skin
    skin_deep = ~shrunk(within, DEPTH, grid.spacing)[1:-1, 1:-1, 1:-1]
    removed = ((zone & skin_deep) | deep) & ~guard
    bare = grown(brain & theirs, GUARD, grid.spacing)  # brain at the surface, no skin over it
    moved = _moved(grid, head, removed, zone & ~bare)
    if moved < _SURE:
        return Plan(
            "its face and its brain lie too near to each other to take the one off safely",
            removed=removed,
            overlap=match.overlap,
            moved=moved,
        )
    return Plan("", False, removed, brain, head, match.overlap, moved)


def _scalp_shows(grid: Grid, brain: Array) -> bool:
    """Whether what surrounds the brain is bright; in echo planar volumes it is not, and the brain is the surface."""
    ring = grown(brain, 14.0, grid.spacing) & ~grown(brain, 7.0, grid.spacing) & grid.valid
    if not ring.any():
        return True
    return float(np.percentile(grid.values[ring], 75)) > 0.35 * float(np.median(grid.values[brain]))


def _no_head(grid: Grid, head: Array, ct: bool) -> str:
    """Why a volume holds no head, from its size and (CT) from whether bone encloses anything; "" when it may."""
    if not head.any():
        return "nothing in it stands out from the air"
    if ct and not _enclosed(grid):
        return "no bone in it encloses a brain"
    return ""


def _enclosed(grid: Grid) -> bool:
    """Whether bone closes around at least 40 square centimetres of soft tissue in slices that make up 15 mm."""
    bone = ndimage.binary_closing(grid.values > 180.0, np.ones((1, 5, 5), dtype=bool))
    inside = 0
    for plane, values in zip(bone, grid.values, strict=True):
        hole = ndimage.binary_fill_holes(plane) & ~plane & (values > AIR / 4)
        if hole.any() and int(largest(hole).sum()) * grid.spacing**2 > 4000:
            inside += 1
    return inside * grid.spacing >= 15


def _doubt(match: Match, brain: Array, theirs: Array, grid: Grid) -> str:
    """Why registration or brain are not to be trusted; "" when they are."""
    if match.overlap < 0.85 or not np.all((match.stretch > 0.7) & (match.stretch < 1.4)):
        return "its head cannot be matched to the mean head, so its face is not known to be found"
    cell = grid.spacing**3 / 1000
    total = int(brain.sum()) + int(theirs.sum())
    if int(theirs.sum()) * cell < 150:
        return "too little of the brain was scanned to protect it"
    if 2 * int((brain & theirs).sum()) / total < 0.8:
        return "its brain cannot be told from what surrounds it"
    return ""


def _moved(grid: Grid, head: Array, removed: Array, zone: Array) -> float:
    """Share of the head's surface in the face zone that lies at least MOVED mm off what is left of the head."""
    skin = (
        head & ~ndimage.binary_erosion(head, border_value=1) & zone & ndimage.binary_erosion(grid.valid, border_value=0)
    )
    if not skin.any():
        return 1.0
    distance = ndimage.distance_transform_edt(~(head & ~removed), sampling=grid.spacing)
    edge = ndimage.binary_dilation(head & ~zone, iterations=5)  # where the zone ends the surface joins what stays
    inner = skin & ~edge
    return float((distance[inner] >= MOVED).mean()) if inner.any() else 1.0
