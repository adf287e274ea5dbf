"""An RT Structure Set's contours → class indices on the planes of the volume it was drawn on.

A voxel belongs to a structure when its centre lies inside an odd number of the structure's contours on that plane, so that
a hole drawn as an inner contour stays a hole (PS3.3 A.19, C.8.8.6). Only closed planar contours on planes of the series
are understood; anything else is an error about this study, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import LabelError
from trainer.geometry import Plane, Stack

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def read_contours(path: Path, where: Stack, frame_of_reference: str, classes: Sequence[str]) -> np.ndarray:
    """Class index of every voxel: uint8 [slices, H, W] on the planes of `where`; classes[0] is the background.

    Structures are matched by ROI Name; a plane without a contour holds background. Errors: LabelError in one sentence.
    """
    ds = _read(path)
    name = str(ds.SOPInstanceUID)
    rois = _rois(ds, name, frame_of_reference, classes)
    known = {plane.sop_uid for plane in where.planes}
    out = np.zeros((len(where.planes), *where.planes[0].shape), np.uint8)
    taken = np.zeros(out.shape, bool)
    for item in ds.get("ROIContourSequence") or []:
        number = int(item.ReferencedROINumber)
        if number not in rois:
            raise LabelError(f"structure set {name} has contours of a structure it does not name; export it again")
        mask = _structure(item, where, known, name)
        if (mask & taken).any():
            raise LabelError(f"structure set {name} has overlapping structures; a voxel can have one class only")
        out[mask] = rois[number]
        taken |= mask
    return out


def _read(path: Path) -> Any:
    import pydicom

    try:
        ds = pydicom.dcmread(path)
    except Exception as err:
        raise LabelError(f"{path.name} is not a readable DICOM structure set; export it again") from err
    if str(ds.get("SOPClassUID", "")) != RTSTRUCT:
        raise LabelError(f"{path.name} is not an RT Structure Set; give one")
    return ds


def _rois(ds: Any, name: str, frame_of_reference: str, classes: Sequence[str]) -> dict[int, int]:
    """{ROI number: class index}."""
    index = {known.casefold(): i for i, known in enumerate(classes)}
    out: dict[int, int] = {}
    for roi in ds.get("StructureSetROISequence") or []:
        if frame_of_reference and str(roi.get("ReferencedFrameOfReferenceUID", "")) != frame_of_reference:
            raise LabelError(f"structure set {name} lies in another frame of reference than its images; register it")
        label = str(roi.get("ROIName", "")).strip().casefold()
        if not index.get(label):
            raise LabelError(
                f"structure {int(roi.ROINumber)} of structure set {name} is none of the classes {', '.join(classes[1:])}"
            )
        out[int(roi.ROINumber)] = index[label]
    if not out:
        raise LabelError(f"structure set {name} names no structure; export it again")
    if len(set(out.values())) != len(out):
        raise LabelError(f"structure set {name} has two structures of one class; merge them first")
    return out


def _structure(item: Any, where: Stack, known: set[str], name: str) -> np.ndarray:
    """One structure as a mask [slices, H, W]."""
    mask = np.zeros((len(where.planes), *where.planes[0].shape), bool)
    distances = np.array([plane.distance for plane in where.planes])
    for contour in item.get("ContourSequence") or []:
        if str(contour.get("ContourGeometricType", "")) not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            raise LabelError(f"structure set {name} holds a contour that is not closed and planar; export it again")
        absent = {str(ref.ReferencedSOPInstanceUID) for ref in contour.get("ContourImageSequence") or []} - known
        if absent:
            raise LabelError(f"structure set {name} refers to images that this node lacks; send the whole series")
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        away = np.abs((points @ where.planes[0].normal)[:, None] - distances[None])
        at = int(away.mean(0).argmin())
        if away[:, at].max() > 0.25 * where.step:
            raise LabelError(f"structure set {name} has a contour between the planes of its images; resample it first")
        mask[at] ^= _inside(_pixels(points, where.planes[at]), where.planes[at].shape)
    return mask


def _pixels(points: np.ndarray, plane: Plane) -> np.ndarray:
    """Points in LPS mm as (row, column) of a plane, counted from the first voxel's centre."""
    offset = points - np.array(plane.position)
    along = np.array([plane.orientation[3:], plane.orientation[:3]])
    return np.asarray(offset @ along.T / np.array(plane.spacing))


def _inside(corners: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Even-odd rule: which pixel centres (row, column) lie inside a polygon with these corners."""
    out = np.zeros(shape, bool)
    nexts = np.roll(corners, -1, 0)
    columns = np.arange(shape[1])
    for row in range(shape[0]):
        crosses = (corners[:, 0] > row) != (nexts[:, 0] > row)
        a, b = corners[crosses], nexts[crosses]
        at = a[:, 1] + (row - a[:, 0]) / (b[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
        out[row] = (columns[:, None] < at[None]).sum(1) % 2 == 1
    return out
