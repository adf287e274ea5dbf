"""Small valid CT studies with planted identities, for tests that send, spool and de-identify."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


@dataclass(frozen=True)
class Planted:
    """One invented patient and study; each value is unlike anything that stands in a file by chance."""

    name: str = "Quackenbush^Zebulon"
    patient_id: str = "PID-7788991"
    accession: str = "ACC-4455667"
    birth_date: str = "19470319"
    study_date: str = "20190817"
    institution: str = "St Wilfrid Infirmary"
    physician: str = "Featherstonehaugh^Ida"
    study_uid: str = "1.2.826.0.1.3680043.10.99999.4711.1"

    def tokens(self) -> list[str]:
        """What must not be found right of the wall, in the spellings it may take."""
        family, given = self.name.split("^")
        spelled = [f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in (self.birth_date, self.study_date)]
        ids = [self.patient_id, self.accession, self.study_uid, "1.2.826.0.1.3680043.10.99999"]
        return [family, given, *ids, self.birth_date, self.study_date, *spelled, "Wilfrid", "Featherstonehaugh"]


def planted(number: int) -> Planted:
    """The `number`-th invented patient, with one study."""
    return Planted(
        name=f"Quackenbush{number:04d}^Zebulon",
        patient_id=f"PID-{7788000 + number}",
        accession=f"ACC-{4455000 + number}",
        study_uid=f"1.2.826.0.1.3680043.10.99999.4711.{number}",
    )


def ct_instance(who: Planted, number: int = 1, size: int = 16, modality: str = "CT") -> bytes:
    """One CT instance as a Part 10 file, `size` x `size` uint16."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{who.study_uid}.1.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = who.study_uid, f"{who.study_uid}.1"
    ds.FrameOfReferenceUID = f"{who.study_uid}.9"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = who.study_date
    ds.StudyTime = ds.ContentTime = "101112"
    ds.AccessionNumber, ds.StudyID, ds.Modality = who.accession, "1", modality
    ds.Manufacturer, ds.InstitutionName = "ACME", who.institution
    ds.ReferringPhysicianName, ds.PatientName = who.physician, who.name
    ds.PatientID, ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = who.patient_id, who.birth_date, "F", "072Y"
    ds.StudyDescription = f"CT of {who.name.split('^')[0]}"
    ds.BodyPartExamined, ds.PatientPosition = "CHEST", "HFS"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "1", str(number), "1"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["0", "0", str(number)], ["1", "0", "0", "0", "1", "0"]
    ds.SliceThickness, ds.PixelSpacing, ds.KVP = "1", ["1", "1"], "120"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PositionReferenceIndicator = ""
    pixels = (np.arange(size * size, dtype=np.uint32).reshape(size, size) * number % 4096).astype("<u2")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["fedpacs tests"])
    ds.file_meta = meta
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()
