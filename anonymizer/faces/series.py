"""Takes the faces off the head volumes of one series of de-identified files, in place, or says why that cannot be done.

The files must have been written by `Deidentifier` with ``face`` set on their outcomes: their headers already say that
recognizable features are gone, so a file whose result here is not "ok" must not be passed on.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anonymizer.errors import PixelError
from anonymizer.faces.mask import Plan, plan
from anonymizer.faces.store import Store
from anonymizer.faces.volume import Frame, Grid, Stack, coarse, on_frame, read_frames, stacks
from anonymizer.model import Action, Outcome
from anonymizer.profile import OPTIONS

LEAST_FRAMES = 8  # distinct positions from which a head can be registered
_SMALL = 80.0  # mm; a picture narrower than this shows no face
_THIN = 30.0  # mm; parallel frames across the face that are thinner than this together show no face
_COARSE = 2.9  # mm; cells of an echo planar volume that resolve no features
_TRAIN = 16  # gradient echoes after one excitation that make a sequence echo planar
_GAP = 15.0  # mm between neighbouring frames above which a volume is not one
Array = NDArray[Any]


@dataclass(frozen=True)
class FaceFile:
    """A de-identified file with its outcome's ``face`` ("head" or "maybe")."""

    path: Path
    face: str


@dataclass(frozen=True)
class FaceResult:
    """What became of a file. ``changed``: frames written anew; ``facts``: what differs now of its outcome's facts."""

    path: Path
    status: Literal["ok", "quarantined"]
    reason: str = ""
    changed: int = 0
    facts: dict[str, Any] | None = None


@dataclass(frozen=True)
class Volume:
    """A stack with its plan, for measuring and for showing; left of the wall only."""

    stack: Stack
    grid: Grid
    plan: Plan


def deface(files: Sequence[FaceFile], volumes: list[Volume] | None = None) -> list[FaceResult]:
    """Deface one series in place, all its files at once; -> one result a file, in order.

    ``volumes``, when given, receives each registered volume as it was before, for a rendering at the site.
    Raises OSError when a file cannot be read or written.
    """
    certain = any(file.face == "head" for file in files)
    stores: dict[int, Store] = {}
    reasons: dict[int, str] = {}
    frames: list[Frame] = []
    for number, file in enumerate(files):
        try:
            stores[number] = Store(file.path)
            frames += read_frames(stores[number].header, number)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, PixelError) as error:
            store = stores.pop(number, None)
            if store is not None and _few_axial(store, len(files)):
                stores[number] = store
            elif certain or len(files) >= LEAST_FRAMES or int(getattr(error, "frames", 1)) > 1:
                reasons[number] = "where its frames lie is not known, so a face cannot be looked for"
    done: Counter[int] = Counter()
    for stack in stacks(frames):
        _one_stack(stack, stores, reasons, done, certain, volumes)
    return [_result(file, stores.get(n), reasons.get(n, ""), done[n]) for n, file in enumerate(files)]


def _few_axial(store: Store, files: int) -> bool:
    """Whether an object without positions is one of a few slices that Image Type calls axial (PS3.3 C.8.2.1.1.1).

    Seen one by one such slices show no face, and too few of them make none even when they are put together.
    """
    kinds = [str(kind).upper() for kind in store.header.get("ImageType") or []]
    return files < LEAST_FRAMES and store.frames == 1 and kinds[2:3] == ["AXIAL"]


def _one_stack(
    stack: Stack,
    stores: dict[int, Store],
    reasons: dict[int, str],
    done: Counter[int],
    certain: bool,
    volumes: list[Volume] | None,
) -> None:
    reason = "" if faceless(stack) else too_little(stack)
    try:
        if reason or faceless(stack):
            if reason and certain:
                raise PixelError(reason)
            return
        modality = str(stores[stack.chosen[0].source].header.get("Modality", ""))
        grid = coarse(stack, lambda f: stores[f.source].frame(f.number))
        decided = plan(grid, modality, certain)
        if volumes is not None:
            volumes.append(Volume(stack, grid, decided))
        if decided.reason and not decided.absent and not _blurred(stack, stores[stack.chosen[0].source]):
            raise PixelError(decided.reason)
        if decided.removed is not None:
            _erase(stack, grid, decided.removed, stores, done)
    except PixelError as error:
        for source in {frame.source for frame in stack.frames}:
            reasons[source] = str(error)


def _blurred(stack: Stack, store: Store) -> bool:
    """Whether a stack is echo planar with cells too coarse for features: then what can go of the face goes, and that is enough.

    Functional and diffusion series of this kind are shared undefaced everywhere, and their scalp is suppressed.
    """
    header, (down, across) = store.header, stack.frames[0].spacing
    sequence = header.get("ScanningSequence") or ""
    kinds = [sequence] if isinstance(sequence, str) else list(sequence)
    planar = "EP" in kinds or header.get("EchoPlanarPulseSequence") == "YES"
    planar |= "GR" in kinds and int(header.get("EchoTrainLength") or 0) >= _TRAIN  # as one vendor writes it
    gap = float(np.median(np.diff(stack.depths))) if len(stack.depths) > 1 else 0.0
    return planar and header.get("Modality") == "MR" and min(down, across) >= _COARSE and gap >= _COARSE


def faceless(stack: Stack) -> bool:
    """Whether a stack is too small to show a face: a small field of view, or a thin slab that is not a profile."""
    height, width, thickness = stack.extents
    if sorted((height, width, thickness))[1] < _SMALL or min(height, width) < _SMALL / 2:
        return True
    return not stack.sagittal and (thickness < _THIN or len(stack.depths) == 1)


def too_little(stack: Stack) -> str:
    """Why a stack cannot be registered although it may show a face; "" when it can."""
    if len(stack.depths) < LEAST_FRAMES:
        return f"it has {len(stack.depths)} slices of a head, too few to find its face ({LEAST_FRAMES} are needed)"
    if float(np.diff(stack.depths).max()) > _GAP:
        return "slices are missing, so its face cannot be found"
    return ""


def _erase(stack: Stack, grid: Grid, removed: Array, stores: dict[int, Store], done: Counter[int]) -> None:
    by_source: dict[int, list[tuple[int, Array]]] = {}
    geometry: dict[tuple[Any, ...], Array] = {}
    for frame in stack.frames:
        place = (frame.position, frame.orientation)
        if place not in geometry:
            geometry = {place: on_frame(removed, grid, frame)}  # frames of one position follow each other
        if geometry[place].any():
            by_source.setdefault(frame.source, []).append((frame.number, geometry[place]))
    slopes = {(f.source, f.number): (f.slope, f.intercept) for f in stack.frames}
    for source, changes in by_source.items():
        done[source] += stores[source].erase(changes, {i: slopes[source, i] for i, _ in changes})


def _result(file: FaceFile, store: Store | None, reason: str, changed: int) -> FaceResult:
    if store is not None:
        store.close()
    if reason:
        return FaceResult(file.path, "quarantined", reason)
    return FaceResult(file.path, "ok", "", changed, store.facts if store is not None else None)


def deface_alone(outcome: Outcome) -> None:
    """Deface an object that is a series of its own; the outcome is changed in place."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object.dcm"
        path.write_bytes(outcome.output or b"")
        result = deface([FaceFile(path, outcome.face)])[0]
        if result.status != "ok":
            outcome.status, outcome.reason, outcome.parts = result.status, result.reason, None
            return
        if result.changed:
            outcome.parts = [path.read_bytes()]
    outcome.facts.update(result.facts or {})
    outcome.actions += actions(result)


def actions(result: FaceResult) -> list[Action]:
    """What the report says of a file whose picture was changed."""
    return [Action("7FE00010", "PixelData", "C", f"{' '.join(OPTIONS['faces'])}")] if result.changed else []
