"""A series of DICOM instances (single-frame or enhanced multi-frame) → one ordered volume in modality units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import PixelError
from trainer.geometry import Plane, Stack, stack
from trainer.pixels.read import read_frames


@dataclass(frozen=True)
class Volume:
    """values float32 [slices, H, W]; `stack` names the instance and place of each slice; frame of reference UID."""

    values: np.ndarray
    stack: Stack
    frame_of_reference: str


def read_volume(paths: Sequence[Path]) -> Volume:
    """Read the instances of one series. Errors: PixelError when they do not form one volume or cannot be decoded."""
    planes: list[Plane] = []
    pixels: dict[tuple[str, int], np.ndarray] = {}
    references: set[str] = set()
    for path in paths:
        ds = read_header(path)
        uid = str(ds.SOPInstanceUID)
        references.add(str(ds.get("FrameOfReferenceUID", "")))
        values = read_frames(path, uid).values
        found = planes_of(ds)
        if len(found) != len(values):
            raise PixelError(f"instance {uid} describes {len(found)} frames and holds {len(values)}; send it again")
        planes.extend(found)
        pixels |= {(uid, plane.frame): values[plane.frame - 1] for plane in found}
    if len(references) > 1:
        raise PixelError("the series mixes frames of reference; split it into one series for each")
    ordered = stack(planes)
    values = np.stack([pixels[plane.sop_uid, plane.frame] for plane in ordered.planes])
    return Volume(values, ordered, next(iter(references), ""))


def read_header(path: Path, only: list[str] | None = None) -> Any:
    """The data set without pixels, or `only` these keywords of it.

    Errors: PixelError when the file is not DICOM or not readable.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=only)
    except (InvalidDicomError, OSError, ValueError, EOFError, RecursionError) as err:
        raise PixelError(f"{path.name} is not a readable DICOM file; give DICOM Part 10 files") from err


def planes_of(ds: Any) -> list[Plane]:
    """The planes of one instance. Errors: PixelError when position, orientation or spacing is absent."""
    frames = int(ds.get("NumberOfFrames") or 1)
    if frames == 1 and "ImagePositionPatient" in ds:
        return [_plane(ds, ds, ds, ds, 1)]
    shared = (ds.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != frames:
        raise PixelError(f"instance {ds.SOPInstanceUID} does not say where its image lies; exclude it from the cohort")
    out = []
    for index, group in enumerate(groups):
        parts = []
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            found = group.get(name) or shared.get(name)
            if not found:
                raise PixelError(f"instance {ds.SOPInstanceUID} lacks {name} for frame {index + 1}; exclude it")
            parts.append(found[0])
        out.append(_plane(ds, parts[0], parts[1], parts[2], index + 1))
    return out


def _plane(ds: Any, position: Any, orientation: Any, measures: Any, frame: int) -> Plane:
    try:
        return Plane(
            sop_uid=str(ds.SOPInstanceUID),
            frame=frame,
            position=_floats(position.ImagePositionPatient, 3),
            orientation=_floats(orientation.ImageOrientationPatient, 6),
            spacing=_floats(measures.PixelSpacing, 2),
            shape=(int(ds.Rows), int(ds.Columns)),
            number=int(ds.get("InstanceNumber") or 0) if frame == 1 else frame,
        )
    except (AttributeError, TypeError, ValueError) as err:
        raise PixelError(
            f"instance {ds.SOPInstanceUID} does not say where its image lies; exclude it from the cohort"
        ) from err


def _floats(values: Any, count: int) -> Any:
    out = tuple(float(v) for v in values)
    if len(out) != count or not np.isfinite(out).all():
        raise ValueError(count)
    return out
