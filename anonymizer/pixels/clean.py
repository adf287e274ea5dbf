"""Clean Pixel Data Option (PS3.15 E.3.1): finds text burned into the pixels, covers it, and says what was done.

Every image on which text is likely (secondary captures, ultrasound, radiographs, angiograms, photographs, screen saves) is
looked at, and any other whose Burned In Annotation is not known to be NO; the attribute alone is never believed to mean "clean".
Harmless marks (side, view, scale) are read and spared. Pictures without text stay untouched bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from anonymizer.errors import PixelError
from anonymizer.pixels.benign import can_identify, is_readable
from anonymizer.pixels.frames import calmed, carries, evened, picture, projections, standing_out
from anonymizer.pixels.ocr import TextRegion, find_text, read_region
from anonymizer.pixels.redact import frame_count, frames, redact, with_full_chroma

# Modalities whose pictures regularly carry burned-in text; slices computed by CT, MR and PET scanners do not.
TEXT_LIKELY = frozenset(
    {
        "SC",
        "OT",
        "US",
        "IVUS",
        "CR",
        "DX",
        "IO",
        "PX",
        "MG",
        "XA",
        "RF",
        "ES",
        "XC",
        "OP",
        "GM",
        "SM",
        "HC",
        "HD",
        "ECG",
    }
    | {"DOC", "LS", "TG", "BI", "EC", "DM", "DG"}
)
PASSES = 6
MOST_ALONE = 8  # frames that stand out are looked at one by one, no more of them than this
# Objects whose "pixels" are numbers, not a picture a person looks at.
_NO_PICTURE = frozenset(["SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "KO", "SR", "REG", "RWV"])


@dataclass(frozen=True)
class PixelRegion:
    """A covered rectangle: frames are counted from 1, rows and columns from 0, ends excluded."""

    frames: tuple[int, ...]
    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class PixelOutcome:
    """What was done to one object's pixels.

    ``status``: clean (looked, found nothing), redacted (covered ``regions``), skipped (no text expected) or failed
    (``reason``). ``spared`` counts the harmless marks that were left.
    """

    status: Literal["clean", "redacted", "skipped", "failed"]
    regions: tuple[PixelRegion, ...] = field(default=())
    spared: int = 0
    reason: str = ""


def needs_look(ds: Dataset) -> bool:
    """Whether text may be burned into this object's pixels."""
    if "PixelData" not in ds or str(ds.get("Modality", "")) in _NO_PICTURE or int(ds.get("BitsAllocated") or 0) == 1:
        return False
    kinds = {str(value).upper() for value in (ds.get("ImageType") or [])}
    if kinds & {"SCREEN SAVE", "SECONDARY", "DERIVED_SCREEN"} or str(ds.get("ConversionType", "")):
        return True
    if str(ds.get("Modality", "")).upper() in TEXT_LIKELY:
        return True
    return str(ds.get("BurnedInAnnotation", "")).upper() == "YES"


def clean_pixels(ds: Dataset, *, force: bool = False, each_frame: bool = False) -> PixelOutcome:
    """Cover burned-in text of ``ds`` (with file_meta) in place.

    ``force`` looks even where no text is expected; ``each_frame`` looks at every frame by itself, which takes its time, where
    otherwise projections over the frames and those that stand out are looked at. A picture that cannot be decoded or encoded
    again, or in which text is found without end, fails with the reason: the caller must then withhold the object.
    """
    if "PixelData" not in ds or not (force or needs_look(ds)):
        return PixelOutcome("skipped")
    try:
        with_full_chroma(ds)
        found, spared = _search_each(ds, range(frame_count(ds))) if each_frame else _search(ds)
        if not needs_look(ds):  # only its extreme values raised the suspicion: letters have them, anatomy hardly
            sure = [(region, where) for region, where in found if is_readable(region) or _extreme(ds, region, where)]
            found, spared = sure, spared + len(found) - len(sure)
        if not found:
            return PixelOutcome("clean", spared=spared)
        by_frame: dict[int, list[TextRegion]] = {}
        regions = []
        for region, where in found:
            for index in where:
                by_frame.setdefault(index, []).append(region)
            regions.append(_bounds(region, tuple(index + 1 for index in where)))
        redact(ds, by_frame)
    except PixelError as error:
        return PixelOutcome("failed", reason=str(error))
    return PixelOutcome("redacted", tuple(regions), spared)


def _extreme(ds: Dataset, region: TextRegion, where: list[int]) -> bool:
    """Whether on some frame 4 % of the region's cells, as of letters' strokes, lie at either end of the frame's values."""
    wanted = set(where)
    for index, frame in enumerate(frames(ds)):
        if index not in wanted:
            continue
        low, high = float(frame.min()), float(frame.max())
        crop = np.asarray(frame[region.rows, region.columns][region.mask], dtype=np.float64)
        end = 0.03 * (high - low)
        if max(float((crop >= high - end).mean()), float((crop <= low + end).mean())) >= 0.04:
            return True
    return False


def _search(ds: Dataset) -> tuple[list[tuple[TextRegion, list[int]]], int]:
    """Identifying regions with the frame indices that carry them, and how many other marks were spared."""
    count = frame_count(ds)
    views = (next(frames(ds)),) if count == 1 else projections(frames(ds))
    found: list[tuple[TextRegion, list[int]]] = []
    spared = 0
    for view in views:
        identifying, harmless = _search_view(_shown(ds, view))
        spared += harmless
        earlier = [region for region, _ in found]
        for region in identifying:
            where = [0] if count == 1 else _carriers(ds, region, view)
            if any(_over(region, one) for one in earlier):
                where = _readers(ds, region, where)
            if where:
                found.append((region, where))
    if count > 2:
        alone, more = _search_each(ds, standing_out(frames(ds), *views)[:MOST_ALONE])
        found, spared = found + alone, spared + more
    return found, spared


def _search_each(ds: Dataset, wanted: Iterable[int]) -> tuple[list[tuple[TextRegion, list[int]]], int]:
    """As `_search`, for the ``wanted`` frames one by one."""
    chosen = set(wanted)
    found: list[tuple[TextRegion, list[int]]] = []
    spared = 0
    for index, frame in enumerate(frames(ds)) if chosen else ():
        if index in chosen:
            identifying, harmless = _search_view(_shown(ds, frame))
            found += [(region, [index]) for region in identifying]
            spared += harmless
    return found, spared


def still_readable(ds: Dataset, *, each_frame: bool = False) -> bool:
    """Whether words that may identify can still be read in the pixels, after they were covered."""
    every = each_frame or frame_count(ds) == 1
    views: Iterable[NDArray[np.generic]] = frames(ds) if every else projections(frames(ds))
    shown = (calmed(_shown(ds, view)) for view in views)
    return any(is_readable(region) for picture in shown for region in find_text(picture))


def _over(region: TextRegion, other: TextRegion) -> bool:
    """Whether most of a region lies in another's rectangle."""
    rows = min(region.rows.stop, other.rows.stop) - max(region.rows.start, other.rows.start)
    columns = min(region.columns.stop, other.columns.stop) - max(region.columns.start, other.columns.start)
    return rows > 0 and columns > 0 and rows * columns > 0.5 * region.mask.size


def _readers(ds: Dataset, region: TextRegion, where: list[int]) -> list[int]:
    """The frames among ``where`` in which the region itself can be read.

    Bright text on one frame leaves a trace of itself in the minimum over all: the trace is on no frame.
    """
    wanted = set(where)
    own = ((i, _shown(ds, frame)) for i, frame in enumerate(frames(ds)) if i in wanted)
    return [i for i, shown in own if is_readable(read_region(shown, region))]


def _search_view(shown: NDArray[np.uint8]) -> tuple[list[TextRegion], int]:
    """Look, paint out what was found, and look again, until nothing is found: a half-covered word shows its other half.

    A find that lies in what is painted already is the cover itself. From the third look on covers are made larger.
    """
    found: list[TextRegion] = []
    shown = calmed(shown).copy()
    painted = np.zeros(shown.shape[:2], dtype=bool)
    for turn in range(PASSES):
        seen = [*find_text(shown), *find_text(evened(shown))]
        fresh = [r for r in seen if can_identify(r) and painted[r.rows, r.columns][r.mask].mean() < 0.9]
        if not fresh:
            return found, len(seen)
        for region in fresh:
            cover = region if turn < 2 else _larger(region, 4 * turn, painted.shape)
            found.append(cover)
            _paint_out(shown, cover)
            painted[cover.rows, cover.columns] |= cover.mask
    raise PixelError(f"Text is still found in the pixels after {PASSES} passes.")


def _larger(region: TextRegion, by: int, shape: tuple[int, ...]) -> TextRegion:
    rows = slice(max(0, region.rows.start - by), min(shape[0], region.rows.stop + by))
    columns = slice(max(0, region.columns.start - by), min(shape[1], region.columns.stop + by))
    mask = np.ones((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
    return replace(region, rows=rows, columns=columns, mask=mask)


def _paint_out(shown: NDArray[np.uint8], region: TextRegion) -> None:
    """Fill the region with the colour around it, so that the cover itself is not taken for text."""
    rows = slice(max(0, region.rows.start - 3), region.rows.stop + 3)
    columns = slice(max(0, region.columns.start - 3), region.columns.stop + 3)
    edge = np.concatenate(
        [
            shown[rows, columns][[0, -1]].reshape(-1, *shown.shape[2:]),
            shown[rows, columns][:, [0, -1]].reshape(-1, *shown.shape[2:]),
        ]
    )
    shown[region.rows, region.columns][region.mask] = np.median(edge, axis=0).astype(np.uint8)


def _shown(ds: Dataset, frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The picture a person would see: palette colours looked up, depth reduced."""
    if str(ds.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        return picture(apply_color_lut(np.asarray(frame), ds))
    return picture(frame)


def _carriers(ds: Dataset, region: TextRegion, view: NDArray[np.generic]) -> list[int]:
    crop = view[region.rows, region.columns]
    where = [i for i, f in enumerate(frames(ds)) if carries(f[region.rows, region.columns], crop, region.mask)]
    every = list(range(frame_count(ds)))
    return where or _readers(ds, region, every) or every


def _bounds(region: TextRegion, numbers: tuple[int, ...]) -> PixelRegion:
    return PixelRegion(numbers, region.rows.start, region.columns.start, region.rows.stop, region.columns.stop)
