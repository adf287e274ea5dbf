"""Codes that stand for a person go with the person; a safe private number stays whatever VR its list gives."""

from __future__ import annotations

import io

from pydicom import Dataset, Sequence, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from anonymizer import Deidentifier, load_profile


def deidentified(ds: Dataset) -> Dataset:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.PatientName, ds.PatientID = "CT", "Quennell^Tabitha", "LN0410023"
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    outcome = Deidentifier(load_profile("federated-default"), b"k" * 32).deidentify(stream.getvalue())
    assert outcome.output is not None, outcome.reason
    return dcmread(io.BytesIO(outcome.output))


def test_the_code_of_a_person_is_replaced() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "DOC123X", "99LOCAL", "Crane^Jonathan"
    person = Dataset()
    person.PersonIdentificationCodeSequence = Sequence([code])
    ds = Dataset()
    ds.RequestingPhysicianIdentificationSequence = Sequence([person])
    ds.ImageComments = "signed off under DOC123X, stable"
    after = deidentified(ds)
    text = str(after)
    assert "DOC123X" not in text and "Crane" not in text
    assert "stable" in after.ImageComments


def test_a_safe_private_number_stays_though_its_list_says_bytes() -> None:
    ds = Dataset()
    ds.add_new((0x0045, 0x0017), "LO", "GEMS_HELIOS_01")
    ds.add_new((0x0045, 0x1701), "SS", 3)
    assert deidentified(ds)[0x0045, 0x1701].value == 3
