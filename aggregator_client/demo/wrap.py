"""Wraps an image and an invented patient into valid DX or CR instances (PS3.3 A.26 and A.2), as a scanner would."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, RLELossless

from aggregator_client.demo.cohort import Exam, Scanner
from aggregator_client.demo.images import XRay

SOP_CLASS = {"DX": "1.2.840.10008.5.1.4.1.1.1.1", "CR": "1.2.840.10008.5.1.4.1.1.1"}
ORIGINAL_UID_ROOT = "1.2.826.0.1.3680043.10.1590"
"""An arbitrary root for the UIDs the invented scanners give out (below the Medical Connections free root)."""


def instances(exam: Exam) -> list[FileDataset]:
    """The study's instances, one per image, all in one series."""
    return [_instance(exam, number, image) for number, image in enumerate(exam.images, start=1)]


def scan(image: XRay, scanner: Scanner, seed: int) -> NDArray[np.unsignedinteger]:
    """The image as this scanner would store it: (rows, columns) uint8 or uint16, inverted for MONOCHROME1."""
    picture = Image.fromarray(image.pixels)
    if scanner.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(scanner.blur))
    values = np.asarray(picture, dtype=np.float32) / 255.0
    values = scanner.gain * values**scanner.gamma
    if scanner.noise:
        values = values + np.random.default_rng(seed).normal(0.0, scanner.noise, values.shape).astype(np.float32)
    values = np.clip(values, 0.0, 1.0)
    if scanner.monochrome1:
        values = 1.0 - values
    stored = np.rint(values * (2**scanner.bits_stored - 1))
    return stored.astype(np.uint8 if scanner.bits_stored <= 8 else np.uint16)


def _uid(*parts: object) -> UID:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return UID(f"{ORIGINAL_UID_ROOT}.{int.from_bytes(digest[:10], 'big')}")


def _instance(exam: Exam, number: int, image: XRay) -> FileDataset:
    scanner = exam.hospital.scanner
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(SOP_CLASS[scanner.modality])
    meta.MediaStorageSOPInstanceUID = _uid(exam.hospital.ae_title, exam.accession, image.name)
    meta.TransferSyntaxUID = UID(scanner.transfer_syntax)
    data = FileDataset(f"{exam.accession}-{number}.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = exam.hospital.locale.character_set
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _patient(data, exam)
    _study(data, exam)
    _series(data, exam, number)
    _equipment(data, exam)
    _image(data, exam, number)
    _pixels(data, exam, image)
    (_dx if scanner.modality == "DX" else _cr)(data)
    _private(data, exam)
    return data


def _patient(data: Dataset, exam: Exam) -> None:
    person = exam.person
    data.PatientName = person.name
    data.PatientID = person.patient_id
    data.IssuerOfPatientID = exam.hospital.ae_title
    data.PatientBirthDate = person.birth_date.strftime("%Y%m%d")
    data.PatientSex = person.sex
    other = Dataset()
    other.PatientID = person.other_id
    other.TypeOfPatientID = "TEXT"
    data.OtherPatientIDsSequence = Sequence([other])
    data.PatientAddress = person.address
    data.PatientTelephoneNumbers = person.phone
    months = (exam.study_date - person.birth_date).days * 12 // 365
    data.PatientAge = f"{months:03d}M" if months < 24 else f"{months // 12:03d}Y"
    data.PatientSize = f"{0.75 + months * 0.006:.2f}"
    data.PatientWeight = f"{9 + months * 0.18:.1f}"
    family = person.name.split("=")[0].split("^")[0]
    data.PatientComments = f"{family}: mother called, {person.phone}"


def _study(data: Dataset, exam: Exam) -> None:
    day = exam.study_date.strftime("%Y%m%d")
    data.StudyInstanceUID = _uid(exam.hospital.ae_title, exam.accession)
    data.StudyID = exam.accession[-6:]
    data.AccessionNumber = exam.accession
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = day
    time = timedelta(hours=7, seconds=exam.seed % 36_000)
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = str(time).replace(":", "").zfill(6)
    data.StudyDescription = "Chest AP"
    data.ReferringPhysicianName = exam.person.physician
    data.NameOfPhysiciansReadingStudy = exam.person.physician
    request = Dataset()
    request.RequestedProcedureID = exam.accession
    request.ScheduledProcedureStepID = f"{exam.accession}-1"
    request.RequestedProcedureDescription = f"Chest AP for {exam.person.name.split('=')[0].split('^')[0]}"
    data.RequestAttributesSequence = Sequence([request])


def _series(data: Dataset, exam: Exam, number: int) -> None:
    data.Modality = exam.hospital.scanner.modality
    data.SeriesInstanceUID = _uid(exam.hospital.ae_title, exam.accession, "series")
    data.SeriesNumber = 1
    data.SeriesDescription = "AP supine"
    data.InstanceNumber = number
    data.OperatorsName = exam.person.operator
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = "AP"


def _equipment(data: Dataset, exam: Exam) -> None:
    scanner = exam.hospital.scanner
    data.Manufacturer = scanner.manufacturer
    data.ManufacturerModelName = scanner.model
    data.InstitutionName = exam.hospital.institution
    data.InstitutionAddress = exam.hospital.locale.city
    data.StationName = f"{exam.hospital.ae_title[:8]}{1 + exam.seed % 3}"
    data.DeviceSerialNumber = f"{sum(map(ord, scanner.model)) * 7919}"
    data.SoftwareVersions = "3.1.4"


def _image(data: Dataset, exam: Exam, number: int) -> None:
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.AcquisitionNumber = number
    data.BurnedInAnnotation = "NO"
    data.LossyImageCompression = "01"  # the images were JPEG before they came here
    data.LossyImageCompressionRatio = "10"
    data.LossyImageCompressionMethod = "ISO_10918_1"
    data.DerivationDescription = "Resampled to 128 x 128"
    data.PatientOrientation = ["L", "F"]
    data.KVP = "60"
    data.Exposure = str(1 + exam.seed % 3)


def _pixels(data: Dataset, exam: Exam, image: XRay) -> None:
    scanner = exam.hospital.scanner
    stored = scan(image, scanner, exam.seed)
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME1" if scanner.monochrome1 else "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated = 8 * stored.dtype.itemsize
    data.BitsStored = scanner.bits_stored
    data.HighBit = scanner.bits_stored - 1
    data.PixelRepresentation = 0
    top = 2**scanner.bits_stored
    data.WindowCenter, data.WindowWidth = str(top // 2), str(top)
    data.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
    if scanner.transfer_syntax == RLELossless:
        data.compress(RLELossless)


def _dx(data: Dataset) -> None:
    """What PS3.3 C.8.11 asks of a DX image beyond the general modules."""
    data.PresentationIntentType = "FOR PRESENTATION"
    data.ImageLaterality = "U"
    data.PixelIntensityRelationship = "LOG"
    data.PixelIntensityRelationshipSign = 1 if data.PhotometricInterpretation == "MONOCHROME1" else -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.PresentationLUTShape = "INVERSE" if data.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
    data.DetectorType = "SCINTILLATOR"
    data.ImagerPixelSpacing = ["1.6", "1.6"]
    data.PositionerType = "NONE"
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
    data.AnatomicRegionSequence = Sequence([region])
    data.AcquisitionContextSequence = Sequence([])


def _cr(data: Dataset) -> None:
    data.ImagerPixelSpacing = ["1.6", "1.6"]
    data.CassetteOrientation = "PORTRAIT"
    data.PlateType = "ST-VI"


def _private(data: Dataset, exam: Exam) -> None:
    """Vendor tags: one that repeats the patient's name, as real ones do, and one that holds only numbers."""
    block = data.private_block(0x0029, exam.hospital.scanner.private_creator, create=True)
    block.add_new(0x10, "LO", f"{exam.person.name.split('=')[0]}|{exam.person.patient_id}")
    block.add_new(0x11, "FL", exam.hospital.scanner.gamma)
