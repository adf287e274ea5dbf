"""The little of Orthanc's REST interface that the reader needs; works on 1.10.1 and later."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from dicom_node.errors import ConfigError, IntegrityError, UnreachableError

_PAGE = 1000


@dataclass(frozen=True)
class Change:
    seq: int
    kind: str  # NewInstance, NewStudy, StableStudy, ...
    level: str  # Instance, Series, Study, Patient
    orthanc_id: str
    date: str


@dataclass(frozen=True)
class OrthancStudy:
    """What Orthanc says of one study. `study_uid` and `patient_id` are identified: they stay left of the wall."""

    orthanc_id: str
    stable: bool
    last_update: str  # "20261123T121229", UTC
    study_uid: str
    patient_id: str

    @property
    def updated_at(self) -> float:
        """Seconds since the epoch; 0 when Orthanc gives none, which reads as "long ago"."""
        try:
            return datetime.strptime(self.last_update, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
        except ValueError:
            return 0.0


@dataclass(frozen=True)
class OrthancInstance:
    orthanc_id: str
    file_uuid: str  # another one after the instance was overwritten
    size: int  # bytes
    sop_uid: str = ""


@dataclass(frozen=True)
class Traits:
    """What of a study an offer may be decided by."""

    modalities: frozenset[str]
    body_parts: frozenset[str]
    calling_aets: frozenset[str]
    labels: frozenset[str]
    metadata: dict[str, str]
    study_date: str  # DICOM DA


class GoneError(Exception):
    """Orthanc has no such resource (any more)."""


class OrthancClient:
    """One Orthanc. Every method raises UnreachableError when it does not answer, GoneError for what it has not."""

    def __init__(self, url: str, username: str = "", password: str = "", connections: int = 4) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            auth=(username, password) if username else None,
            # identity: with gzip accepted Orthanc compresses each file and gives 35 MB/s in place of 1,600
            headers={"Accept-Encoding": "identity"},
            timeout=httpx.Timeout(30.0, connect=5.0),
            limits=httpx.Limits(max_connections=connections + 1, max_keepalive_connections=connections + 1),
            trust_env=False,
        )
        self._stop = threading.Event()

    def close(self) -> None:
        self._http.close()

    def version(self) -> str:
        return str(self._json("/system")["Version"])

    def changes(self, since: int, limit: int = _PAGE) -> tuple[list[Change], int, bool]:
        """Changes with Seq > since -> (changes, Orthanc's Last, done)."""
        answer = self._json("/changes", since=since, limit=limit)
        changes = [Change(c["Seq"], c["ChangeType"], c["ResourceType"], c["ID"], c["Date"]) for c in answer["Changes"]]
        return changes, int(answer["Last"]), bool(answer["Done"])

    def study(self, orthanc_id: str) -> OrthancStudy:
        return _study(self._json(f"/studies/{orthanc_id}"))

    def studies(self) -> list[OrthancStudy]:
        """Every study of this Orthanc, page by page."""
        found: list[OrthancStudy] = []
        while True:
            page = self._json("/studies", expand="", since=len(found), limit=_PAGE)
            found += [_study(s) for s in page]
            if len(page) < _PAGE:
                return found

    def studies_of_instances(self, orthanc_ids: list[str]) -> set[str]:
        """The studies that hold these instances, asked in one request; instances that are gone are left out."""
        if not orthanc_ids:
            return set()
        body = {"Resources": orthanc_ids, "Level": "Study", "Metadata": False}
        response = self._send("POST", "/tools/bulk-content", json=body)
        return {str(s["ID"]) for s in response.json()}

    def instances(self, study: str) -> list[OrthancInstance]:
        return [
            OrthancInstance(
                i["ID"],
                str(i.get("FileUuid", "")),
                int(i["FileSize"]),
                str(i.get("MainDicomTags", {}).get("SOPInstanceUID", "")),
            )
            for i in self._json(f"/studies/{study}/instances", expand="")
        ]

    def rules(self) -> dict[str, Any] | None:
        """What the plugin in this Orthanc says may be taken, and when; None where there is no plugin."""
        try:
            return dict(self._json("/fedpacs/rules"))
        except GoneError:
            return None

    def traits(self, study: str) -> Traits:
        """What an offer is decided by; what this Orthanc's version does not keep is empty."""
        whole = self._json(f"/studies/{study}")
        series = self._json(f"/studies/{study}/series", expand="")
        tags = [s.get("MainDicomTags", {}) for s in series]
        return Traits(
            modalities=frozenset(str(t["Modality"]) for t in tags if t.get("Modality")),
            body_parts=frozenset(str(t["BodyPartExamined"]).upper() for t in tags if t.get("BodyPartExamined")),
            calling_aets=frozenset(
                filter(None, (self._remote_aet(s["Instances"][0]) for s in series if s["Instances"]))
            ),
            labels=frozenset(whole.get("Labels", ())),  # Orthanc 1.12.0 and later
            metadata=dict(self._json(f"/studies/{study}/metadata", expand="")),
            study_date=str(whole["MainDicomTags"].get("StudyDate", "")),
        )

    def _remote_aet(self, instance: str) -> str:
        try:
            return self._send("GET", f"/instances/{instance}/metadata/RemoteAET").text.strip()
        except GoneError:
            return ""

    def find_study(self, study_uid: str, patient_id: str) -> str | None:
        """The Orthanc id of a study, None when it is not here."""
        for found in self._send("POST", "/tools/lookup", content=study_uid).json():
            try:
                if found["Type"] == "Study" and self.study(found["ID"]).patient_id == patient_id:
                    return str(found["ID"])
            except GoneError:  # deleted between the two requests
                continue
        return None

    def find_file(self, sop_uid: str) -> bytes | None:
        """The Part 10 file of an instance, None when it is not here."""
        for found in self._send("POST", "/tools/lookup", content=sop_uid).json():
            if found["Type"] == "Instance":
                return self._send("GET", f"/instances/{found['ID']}/file").content
        return None

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        """Whether an instance is here."""
        return any(found["Type"] == "Instance" for found in self._send("POST", "/tools/lookup", content=sop_uid).json())

    def store(self, data: bytes) -> str:
        """Store a file; -> its Orthanc id. Storing the same one again changes nothing."""
        answer = self._send("POST", "/instances", content=data, headers={"Content-Type": "application/dicom"}).json()
        return str(answer["ID"])

    def file(self, instance: OrthancInstance) -> bytes:
        """The instance's Part 10 file, checked against Orthanc's size and MD5 (when Orthanc keeps MD5s)."""
        data = self.raw_file(instance)
        attachment = f"/instances/{instance.orthanc_id}/attachments/dicom"
        wanted = self._send("GET", f"{attachment}/md5").text.strip()
        if len(data) != instance.size or (wanted and hashlib.md5(data, usedforsecurity=False).hexdigest() != wanted):
            raise IntegrityError(
                f"Orthanc at {self.url} gave a file that does not match its own size or MD5; "
                "it is asked again later, and if it stays so check Orthanc's storage area"
            )
        return data

    def raw_file(self, instance: OrthancInstance) -> bytes:
        """The instance's Part 10 file as it came, unchecked."""
        return self._send("GET", f"/instances/{instance.orthanc_id}/file").content

    def _json(self, path: str, **params: object) -> Any:
        return self._send("GET", path, params=params).json()

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise UnreachableError(
                f"Orthanc does not answer at {self.url} ({type(error).__name__}); check [orthanc] url and that it runs"
            ) from None
        if response.status_code in (401, 403):
            raise ConfigError(
                f"Orthanc at {self.url} refuses the user (HTTP {response.status_code}); "
                "set [orthanc] username and password_file to a user of its RegisteredUsers"
            )
        if response.status_code == 404:
            raise GoneError(path)
        if response.status_code >= 400:
            raise UnreachableError(f"Orthanc at {self.url} answered HTTP {response.status_code}; see Orthanc's log")
        return response


def _study(raw: dict[str, Any]) -> OrthancStudy:
    return OrthancStudy(
        orthanc_id=raw["ID"],
        stable=bool(raw.get("IsStable", True)),
        last_update=str(raw.get("LastUpdate", "")),
        study_uid=str(raw["MainDicomTags"].get("StudyInstanceUID", "")),
        patient_id=str(raw["PatientMainDicomTags"].get("PatientID", "")),
    )
