"""Model output on a series → a DICOM Segmentation object, written with highdicom.

FRACTIONAL/PROBABILITY is the record, a thresholded BINARY is what every viewer shows, LABELMAP is small and exact.
The SOP Instance UID follows from series, model and type, so that the same result is never stored twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import SpecError
from trainer.geometry import Stack

TYPES = ("binary", "fractional", "labelmap")
_RLE = "1.2.840.10008.1.2.5"
_NATIVE = "1.2.840.10008.1.2.1"
_ANATOMY = ("123037004", "SCT", "Anatomical Structure")
# Coded concepts (PS3.16 CID 7166 and others) for class names that projects use often; others are written with the
# general code for tissue, their name kept in Segment Label.
_CODES = {
    "hippocampus": ("5366008", "SCT", "Hippocampus"),
    "hippocampus anterior": ("5366008", "SCT", "Hippocampus"),
    "hippocampus posterior": ("5366008", "SCT", "Hippocampus"),
    "liver": ("10200004", "SCT", "Liver"),
    "lung": ("39607008", "SCT", "Lung"),
    "spleen": ("78961009", "SCT", "Spleen"),
    "kidney": ("64033007", "SCT", "Kidney"),
}
_TISSUE = ("85756007", "SCT", "Tissue")


@dataclass(frozen=True)
class Algorithm:
    """Which model made it: name, version and the weights' SHA-256."""

    name: str
    version: str
    sha256: str


def write_segmentation(
    folder: Path,
    sources: Sequence[Any],
    where: Stack,
    probabilities: np.ndarray,
    classes: Sequence[str],
    algorithm: Algorithm,
    kind: str = "binary",
) -> Path:
    """Write one object and return its path.

    sources: the data sets of the planes' instances (headers suffice). probabilities float32 [classes, slices, H, W], class
    0 the background. Errors: SpecError for an unknown kind or no foreground class.
    """
    import highdicom as hd

    if kind not in TYPES or len(classes) < 2:
        raise SpecError(f"a segmentation of type {kind!r} with {len(classes)} classes cannot be written; use {TYPES}")
    pixels, extra = _encode(probabilities, kind)
    ordered = _order(sources, where)
    series = str(ordered[0].SeriesInstanceUID)
    seg = hd.seg.Segmentation(
        source_images=ordered,
        pixel_array=pixels,
        segmentation_type=kind.upper(),
        segment_descriptions=_descriptions(classes, algorithm),
        series_instance_uid=derived_uid(series, algorithm.sha256, kind, "series"),
        series_number=900 + TYPES.index(kind),
        sop_instance_uid=derived_uid(series, algorithm.sha256, kind, "instance"),
        instance_number=1,
        manufacturer="fedpacs",
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=algorithm.sha256[:16],
        content_label=kind.upper(),
        **extra,
    )
    seg.SeriesDescription = f"{algorithm.name} {kind}"[:64]
    return _save(seg, folder)


def _save(seg: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seg.SOPInstanceUID}.dcm"
    seg.save_as(path, enforce_file_format=True)
    return path


def _encode(probabilities: np.ndarray, kind: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels as highdicom wants them, and the transfer syntax that it takes for them (no RLE for BINARY)."""
    if kind == "fractional":
        spread = np.empty((*probabilities.shape[1:], len(probabilities) - 1), np.float32)
        for number, one in enumerate(probabilities[1:]):
            np.clip(one, 0, 1, out=spread[..., number])
        return spread, {"fractional_type": "PROBABILITY", "transfer_syntax_uid": _RLE}
    return _likeliest(probabilities), {"transfer_syntax_uid": _RLE if kind == "labelmap" else _NATIVE}


def _likeliest(probabilities: np.ndarray) -> np.ndarray:
    """uint8 [slices, H, W]: `argmax(0)`, the first of equals, plane by plane because numpy's own is slow over the first axis."""
    chosen = np.zeros(probabilities.shape[1:], np.uint8)
    for plane, labels in enumerate(chosen):  # by planes, which stay in the processor's cache
        best = probabilities[0, plane].copy()
        for number in range(1, len(probabilities)):
            np.copyto(labels, np.uint8(number), where=probabilities[number, plane] > best)
            np.maximum(best, probabilities[number, plane], out=best)
    return chosen


def _order(sources: Sequence[Any], where: Stack) -> list[Any]:
    """The source data sets in the stack's order, mended where highdicom would stumble."""
    by_uid = {str(ds.SOPInstanceUID): ds for ds in sources}
    ordered: list[Any] = []
    for plane in where.planes:
        ds = by_uid[plane.sop_uid]
        if not ds.get("SpecificCharacterSet"):
            ds.SpecificCharacterSet = "ISO_IR 100"  # present but empty in real CTs; highdicom raises on it
        if not ordered or ds is not ordered[-1]:
            ordered.append(ds)
    return ordered


def _descriptions(classes: Sequence[str], algorithm: Algorithm) -> list[Any]:
    import highdicom as hd
    from pydicom.sr.coding import Code

    identity = hd.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=Code("123109", "DCM", "Artificial Intelligence"),
        version=algorithm.version,
        source="fedpacs",
        parameters={"weights_sha256": algorithm.sha256},
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=Code(*_ANATOMY),
            segmented_property_type=Code(*finding_code(name)),
            algorithm_type="AUTOMATIC",
            algorithm_identification=identity,
        )
        for number, name in enumerate(classes[1:], 1)
    ]


def finding_code(name: str) -> tuple[str, str, str]:
    """The coded concept (value, scheme, meaning) of a class name."""
    return _CODES.get(name.casefold(), _TISSUE)


def derived_uid(*parts: str) -> str:
    """A UUID-derived UID (PS3.5 B.2) that follows from its parts."""
    digest = bytearray(hashlib.sha256("\x00".join(parts).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # RFC 9562 version 8
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"
