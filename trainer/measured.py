"""What a study's images measure: slices, spacing, intensities and landmarks of its histogram, kept beside the tensor cache.

A data contract and a project's site statistics go by these. Each study is decoded once and remembered by its files' digests;
of a withdrawn patient nothing is kept. Numpy and pydicom only: nobody waits for torch to learn whether a study fits.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dicom_node.records import CohortEntry, InstanceRecord
from trainer.errors import CacheError, PixelError
from trainer.geometry import stack
from trainer.harmonise.landmarks import foreground, landmarks_of
from trainer.pixels.read import read_frames
from trainer.volumes import planes_of, read_header, read_volume

Grain = Literal["image", "volume"]
"""What one sample of a task is made of: each image's middle frame, or the series as a whole."""
_VERSION = 1
_NOT_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.66",  # registrations, fiducials, segmentations
    "1.2.840.10008.5.1.4.1.1.88",  # structured reports
    "1.2.840.10008.5.1.4.1.1.11",  # presentation states
    "1.2.840.10008.5.1.4.1.1.104",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481",  # radiotherapy objects
)


@dataclass(frozen=True)
class StudyFacts:
    """A study's measures, each for its worst series.

    slices: frames of the smallest image series. spacing_mm: (finest, coarsest) distance of pixels in plane; slice_mm: the largest
    distance between slices; None where the headers do not tell. intensity: the 1st percentile of the darkest and the 99th of the
    brightest image, in modality units. landmarks: mean over the study's samples of `landmarks_of` all values, and of those above
    the mean, each scaled to 0 … 1. fault: why the pixels cannot be used, "" when they can.
    """

    slices: int
    spacing_mm: tuple[float, float] | None = None
    slice_mm: float | None = None
    intensity: tuple[float, float] | None = None
    landmarks: tuple[float, ...] = ()
    landmarks_above_mean: tuple[float, ...] = ()
    fault: str = ""


def is_image(record: InstanceRecord) -> bool:
    """Whether an instance's SOP class holds pixels to look at (not a segmentation, report, state, document or plan)."""
    return not any(record.sop_class == root or record.sop_class.startswith(root + ".") for root in _NOT_IMAGES)


def image_series(entry: CohortEntry) -> list[list[InstanceRecord]]:
    """The study's image instances by series, in the catalogue's order."""
    series: dict[str, list[InstanceRecord]] = {}
    for record in filter(is_image, entry.instances):
        series.setdefault(record.series_uid, []).append(record)
    return list(series.values())


def measure(dataset: Path, entry: CohortEntry, grain: Grain) -> StudyFacts:
    """Read and measure one study. What cannot be read becomes `fault`."""
    series = image_series(entry)
    slices = min((sum(record.frames for record in one) for one in series), default=0)
    if not series:
        return StudyFacts(0, fault="the study holds no image")
    try:
        spacings = [mm for one in series for record in one if (mm := _spacing(read_header(dataset / record.path)))]
        steps = [step for one in series if (step := _step(dataset, one)) is not None]
        samples = [values for one in series for values in _samples(dataset, one, grain)]
    except PixelError as error:
        return StudyFacts(slices, fault=str(error))
    ends = [np.percentile(values, (1, 99)) for values in samples]
    whole = np.stack([_scaled(values) for values in samples]).mean(axis=0)
    above = np.stack([_scaled(foreground(values)) for values in samples]).mean(axis=0)
    return StudyFacts(
        slices,
        (min(min(mm) for mm in spacings), max(max(mm) for mm in spacings)) if spacings else None,
        max(steps, default=None),
        (float(min(low for low, _ in ends)), float(max(high for _, high in ends))),
        tuple(np.round(whole, 6).tolist()),
        tuple(np.round(above, 6).tolist()),
    )


def _scaled(values: np.ndarray) -> np.ndarray:
    """An image's landmarks with the first at 0 and the last at 1: one without contrast has evenly spread ones."""
    found = landmarks_of(values)
    width = found[-1] - found[0]
    return (found - found[0]) / width if width > 0 else np.linspace(0.0, 1.0, len(found))


def _samples(dataset: Path, series: list[InstanceRecord], grain: Grain) -> Iterable[np.ndarray]:
    if grain == "volume":
        return [read_volume([dataset / record.path for record in series]).values]
    frames = (read_frames(dataset / r.path, r.sop_uid, r.pixel_offset, r.pixel_length).values for r in series)
    return [values[len(values) // 2] for values in frames]


def _spacing(ds: Any) -> tuple[float, float] | None:
    """(row, column) mm by plane geometry, or what projection radiographs say instead (PS3.3 10.7, C.8.7.1)."""
    try:
        return planes_of(ds)[0].spacing
    except PixelError:
        pass
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if found := ds.get(keyword):
            return float(found[0]), float(found[1])
    return None


def _step(dataset: Path, series: list[InstanceRecord]) -> float | None:
    """mm between neighbouring slices of a series; None for a single image and for images without a place."""
    if sum(record.frames for record in series) < 2:
        return None
    try:
        return stack([plane for record in series for plane in planes_of(read_header(dataset / record.path))]).step
    except PixelError:
        return None


class MeasuredStudies:
    """The facts of studies in `facts.db` of a cache folder. Errors: CacheError when it cannot be written."""

    def __init__(self, folder: Path, dataset: Path, grain: Grain) -> None:
        _make(folder)
        self._file, self._dataset, self._grain = folder / "facts.db", dataset, grain
        with self._opened() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS facts(study_uid TEXT, grain TEXT, source TEXT NOT NULL, facts TEXT NOT NULL,"
                " PRIMARY KEY(study_uid, grain)) WITHOUT ROWID"
            )

    def of(self, entry: CohortEntry) -> StudyFacts:
        """The study's facts: remembered, or measured now."""
        source, uid = _source(entry), entry.study.study_uid
        with self._opened() as db:
            row = db.execute(
                "SELECT facts FROM facts WHERE study_uid = ? AND grain = ? AND source = ?", (uid, self._grain, source)
            ).fetchone()
            if row is not None:
                return _facts(json.loads(row[0]))
            found = measure(self._dataset, entry, self._grain)
            told = json.dumps(asdict(found))
            db.execute("INSERT OR REPLACE INTO facts VALUES(?, ?, ?, ?)", (uid, self._grain, source, told))
        return found

    def forget(self, keys: set[str]) -> int:
        """Drop what is kept of these studies (an opt-out); returns of how many."""
        with self._opened() as db:
            db.execute("PRAGMA secure_delete = ON")  # overwrites what it deletes
            return sum(db.execute("DELETE FROM facts WHERE study_uid = ?", (uid,)).rowcount for uid in keys)

    def _opened(self) -> closing[sqlite3.Connection]:
        try:
            return closing(sqlite3.connect(self._file, timeout=30, isolation_level=None))
        except sqlite3.Error as error:
            raise CacheError(
                f"the measures of studies cannot be kept ({error}); make the cache folder writable"
            ) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CacheError(
            f"the measures of studies cannot be kept ({error.strerror}); make the cache folder writable"
        ) from error


def _source(entry: CohortEntry) -> str:
    parts = "".join(sorted(record.sha256 for record in entry.instances))
    return hashlib.sha256(f"{_VERSION} {parts}".encode()).hexdigest()


def _facts(values: dict[str, Any]) -> StudyFacts:
    tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return StudyFacts(**tuples)
