"""Synthetic heads with an answer key: the mean head, bent by a known map, cut into DICOM slices of any direction.

The known map gives the truth: which voxel of a slice is brain, and which lies at the nose, the eyes, the mouth or an ear.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import compress
from pydicom.uid import UID, ExplicitVRLittleEndian
from scipy import ndimage

from anonymizer.faces.template import template

Array = NDArray[Any]
DIRECTIONS = {  # row and column directions of a slice, LPS
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
}
FEATURES = {  # boxes of the template, mm LPS: (x, y, z) from, to; ears on both sides
    "nose": ((-20, -130, -80), (20, -85, -40)),
    "eyes": ((-45, -130, -42), (45, -78, -22)),
    "mouth": ((-30, -130, -105), (30, -80, -80)),
    "ears": ((-95, -5, -70), (-66, 38, -20)),
}


@dataclass
class Head:
    """``values`` [slice, row, column] as stored; truth masks of the same shape; ``voxel`` mm (depth, row, column)."""

    values: Array
    brain: Array
    head: Array
    features: dict[str, Array]
    voxel: tuple[float, float, float]
    positions: list[list[float]]
    orientation: list[float]
    modality: str


def make(direction: str = "axial", modality: str = "MR", seed: int = 1, gap: float = 3.0, pixel: float = 2.0) -> Head:
    """A head turned by up to 10 degrees, scaled by up to 6 %, and bent by up to about 3 mm."""
    rng = np.random.default_rng(seed)
    mean = template()
    row, column = (np.array(v) for v in DIRECTIONS[direction])
    turn = _rotation(rng.uniform(-10, 10, 3) * np.pi / 180)
    row, column = turn @ row, turn @ column
    normal = np.cross(row, column)
    sizes = {"axial": (200, 256, 220), "sagittal": (190, 240, 256), "coronal": (240, 230, 210)}[direction]
    count, rows, columns = round(sizes[0] / gap), round(sizes[1] / pixel), round(sizes[2] / pixel)
    k, i, j = np.meshgrid(np.arange(count), np.arange(rows), np.arange(columns), indexing="ij")
    start = -(normal * gap * (count - 1) + column * pixel * (rows - 1) + row * pixel * (columns - 1)) / 2
    start = start + np.array([0.0, -8.0, -25.0])
    at = [start[a] + normal[a] * gap * k + column[a] * pixel * i + row[a] * pixel * j for a in range(3)]
    stretch = np.diag(rng.uniform(0.94, 1.06, 3)) @ _rotation(rng.uniform(-6, 6, 3) * np.pi / 180)
    bend = ndimage.zoom(
        rng.normal(0, 1.5, (3, 4, 4, 4)), (1, *(n / 4 for n in k.shape)), order=3, grid_mode=True, mode="nearest"
    )
    there = [sum(stretch[a, b] * at[b] for b in range(3)) + bend[a] for a in range(3)]
    cells = np.stack([(there[2 - a] - mean.grid.origin[2 - a]) / mean.grid.spacing for a in range(3)])

    def taken(volume: Array, order: int) -> Array:
        return np.asarray(ndimage.map_coordinates(volume, cells, order=order, mode="constant"))

    brain, head = (taken(mask.astype(np.uint8), 0).astype(bool) for mask in (mean.brain, mean.head))
    gray = taken(mean.grid.values, 1)
    if modality == "CT":
        near = taken((ndimage.distance_transform_edt(~mean.brain, sampling=2.0) < 7).astype(np.uint8), 0).astype(bool)
        values = np.where(head, np.where(brain, 35, np.where(near, 900, 50)), -1000) + rng.normal(0, 8, gray.shape)
        stored = np.clip(np.rint(values + 1024), 0, 4095).astype(np.uint16)
    else:
        stored = np.clip(np.abs(gray * 3 + rng.normal(0, 6, gray.shape)), 0, 4095).astype(np.uint16)
    features = {}
    for name, (low, high) in FEATURES.items():
        x = -np.abs(there[0]) if name == "ears" else there[0]
        inside = (x > low[0]) & (x < high[0])
        for axis in (1, 2):
            inside &= (there[axis] > low[axis]) & (there[axis] < high[axis])
        features[name] = inside
    positions = [(start + normal * gap * n).tolist() for n in range(count)]
    return Head(stored, brain, head, features, (gap, pixel, pixel), positions, [*row, *column], modality)


def _rotation(angles: Array) -> Array:
    made = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
        made = made @ turn
    return made


def _base(head: Head, series: str, number: int, syntax: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2" if head.modality == "CT" else "1.2.840.10008.5.1.4.1.1.4"
    ds.SOPInstanceUID = f"{series}.{number + 1}"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.77", series
    ds.Modality, ds.PatientID, ds.PatientName = head.modality, "H-1", "Kopf^Karl"
    ds.StudyDate, ds.BodyPartExamined, ds.SeriesDescription = "20200102", "HEAD", "head routine"
    ds.FrameOfReferenceUID, ds.InstanceNumber = "1.2.826.0.1.78", number + 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = head.values.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024" if head.modality == "CT" else "0"
    return ds


def _geometry(head: Head, number: int) -> dict[str, Any]:
    return {
        "ImagePositionPatient": [round(v, 5) for v in head.positions[number]],
        "ImageOrientationPatient": [round(v, 8) for v in head.orientation],
        "PixelSpacing": list(head.voxel[1:]),
    }


def write_classic(
    head: Head, folder: Path, syntax: str = ExplicitVRLittleEndian, series: str = "1.2.826.0.1.79"
) -> list[Path]:
    """One file a slice, in an order of names that is not the order in space."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, values in enumerate(head.values):
        ds = _base(head, series, number, ExplicitVRLittleEndian)
        for keyword, value in _geometry(head, number).items():
            setattr(ds, keyword, value)
        ds.PixelData = values.tobytes()
        _encode(ds, syntax)
        paths.append(folder / f"{number * 37 % 101:03d}-{number:03d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_enhanced(head: Head, path: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    """All slices in one Enhanced MR or CT object."""
    ds = _base(head, "1.2.826.0.1.80", 0, ExplicitVRLittleEndian)
    ds.SOPClassUID += ".1"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.NumberOfFrames = len(head.values)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    facts = _geometry(head, 0)
    measures.PixelSpacing, plane.ImageOrientationPatient = facts["PixelSpacing"], facts["ImageOrientationPatient"]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number in range(len(head.values)):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = _geometry(head, number)["ImagePositionPatient"]
        group.PlanePositionSequence = [place]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = head.values.tobytes()
    _encode(ds, syntax)
    ds.save_as(path, enforce_file_format=True)


def _encode(ds: Dataset, syntax: str) -> None:
    uid = UID(syntax)
    if uid.is_encapsulated:
        compress(ds, uid, generate_instance_uid=False)
    elif uid != ExplicitVRLittleEndian:
        ds.file_meta.TransferSyntaxUID = uid
