"""Each option of PS3.15 Table E.1-1 does what it says, says that it was used, and nothing else changes."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset

from anonymizer import Deidentifier, load_profile
from tests.anonymizer.corpus.generate import ROOT, base, encoded, item, sequence
from tests.anonymizer.corpus.people import PEOPLE

pytestmark = pytest.mark.filterwarnings("ignore")
KEY = bytes(range(32))


def example() -> FileDataset:
    ds = base(PEOPLE[0], 1)
    ds.DeviceSerialNumber, ds.StationName, ds.DeviceUID = "SN-8812331", "RAVENSCT1", f"{ROOT}.0.77"
    ds.InstitutionAddress, ds.PatientWeight, ds.SmokingStatus = "9 Raven Lane", "71.5", "NO"
    ds.ImageComments, ds.Allergies = "Quennell seen, stable", "penicillin"
    ds.AcquisitionDateTime, ds.SeriesTime = "20190316001502.25", "233000"
    ds.ContentSequence = sequence(item(ValueType="TEXT", TextValue="3 cm mass"))
    graphic = item(TextObjectSequence=sequence(item(UnformattedTextValue="lesion 3 mm")))
    ds.GraphicAnnotationSequence = sequence(graphic)
    ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019100C, "IS", "1000")
    return ds


def treated(tmp_path: Path, *options: str) -> FileDataset:
    path = tmp_path / "site.toml"
    names = ", ".join(f'"{name}"' for name in options)
    path.write_text(f'base = "basic"\noptions = [{names}]\nprivate = "knowledge-base"\npixels = "clean"\n')
    outcome = Deidentifier(load_profile(path), KEY).deidentify(encoded(example()))
    assert outcome.status == "ok", outcome.reason
    assert outcome.output is not None
    return pydicom.dcmread(io.BytesIO(outcome.output))


def value(ds: FileDataset, *path: object) -> str:
    here: object = ds
    for step in path:
        if isinstance(step, int) and not isinstance(here, pydicom.Dataset):
            here = here[step]  # type: ignore[index]
        elif step not in here:  # type: ignore[operator]
            return ""
        else:
            here = here[step].value  # type: ignore[index]
    return str(here)


SR, GRAPHIC = ("ContentSequence", 0, "TextValue"), ("GraphicAnnotationSequence", 0, "TextObjectSequence", 0)
B_VALUE = (0x0019100C,)
# option -> {path: what stands there with the option}; without it something else does
KEPT: dict[str, dict[tuple[object, ...], str]] = {
    "patient": {("PatientSex",): "F", ("PatientAge",): "067Y", ("PatientWeight",): "71.5", ("SmokingStatus",): "NO"},
    "device": {("DeviceSerialNumber",): "SN-8812331", ("StationName",): "RAVENSCT1", ("DeviceUID",): f"{ROOT}.0.77"},
    "institution": {("InstitutionName",): "St. Brannoc Infirmary", ("InstitutionAddress",): "9 Raven Lane"},
    "uids": {("StudyInstanceUID",): f"{ROOT}.0", ("SOPInstanceUID",): f"{ROOT}.0.1.1"},
    "dates_full": {
        ("StudyDate",): "20190315",
        ("AcquisitionDateTime",): "20190316001502.25",
        ("SeriesTime",): "233000",
    },
    "dates_modified": {("SeriesTime",): "233000"},
    "safe_private": {B_VALUE: "1000"},
    "descriptors": {("ImageComments",): "seen, stable", ("Allergies",): "penicillin"},
    "structured": {SR: "3 cm mass"},
}
CODES = {
    "patient": "113108", "device": "113109", "institution": "113112", "uids": "113110", "dates_full": "113106",
    "dates_modified": "113107", "safe_private": "113111", "descriptors": "113105", "structured": "113104",
}  # fmt: skip


@pytest.mark.parametrize("option", KEPT)
def test_an_option_keeps_what_it_names_and_is_declared(tmp_path: Path, option: str) -> None:
    without, with_it = treated(tmp_path), treated(tmp_path, option)
    for path, wanted in KEPT[option].items():
        assert value(with_it, *path) == wanted, path
        assert value(without, *path) != wanted, path
    for other, paths in KEPT.items():
        if other != option and not {option, other} <= {"dates_full", "dates_modified", "device", "uids"}:
            assert all(value(with_it, *path) == value(without, *path) for path in paths), other
    codes = [code.CodeValue for code in with_it.DeidentificationMethodCodeSequence]
    assert codes == ["113100", CODES[option]]
    assert [code.CodeValue for code in without.DeidentificationMethodCodeSequence] == ["113100"]


def test_graphics_and_descriptors_together_keep_the_words_of_an_annotation(tmp_path: Path) -> None:
    assert value(treated(tmp_path, "graphics", "descriptors"), *GRAPHIC, "UnformattedTextValue") == "lesion 3 mm"
    assert value(treated(tmp_path), *GRAPHIC, "UnformattedTextValue") == "REMOVED"


@pytest.mark.parametrize(
    ("options", "said"), [((), "REMOVED"), (("dates_modified",), "MODIFIED"), (("dates_full",), "UNMODIFIED")]
)
def test_what_was_done_to_dates_is_said(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    ds = treated(tmp_path, *options)
    assert ds.LongitudinalTemporalInformationModified == said
    assert ds.PatientIdentityRemoved == "YES" and "PS3.15" in ds.DeidentificationMethod
    assert (str(ds.get("StudyDate", "")) != "") == bool(options)


def test_modified_dates_keep_every_interval(tmp_path: Path) -> None:
    from datetime import datetime

    ds = treated(tmp_path, "dates_modified")
    day = datetime.strptime(ds.StudyDate, "%Y%m%d")
    moment = datetime.strptime(str(ds.AcquisitionDateTime), "%Y%m%d%H%M%S.%f")
    assert moment - day == datetime(2019, 3, 16, 0, 15, 2, 250000) - datetime(2019, 3, 15)


def test_a_site_keeps_one_attribute_more(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('base = "federated-default"\n[actions]\nStationName = "K"\nDeviceSerialNumber = "X"\n')
    outcome = Deidentifier(load_profile(path), KEY).deidentify(encoded(example()))
    ds = pydicom.dcmread(io.BytesIO(outcome.output or b""))
    assert ds.StationName == "RAVENSCT1" and "DeviceSerialNumber" not in ds
