"""Every geometry and pixel check on real series: CT of a liver, MR of the hippocampus, functional MR of two vendors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from trainer.errors import LabelError, PixelError
from trainer.geometry import to_canonical
from trainer.labels.contours import RTSTRUCT, read_contours
from trainer.labels.segmentation import read_segmentation
from trainer.pixels.read import read_frames
from trainer.volumes import Volume, read_volume

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SERIES = {
    "ct-liver-seg": "ct_*.dcm",
    "mr-hippocampus-dicom/hippocampus_019/mr": "*.dcm",
    "mr-vendor-series/ge_epi_0005": "*.dcm",
    "mr-vendor-series/philips_fmri_201": "*.dcm",
}
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared test data is not beside this checkout")
every_series = pytest.mark.parametrize("name", SERIES)


def volume_of(name: str) -> tuple[list[Dataset], Volume]:
    """The data sets of the planes of one volume (of a time series the first), in order, and the volume."""
    paths = sorted((DATA / name).glob(SERIES[name]))
    whole = read_volume(paths)
    by_uid = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, paths)}
    return [by_uid[plane.sop_uid] for plane in whole.stack.planes], whole


def saved(folder: Path, sets: list[Dataset]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for n, ds in enumerate(sets):
        ds.save_as(folder / f"{n:03}.dcm", enforce_file_format=True)
        paths.append(folder / f"{n:03}.dcm")
    return paths


def changed(tmp_path: Path, name: str, change: Callable[[int, Dataset], Any]) -> Volume:
    sets, _ = volume_of(name)
    for n, ds in enumerate(sets):
        change(n, ds)
    return read_volume(saved(tmp_path / "changed", sets))


@every_series
def test_order_is_by_place_whatever_names_and_numbers_say(tmp_path: Path, name: str) -> None:
    sets, plain = volume_of(name)
    shuffled = [sets[i] for i in np.random.default_rng(0).permutation(len(sets))]
    for n, ds in enumerate(shuffled):
        ds.InstanceNumber = n + 1
    got = read_volume(saved(tmp_path / "s", shuffled))
    assert np.array_equal(got.values, plain.values)
    assert [p.sop_uid for p in got.stack.planes] == [p.sop_uid for p in plain.stack.planes]
    places = [p.distance for p in got.stack.planes]
    assert places == sorted(places)


@every_series
def test_a_repeated_slice_is_kept_once_and_reported(tmp_path: Path, name: str) -> None:
    sets, plain = volume_of(name)
    extra = copy.deepcopy(sets[1])
    extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = str(extra.SOPInstanceUID) + ".9"
    extra.InstanceNumber = 10_000
    got = read_volume(saved(tmp_path / "s", [*sets, extra]))
    assert np.array_equal(got.values, plain.values) and any("1 planes lie where another" in i for i in got.stack.issues)


@pytest.mark.parametrize("name", [name for name in SERIES if "ct-liver" not in name])
def test_a_missing_slice_is_reported(tmp_path: Path, name: str) -> None:
    sets, plain = volume_of(name)
    assert not any("missing" in issue for issue in plain.stack.issues) or name.endswith("philips_fmri_201")
    before = sum(int(i.split()[0]) for i in plain.stack.issues if "missing" in i)
    places = np.diff([p.distance for p in plain.stack.planes])
    gap = next(k for k in range(1, len(places)) if places[k] < 1.2 * plain.stack.step > places[k - 1])
    got = read_volume(saved(tmp_path / "s", sets[:gap] + sets[gap + 1 :]))
    assert f"{before + 1} slices are missing" in got.stack.issues


@every_series
def test_gantry_tilt_is_reported_and_every_voxel_keeps_its_place(tmp_path: Path, name: str) -> None:
    def tilt(n: int, ds: Dataset) -> None:
        along = np.array(ds.ImageOrientationPatient[3:], float)
        ds.ImagePositionPatient = list(np.array(ds.ImagePositionPatient, float) + along * 3.0 * n)

    got = changed(tmp_path, name, tilt)
    assert any("gantry tilt" in issue for issue in got.stack.issues)
    last = got.stack.planes[-1]
    place = got.stack.affine @ [len(got.stack.planes) - 1, 0, 0, 1]
    assert np.allclose(place[:3], last.position, atol=1e-3)


@every_series
def test_spacing_and_orientation_come_from_the_headers(tmp_path: Path, name: str) -> None:
    sets, plain = volume_of(name)
    affine = plain.stack.affine
    assert np.allclose(np.linalg.norm(affine[:3, 1:3], axis=0), [float(v) for v in sets[0].PixelSpacing])
    moved, new = to_canonical(plain.values, affine, whole=True)
    assert [int(np.abs(new[:3, axis]).argmax()) for axis in range(3)] == [2, 1, 0]
    assert all(new[2 - axis, axis] > 0 for axis in range(3)) and sorted(moved.shape) == sorted(plain.values.shape)
    with pytest.raises(PixelError, match="another matrix or spacing"):
        changed(tmp_path, name, lambda n, ds: setattr(ds, "PixelSpacing", [1.0 + n, 1.0]))
    with pytest.raises(PixelError, match="mixes frames of reference"):
        changed(tmp_path, name, lambda n, ds: setattr(ds, "FrameOfReferenceUID", f"2.25.{n}"))


@every_series
def test_modality_units_monochrome1_and_padding(tmp_path: Path, name: str) -> None:
    sets, _ = volume_of(name)
    ds = sets[1]
    ds.pop("PixelPaddingValue", None)
    stored = ds.pixel_array.astype(np.float64)
    plain = read_volume(saved(tmp_path / "plain", sets))
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    assert np.allclose(plain.values[1], stored * slope + intercept, rtol=1e-5, atol=1e-3)
    ds.RescaleSlope, ds.RescaleIntercept = 2.5, -7
    doubled = read_frames(saved(tmp_path / "a", [ds])[0]).values[0]
    assert np.allclose(doubled, stored * 2.5 - 7, rtol=1e-5)
    ds.PhotometricInterpretation = "MONOCHROME1"
    turned = read_frames(saved(tmp_path / "b", [ds])[0]).values[0]
    assert np.allclose(turned, doubled.min() + doubled.max() - doubled, atol=1e-2)
    ds.PhotometricInterpretation = "MONOCHROME2"
    least = int(stored.min())
    ds.add_new("PixelPaddingValue", "SS" if ds.PixelRepresentation else "US", least)
    padded = read_frames(saved(tmp_path / "c", [ds])[0]).values[0]
    assert np.isclose(padded[stored == least], doubled[stored > least].min()).all()


def test_a_modality_lut_replaces_slope_and_intercept(tmp_path: Path) -> None:
    ds = volume_of("mr-hippocampus-dicom/hippocampus_019/mr")[0][3]
    stored = ds.pixel_array
    table = (np.arange(4096) // 2 + 5).astype("<u2")
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    item.add_new("LUTData", "OW", table.tobytes())
    ds.ModalityLUTSequence = Sequence([item])
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        ds.pop(keyword, None)
    assert np.array_equal(read_frames(saved(tmp_path, [ds])[0]).values[0], table[stored])


def test_functional_groups_of_an_enhanced_mr_say_where_each_frame_lies(tmp_path: Path) -> None:
    sets, plain = volume_of("mr-hippocampus-dicom/hippocampus_019/mr")
    ds = copy.deepcopy(sets[0])
    order = np.random.default_rng(1).permutation(len(sets))
    groups = []
    for n in order:
        group, place, rescale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = sets[n].ImagePositionPatient
        rescale.RescaleSlope, rescale.RescaleIntercept = 1 + n, 10
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([place]), Sequence([rescale])
        groups.append(group)
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = ds.ImageOrientationPatient, ds.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([plane]), Sequence([measures])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        ds.pop(keyword, None)
    ds.NumberOfFrames = len(sets)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(groups)
    ds.PixelData = np.stack([sets[n].pixel_array for n in order]).astype("<u2").tobytes()
    got = read_volume(saved(tmp_path, [ds]))
    expected = np.stack([one.pixel_array * (1.0 + n) + 10 for n, one in enumerate(sets)])
    assert np.allclose(got.values, expected) and np.allclose(got.stack.affine, plain.stack.affine)
    del ds.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence
    with pytest.raises(PixelError, match="lacks PlanePositionSequence for frame 5"):
        read_volume(saved(tmp_path, [ds]))


def pet(**changes: Any) -> Dataset:
    """The first liver CT as a PET slice: 70 kg, 370 MBq of 18F an hour before the scan."""
    ds = pydicom.dcmread(DATA / "ct-liver-seg" / "ct_01.dcm")
    tracer = Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 370e6, 6586.2
    tracer.RadiopharmaceuticalStartTime = "110000"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Modality, ds.Units, ds.DecayCorrection, ds.CorrectedImage = "PT", "BQML", "START", ["ATTN", "DECY"]
    ds.SeriesDate, ds.SeriesTime = "20200102", "120000"
    ds.AcquisitionDate, ds.AcquisitionTime = "20200102", "120500.25"
    ds.PatientWeight, ds.RescaleSlope, ds.RescaleIntercept = 70, 10, 0
    ds.RadiopharmaceuticalInformationSequence = Sequence([tracer])
    ds.pop("PixelPaddingValue", None)
    for keyword, value in changes.items():
        setattr(tracer if keyword.startswith("Radio") else ds, keyword, value)
    return ds


def test_pet_becomes_suv_by_body_weight_and_decay(tmp_path: Path) -> None:
    def values(**changes: Any) -> np.ndarray:
        return read_frames(saved(tmp_path, [pet(**changes)])[0]).values[0]

    activity = pet().pixel_array * 10.0
    decayed = 370e6 * 0.5 ** (3600 / 6586.2)
    assert np.allclose(values(), activity * 70_000 / decayed, rtol=1e-4)
    assert np.allclose(values(DecayCorrection="ADMIN"), activity * 70_000 / 370e6, rtol=1e-4)
    midnight = {"SeriesTime": "003000", "AcquisitionTime": "003500", "RadiopharmaceuticalStartTime": "233000"}
    assert np.allclose(values(**midnight), values(), rtol=1e-5)
    exact = {**midnight, "RadiopharmaceuticalStartDateTime": "20200101233000.00+0100"}
    assert np.allclose(values(**exact), values(), rtol=1e-5)
    assert np.allclose(values(Units="GML"), activity, rtol=1e-5)  # the scanner wrote SUV already


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"PatientWeight": 0}, "no usable PatientWeight"),
        ({"RadionuclideTotalDose": None}, "no usable RadionuclideTotalDose"),
        ({"CorrectedImage": ["ATTN"]}, "not corrected for attenuation and decay"),
        ({"DecayCorrection": "NONE"}, "decay correction NONE"),
        ({"RadiopharmaceuticalStartTime": None}, "no injection time"),
        ({"AcquisitionTime": "090000"}, "no series time before its acquisition"),
        ({"RadiopharmaceuticalInformationSequence": Sequence([])}, "does not say what was injected"),
    ],
)
def test_a_pet_without_what_suv_needs_is_told(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    ds = pet()
    for keyword, value in changes.items():
        inner = keyword.startswith("Radio") and not keyword.endswith("Sequence")
        setattr(ds.RadiopharmaceuticalInformationSequence[0] if inner else ds, keyword, value)
    with pytest.raises(PixelError, match=sentence):
        read_frames(saved(tmp_path, [ds])[0])


def structure_set(volume: Volume, polygons: dict[str, list[tuple[int, list[tuple[float, float]]]]]) -> Dataset:
    """Contours given as {ROI name: [(plane, [(row, column)…])]} in voxels of the volume."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    rois, items = [], []
    for number, (name, drawn) in enumerate(polygons.items(), 1):
        roi, item, contours = Dataset(), Dataset(), []
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, volume.frame_of_reference
        for k, corners in drawn:
            contour, reference = Dataset(), Dataset()
            plane = volume.stack.planes[k]
            row, column = np.array(plane.orientation[3:]), np.array(plane.orientation[:3])
            points = [
                np.array(plane.position) + r * plane.spacing[0] * row + c * plane.spacing[1] * column
                for r, c in corners
            ]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.4f}" for point in points for value in point]
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
                "1.2.840.10008.5.1.4.1.1.2",
                plane.sop_uid,
            )
            contour.ContourImageSequence = Sequence([reference])
            contours.append(contour)
        item.ReferencedROINumber, item.ContourSequence = number, Sequence(contours)
        rois.append(roi)
        items.append(item)
    ds.StructureSetROISequence, ds.ROIContourSequence = Sequence(rois), Sequence(items)
    return ds


def box(top: int, left: int, height: int, width: int) -> list[tuple[float, float]]:
    """Corners half a voxel outside the voxels [top, top + height) × [left, left + width)."""
    low, high = (top - 0.5, left - 0.5), (top + height - 0.5, left + width - 0.5)
    return [low, (low[0], high[1]), high, (high[0], low[1])]


@every_series
def test_contours_become_the_voxels_they_enclose(tmp_path: Path, name: str) -> None:
    _, volume = volume_of(name)
    drawn = {
        "organ": [(1, box(4, 6, 10, 8)), (1, box(7, 8, 3, 2)), (2, box(0, 0, 5, 5))],
        "LESION": [(0, box(9, 9, 1, 2))],
    }
    path = saved(tmp_path, [structure_set(volume, drawn)])[0]
    got = read_contours(path, volume.stack, volume.frame_of_reference, ["b", "Organ", "Lesion"])
    expected = np.zeros(volume.values.shape, np.uint8)
    expected[1, 4:14, 6:14] = 1
    expected[1, 7:10, 8:10] = 0  # a hole
    expected[2, :5, :5] = 1
    expected[0, 9, 9:11] = 2
    assert np.array_equal(got, expected)


def test_contours_that_cannot_be_trusted_are_told(tmp_path: Path) -> None:
    _, volume = volume_of("mr-hippocampus-dicom/hippocampus_019/mr")
    classes = ["b", "organ"]

    def refused(sentence: str, change: Callable[[Dataset], Any], names: dict[str, Any] | None = None) -> None:
        ds = structure_set(volume, names or {"organ": [(1, box(4, 6, 10, 8))]})
        change(ds)
        with pytest.raises(LabelError, match=sentence):
            read_contours(saved(tmp_path, [ds])[0], volume.stack, volume.frame_of_reference, classes)

    first = [(1, box(4, 6, 10, 8))]
    refused("none of the classes organ", lambda ds: None, {"skin": first})
    refused(
        "another frame of reference",
        lambda ds: setattr(ds.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1"),
    )
    refused("two structures of one class", lambda ds: None, {"organ": first, "Organ": first})
    contour = "ContourSequence"
    refused(
        "not closed and planar",
        lambda ds: setattr(ds.ROIContourSequence[0][contour][0], "ContourGeometricType", "POINT"),
    )
    refused(
        "images that this node lacks",
        lambda ds: setattr(
            ds.ROIContourSequence[0][contour][0].ContourImageSequence[0], "ReferencedSOPInstanceUID", "1.2"
        ),
    )

    def lift(ds: Dataset) -> None:
        normal = volume.stack.planes[0].normal * 0.5
        one = ds.ROIContourSequence[0].ContourSequence[0]
        one.ContourData = list((np.array(one.ContourData, float).reshape(-1, 3) + normal).round(4).ravel())

    refused("between the planes", lift)
    classes = ["b", "organ", "other"]
    refused("overlapping structures", lambda ds: None, {"organ": first, "other": [(1, box(5, 7, 2, 2))]})


def test_the_liver_ct_and_its_segmentation_meet(tmp_path: Path) -> None:
    sets, volume = volume_of("ct-liver-seg")
    mask = read_segmentation(
        DATA / "ct-liver-seg" / "seg_liver.dcm", volume.stack, volume.frame_of_reference, ["b", "Liver"]
    )
    assert mask.shape == (3, 512, 512) and mask.any(axis=(1, 2)).all()
    assert 0 < np.median(volume.values[mask == 1]) < 250 and len(sets) == 3  # Hounsfield units of a liver
    seg = pydicom.dcmread(DATA / "ct-liver-seg" / "seg_liver.dcm")
    for frame in seg.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 5
    moved = saved(tmp_path, [seg])[0]
    with pytest.raises(LabelError, match="lies elsewhere than the images"):
        read_segmentation(moved, volume.stack, volume.frame_of_reference, ["b", "Liver"])
