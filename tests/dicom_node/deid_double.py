"""A small stand-in for anonymizer.Deidentifier in tests of what surrounds it: deterministic, and it can be told to fail."""

from __future__ import annotations

import hashlib
import io
import os
import time
from dataclasses import dataclass, field
from typing import Any

import pydicom


@dataclass(frozen=True)
class OutcomeDouble:
    status: str
    reason: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    patient: str = ""
    output: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class DeidDouble:
    """Replaces UIDs and the patient; faults: `quarantine` and `crash` by original instance number, `seconds` of work."""

    def __init__(self, quarantine: set[int] = frozenset(), crash: set[int] = frozenset(), seconds: float = 0.0) -> None:  # type: ignore[assignment]
        self.quarantine, self.crash, self.seconds = quarantine, crash, seconds
        self.seen = 0

    def uid(self, original: str) -> str:
        return f"2.25.{int.from_bytes(hashlib.sha256(original.encode()).digest()[:15], 'big')}"

    def deidentify(self, data: bytes) -> OutcomeDouble:
        self.seen += 1
        time.sleep(self.seconds)
        ds = pydicom.dcmread(io.BytesIO(data), force=True)
        number = int(ds.InstanceNumber)
        if number in self.crash:
            raise RecursionError(f"nested too deeply for {ds.PatientName}")
        if number in self.quarantine:
            return OutcomeDouble("quarantined", "text is burned into the pixels")
        patient = "P" + hashlib.sha256(str(ds.PatientID).encode()).hexdigest()[:12]
        facts = {"modality": ds.Modality, "body_part": ds.BodyPartExamined, "sex": ds.PatientSex, "age_years": 72}
        facts |= {"rows": ds.Rows, "columns": ds.Columns, "frames": 1, "sop_class": str(ds.SOPClassUID)}
        facts |= {"transfer_syntax": str(ds.file_meta.TransferSyntaxUID), "series_uid": self.uid(ds.SeriesInstanceUID)}
        ds.SOPInstanceUID, ds.StudyInstanceUID = self.uid(ds.SOPInstanceUID), self.uid(ds.StudyInstanceUID)
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = self.uid(ds.SeriesInstanceUID), "2.25.1"
        meta = pydicom.dataset.FileMetaDataset()  # of its own: what carried the data set here does not matter
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        meta.TransferSyntaxUID, meta.ImplementationClassUID = ds.file_meta.TransferSyntaxUID, "2.25.7"
        ds.file_meta = meta
        ds.PatientName, ds.PatientID, ds.AccessionNumber = "", patient, ""
        for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyID",
                        "InstitutionName", "ReferringPhysicianName", "StudyDescription"):  # fmt: skip
            setattr(ds, keyword, "")
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        uids = (str(ds.SOPInstanceUID), str(ds.StudyInstanceUID))
        return OutcomeDouble("ok", "", *uids, patient, out.getvalue(), facts)


def suicidal(victim: str) -> type[DeidDouble]:
    """A double that takes its process with it when it meets a patient: what a parser in C may do."""

    class Suicidal(DeidDouble):
        def deidentify(self, data: bytes) -> OutcomeDouble:
            if victim.encode() in data:
                os.kill(os.getpid(), 9)
            return super().deidentify(data)

    return Suicidal
