"""A name that folds to an everyday word is still taken out of free text when it stands as the patient's name does."""

from __future__ import annotations

import io

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from anonymizer import Deidentifier, load_profile


def deidentified(name: str, comment: str) -> tuple[str, str]:
    """(status, the comment afterwards) of a small object whose free text holds `comment`."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.PatientName, data.PatientID = "CR", name, "LN0410023"
    data.BurnedInAnnotation = "NO"
    data.PatientComments = comment
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    outcome = Deidentifier(load_profile("federated-default"), b"k" * 32).deidentify(stream.getvalue())
    after = dcmread(io.BytesIO(outcome.output)).get("PatientComments", "") if outcome.output else ""
    return outcome.status, str(after)


@pytest.mark.parametrize("spelling", ["Groß", "GROß", "groß", "Großens"])
def test_a_name_like_an_everyday_word_is_removed_as_it_is_written(spelling: str) -> None:
    status, after = deidentified("Groß^Käthe", f"{spelling} called, gross motor skills normal")
    assert status == "ok"
    assert "Gro" not in after and "gro" not in after.replace("gross motor", "")
    assert "gross motor skills normal" in after


def test_an_ideographic_name_takes_no_neighbouring_text_with_it() -> None:
    status, after = deidentified("Yamada^Hanako=山田^花子", "肺炎の疑い 山田 再検査")
    assert status == "ok"
    assert "山田" not in after and "肺炎" in after


@pytest.mark.parametrize(
    ("name", "comment", "expected"),
    [
        ("Young^Grace", "Young", ""),
        ("Young^Grace", "GTV Young, young adult", "GTV, young adult"),
        ("Price^Will", "PRICE CT ABD", "CT ABD"),
        ("Price^Will", "Will return. Price has cough", "Will return. has cough"),
        ("White^Ann", "White Matter lesions, white spots", "White Matter lesions, white spots"),
        ("White^Ann", "Head CT of White, long axis", "Head CT of, long axis"),
        ("Ng^Li", "NG tube in place, Ng seen, Li-RADS 3", "NG tube in place, seen, Li-RADS 3"),
        ("Wu^An", "WU A, LUMBAR 2 VIEWS", "A, LUMBAR 2 VIEWS"),
        ("Соколова^Екатерина", "Соколовой проведена МРТ; Екатерине лучше", "проведена МРТ; лучше"),
        ("ศรีสุข^มาลี", "มาลี ศรีสุข กระดูกหัก", "กระดูกหัก"),
        ("Dvořáček^Bohuslav", "p. Dvořáčka dg: cholelitiáza", "p. dg: cholelitiáza"),
    ],
)
def test_the_patients_own_everyday_name_goes_where_it_is_written_as_a_name(
    name: str, comment: str, expected: str
) -> None:
    assert deidentified(name, comment) == ("ok", expected)
