"""Finds the original study behind a result: through the vault, the spool's index and, when erased there, the PACS."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from pydicom import dcmread
from pydicom.dataset import Dataset

from anonymizer import Deidentifier
from dicom_node.errors import InputError, RefusedError
from dicom_node.results.reidentify import Known
from dicom_node.spool import Spool, StoredInstance, study_key
from dicom_node.vault import Vault

# SOP Instance UID → the Part 10 file of an original instance, None when the PACS has it no more
Fetch = Callable[[str], bytes | None]


def find_patient(vault: Vault, pseudonym: str) -> str:
    """The Patient ID behind a pseudonym. Raises RefusedError unless it is exactly one."""
    return _one(vault, "patient", pseudonym)


def find_study(
    vault: Vault, spool: Spool, deid: Deidentifier, result: Dataset, fetch: Fetch
) -> tuple[Dataset, Known, str]:
    """(header of an original instance, the study on both sides, Patient ID). Raises RefusedError, InputError."""
    patient_id = find_patient(vault, str(result.PatientID))
    study_uid = _one(vault, "study", str(result.StudyInstanceUID))
    key = study_key(study_uid, patient_id)
    instances = [*spool.instances(key), *spool.instances(key, "purged")]
    if not instances:
        raise RefusedError("The result's study and patient do not belong together here; it is not taken back.")
    firsts = {i.series_uid: i for i in reversed(instances)}
    headers = list(_headers(spool, list(firsts.values()), fetch))
    if not headers:
        raise InputError("Neither spool nor PACS has an image of the result's study any more; it cannot be taken back.")
    known = Known(
        study_uid,
        {deid.uid(uid): uid for uid in firsts},
        {deid.uid(i.sop_uid): (i.sop_uid, i.sop_class) for i in instances},
        {
            deid.uid(str(h.FrameOfReferenceUID)): str(h.FrameOfReferenceUID)
            for h in headers
            if h.get("FrameOfReferenceUID")
        },
    )
    return headers[0], known, patient_id


def _one(vault: Vault, kind: str, pseudonym: str) -> str:
    found = vault.originals(kind, pseudonym)
    if len(found) != 1:
        what = "is none of this node's" if not found else "stands for more than one here"
        raise RefusedError(f"The result's {kind} {what}; it is not taken back.")
    return found[0]


def _headers(spool: Spool, instances: list[StoredInstance], fetch: Fetch) -> Iterator[Dataset]:
    for instance in instances:
        data = spool.read(instance) if instance.state == "received" else fetch(instance.sop_uid)
        if data is not None:
            yield dcmread(io.BytesIO(data), stop_before_pixels=True)
