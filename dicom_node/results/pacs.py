"""The PACS that results go to: by C-STORE, or by STOW-RS (PS3.18 10.5) where it speaks DICOMweb."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

from pydicom import Dataset

from dicom_node.config import NodeConfig
from dicom_node.errors import RefusedError
from dicom_node.retrieve import qr
from dicom_node.retrieve.web import Web
from dicom_node.scu.peer import Peer
from dicom_node.scu.store import send_files

TIMEOUT_SECONDS = 60.0


class DicomPacs:
    """A PACS reached by C-STORE and asked by C-FIND."""

    def __init__(self, peer: Peer, calling: str, folder: Path) -> None:
        self._peer, self._calling, self._folder = peer, calling, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # identified: never the system's temporary folder

    def find_study(self, study_uid: str, patient_id: str) -> str | None:
        found = qr.ask(self._peer, qr.level("STUDY", study_uid, PatientID=""), self._calling, TIMEOUT_SECONDS)
        return study_uid if any(str(one.get("PatientID", "")) == patient_id for one in found) else None

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        return sop_uid in qr.instances(self._peer, study_uid, self._calling, TIMEOUT_SECONDS)

    def store(self, data: bytes) -> str:
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".sending") as file:
            file.write(data)
            file.flush()
            report = send_files(self._peer, [Path(file.name)], self._calling, TIMEOUT_SECONDS)
        if report.failed:
            raise RefusedError(f"{self._peer}: {next(iter(report.failed.values()))}.")
        return ""


class WebPacs(Web):
    """A PACS reached by DICOMweb."""

    def find_study(self, study_uid: str, patient_id: str) -> str | None:
        keys = {"StudyInstanceUID": study_uid}
        found = list(self._search(self._client.search_for_studies, search_filters=keys, fields=["PatientID"]))
        return study_uid if any(str(one.get("PatientID", "")) == patient_id for one in found) else None

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        return sop_uid in self.instances(study_uid)

    def store(self, data: bytes) -> str:
        mark = uuid.uuid4().hex
        body = b"".join(
            (
                b"--",
                mark.encode(),
                b"\r\nContent-Type: application/dicom\r\n\r\n",
                data,
                b"\r\n--",
                mark.encode(),
                b"--\r\n",
            )
        )
        kind = f'multipart/related; type="application/dicom"; boundary={mark}'
        url = f"{self._url}/studies"

        def ask() -> Dataset:
            headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
            answer = self._session.post(url, data=body, headers=headers, timeout=self._timeout)
            if answer.status_code == 409:
                raise RefusedError(f"{self._url} would not store the result (STOW-RS, HTTP 409): look at its log.")
            answer.raise_for_status()
            return Dataset.from_json(answer.text)

        told = self._asked(ask)
        if told.get("FailedSOPSequence"):
            code = int(told.FailedSOPSequence[0].get("FailureReason", 0))
            raise RefusedError(f"{self._url} would not store the result (STOW-RS failure reason 0x{code:04X}).")
        return ""


def open_pacs(config: NodeConfig) -> DicomPacs | WebPacs | None:
    """The PACS of `[results]`, None when none is named. Raises InputError, ConfigError for a setting that cannot be used."""
    settings, root = config.results, config.root

    def at(path: Path | None) -> Path | None:
        return None if path is None else root / path

    if settings.pacs.startswith(("https://", "http://")):
        return WebPacs(
            settings.pacs,
            password_file=at(settings.password_file),
            token_file=at(settings.token_file),
            ca=at(settings.tls_ca),
        )
    if not settings.pacs:
        return None
    tls = {
        "tls_ca": at(settings.tls_ca),
        "tls_certificate": at(settings.tls_certificate),
        "tls_key": at(settings.tls_key),
    }
    return DicomPacs(Peer.parse(settings.pacs, **tls), config.dicom.ae_title, config.storage.spool / "results")
