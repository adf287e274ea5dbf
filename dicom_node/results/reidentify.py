"""Gives a DICOM-SEG or SR that was made of de-identified images the identity of the original study.

The patient and study attributes come from an original image of the study, every reference to a de-identified UID is turned
back, and what refers to anything outside the study is refused: a result can only land where its images came from.
A pure function; `dicom_node.results.source` finds what it needs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node.errors import InputError, RefusedError

# PS3.4 B.5: Segmentation and Label Map Segmentation Storage; every structured report stands below 88.
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
REPORTS = "1.2.840.10008.5.1.4.1.1.88."

# PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2: whose and which study it is. Taken from the original, or absent as there.
IDENTITY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "InstitutionName",
)  # fmt: skip
# What says "de-identified", and moments that the date shift has moved; neither is true of the original study.
UNTRUE = (
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime",
    "FrameAcquisitionDateTime", "FrameReferenceDateTime",
)  # fmt: skip
_FRAMES = ("FrameOfReferenceUID", "ReferencedFrameOfReferenceUID")


@dataclass(frozen=True)
class Known:
    """One study on both sides: de-identified UID → original one. `instances` also tells the SOP Class."""

    study_uid: str
    series: Mapping[str, str]
    instances: Mapping[str, tuple[str, str]]
    frames: Mapping[str, str]


def read_result(data: bytes) -> Dataset:
    """The data set of a result. Raises InputError for what is no DICOM-SEG or SR."""
    try:
        result = dcmread(io.BytesIO(data))
        kind = str(result.SOPClassUID)
        complete = all(result.get(k) for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"))
    except (InvalidDicomError, AttributeError, EOFError, ValueError, NotImplementedError):
        raise InputError("The result is not a DICOM file that can be read; write it again.") from None
    if kind not in SEGMENTATIONS and not kind.startswith(REPORTS):
        raise InputError(f"A result must be a DICOM-SEG or SR, not of SOP Class {kind}; nothing else goes back.")
    if not complete:
        raise InputError("The result lacks a SOP Instance, Series or Study UID or its patient; write it again.")
    return result


def reidentify(result: Dataset, original: Dataset, known: Known, uid: Callable[[str], str]) -> bytes:
    """The result as a Part 10 file under the original patient and study; changes `result`.

    original: the header of one original instance. uid: gives the result's own UIDs ones that cannot be linked with what
    stands right of the wall. Raises RefusedError when it refers to what is not part of the study.
    """
    own, series = str(result.SOPInstanceUID), str(result.SeriesInstanceUID)
    result.decode()
    result.remove_private_tags()
    _turn_back(result, known, own, series)
    for keyword in IDENTITY:
        if keyword in result:
            delattr(result, keyword)
        if keyword in original:
            value = original[keyword].value
            setattr(result, keyword, value if value is None or isinstance(value, int | float) else str(value))
    result.SpecificCharacterSet = "ISO_IR 192"  # holds whatever the original's character set held
    result.StudyInstanceUID = known.study_uid
    result.SOPInstanceUID, result.SeriesInstanceUID = uid(own), uid(series)
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    out = io.BytesIO()
    result.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _turn_back(item: Dataset, known: Known, own: str, series: str) -> None:
    for element in list(item):
        if element.keyword in UNTRUE:
            del item[element.tag]
        elif element.VR == "SQ":
            for nested in element.value:
                _turn_back(nested, known, own, series)
        elif element.VR == "UI" and element.value:
            many = element.VM > 1
            values = [str(value) for value in (element.value if many else [element.value])]
            turned = [_original(item, element.keyword, value, known, own, series) for value in values]
            element.value = turned if many else turned[0]


def _original(item: Dataset, keyword: str, value: str, known: Known, own: str, series: str) -> str:
    if keyword == "ReferencedSOPInstanceUID":
        if value not in known.instances:
            raise RefusedError("The result refers to an instance that is not part of its study; it is not taken back.")
        original, sop_class = known.instances[value]
        if str(item.get("ReferencedSOPClassUID", sop_class)) != sop_class:
            raise RefusedError("The result names another SOP Class for an instance than it has; it is not taken back.")
        return original
    if keyword == "SeriesInstanceUID" and value != series:
        if value not in known.series:
            raise RefusedError("The result refers to a series that is not part of its study; it is not taken back.")
        return known.series[value]
    if keyword in _FRAMES and known.frames:
        if value not in known.frames:
            raise RefusedError("The result lies in a frame of reference that its study has not; it is not taken back.")
        return known.frames[value]
    if keyword == "StudyInstanceUID":
        return known.study_uid
    return known.instances[value][0] if value in known.instances else value
