"""A DICOM Segmentation (BINARY, FRACTIONAL or LABELMAP) → class indices on the planes of the volume it refers to.

Segments are matched to the project's classes by Segment Label or by coded property type, and anything that cannot be
matched or placed is an error about this study, never a guess (PS3.3 A.51, A.78, C.8.20.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from trainer.errors import LabelError
from trainer.geometry import Stack

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"


def read_segmentation(path: Path, where: Stack, frame_of_reference: str, classes: Sequence[str]) -> np.ndarray:
    """Class index of every voxel: uint8 [slices, H, W] on the planes of `where`; classes[0] is the background.

    A slice that the segmentation does not store holds background. Errors: LabelError in one sentence.
    """
    seg = _read(path)
    name = str(seg.SOPInstanceUID)
    if frame_of_reference and str(seg.get("FrameOfReferenceUID", frame_of_reference)) != frame_of_reference:
        raise LabelError(f"segmentation {name} lies in another frame of reference than its images; register it first")
    wanted = _match_segments(seg, classes)
    uids = [plane.sop_uid for plane in where.planes]
    known = {uid for _, _, uid in seg.get_source_image_uids()}
    if absent := known - set(uids):
        raise LabelError(
            f"segmentation {name} refers to {len(absent)} images that this node lacks; send the whole series"
        )
    shape = (int(seg.Rows), int(seg.Columns))
    if shape != where.planes[0].shape:
        raise LabelError(f"segmentation {name} is {shape[0]} × {shape[1]}, unlike its images; resample it first")
    _check_place(seg, where, name)
    stored = _pixels(seg, uids, sorted(wanted), name)
    out = np.zeros((len(uids), *shape), np.uint8)
    taken = np.zeros(out.shape, bool)
    for position, number in enumerate(sorted(wanted)):
        mask = stored[..., position] >= 0.5
        if (mask & taken).any():
            raise LabelError(f"segmentation {name} has overlapping segments; a voxel can have one class only")
        out[mask] = wanted[number]
        taken |= mask
    return out


def _read(path: Path) -> Any:
    import highdicom as hd

    try:
        return hd.seg.segread(path)
    except Exception as err:
        raise LabelError(f"{path.name} is not a readable DICOM segmentation; export it again") from err


def _pixels(seg: Any, uids: list[str], numbers: list[int], name: str) -> np.ndarray:
    """float32 [slices, H, W, segments]; get_volume would span the stored frames only and so misalign sites."""
    try:
        values = seg.get_pixels_by_source_instance(
            uids,
            segment_numbers=numbers,
            rescale_fractional=True,
            assert_missing_frames_are_empty=True,
            ignore_spatial_locations=True,  # `_check_place` has compared them; few writers declare them preserved
        )
    except (RuntimeError, ValueError, KeyError) as err:
        reason = str(err).split(". ")[0][:160]
        raise LabelError(f"segmentation {name} cannot be laid on its images ({reason}); export it again") from err
    return np.asarray(values, np.float32)


def _check_place(seg: Any, where: Stack, name: str) -> None:
    """Every frame must lie on the plane of the image it was derived from."""
    planes = {plane.sop_uid: plane for plane in where.planes}
    shared = (seg.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in seg.get("PerFrameFunctionalGroupsSequence") or []:
        place = _group(frame, shared, "PlanePositionSequence")
        turned = _group(frame, shared, "PlaneOrientationSequence")
        sources = [
            planes[str(image.ReferencedSOPInstanceUID)]
            for step in frame.get("DerivationImageSequence") or []
            for image in step.get("SourceImageSequence") or []
            if str(image.ReferencedSOPInstanceUID) in planes
        ]
        if place is None or turned is None or len(sources) != 1:
            continue  # a label of a whole multi-frame image, which highdicom indexes by frame number
        at, cosines = np.array(place.ImagePositionPatient, float), np.array(turned.ImageOrientationPatient, float)
        off = np.abs(at - np.array(sources[0].position)).max()
        if off > 0.1 * min(sources[0].spacing) or not np.allclose(cosines, sources[0].orientation, atol=1e-3):
            raise LabelError(f"segmentation {name} lies elsewhere than the images it refers to; resample it first")


def _group(frame: Any, shared: Any, name: str) -> Any:
    found = frame.get(name) or shared.get(name)
    return found[0] if found else None


def _match_segments(seg: Any, classes: Sequence[str]) -> dict[int, int]:
    """{segment number: class index}; a class without a segment is simply absent from this study."""
    index = {name.casefold(): i for i, name in enumerate(classes)}
    out: dict[int, int] = {}
    for number in seg.segment_numbers:
        description = seg.get_segment_description(number)
        label = str(description.segment_label)
        kind = description.segmented_property_type
        names = (label, str(kind.meaning), f"{kind.scheme_designator}:{kind.value}")
        found = {index[n.casefold()] for n in names if n.casefold() in index}
        if index.get(label.casefold()) is not None:
            found = {index[label.casefold()]}
        if len(found) != 1:
            known = ", ".join(classes[1:])
            raise LabelError(f"segment {number} of segmentation {seg.SOPInstanceUID} is none of the classes {known}")
        out[int(number)] = found.pop()
    if len(set(out.values())) != len(out):
        raise LabelError(f"segmentation {seg.SOPInstanceUID} has two segments of one class; merge them first")
    return out
