"""Results that go back to the PACS: re-identified, kept on disk until the PACS has them, stored there exactly once.

    spool/results.db        one row a result, by the SOP Instance UID it was made under (identified, left of the wall)
    spool/results/UID.dcm   the re-identified file, until it is stored

A result's UID in the PACS follows from the UID it was made under, so that a repeated hand-in, or a repeated delivery after a
kill, is the very instance that the PACS has already. Both steps are in the audit log: result.reidentified, result.returned.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from sqlite_utils.migrations import Migrations

from anonymizer import Deidentifier, load_profile
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.database import connect, transaction
from dicom_node.errors import RefusedError
from dicom_node.optout import OptOuts
from dicom_node.results.reidentify import SEGMENTATIONS, Known, read_result, reidentify
from dicom_node.results.source import Fetch, find_study
from dicom_node.spool import Spool, study_key
from dicom_node.spool.segment import sync_folder
from dicom_node.vault import Vault

migrations = Migrations("dicom_node.results")


@migrations()
def m001_results(db: Any) -> None:
    db.execute(
        """CREATE TABLE results(
             made_uid TEXT PRIMARY KEY, sop_uid TEXT NOT NULL UNIQUE, study TEXT NOT NULL, study_key TEXT NOT NULL,
             study_uid TEXT NOT NULL, patient_id TEXT NOT NULL, kind TEXT NOT NULL, title TEXT NOT NULL,
             state TEXT NOT NULL, orthanc_id TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"""
    )
    db.execute("CREATE INDEX results_study ON results(study_key)")


@migrations()
def m002_referred_to(db: Any) -> None:
    """A measurement report refers to the Segmentation it was measured on, which is itself a result."""
    for column in ("sop_class", "made_series"):
        db.execute(f"ALTER TABLE results ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")


@dataclass(frozen=True)
class Returned:
    """One result, without anything identified. state: waiting, sending or stored; kind: SEG or SR."""

    made_uid: str
    study: str  # de-identified Study Instance UID
    kind: str
    title: str
    state: str
    orthanc_id: str
    reason: str


class Target(Protocol):
    """What a delivery needs of a PACS. Every method raises UnreachableError (later again) or RefusedError (this result not)."""

    def find_study(self, study_uid: str, patient_id: str) -> str | None:
        """Something when the PACS has the patient's study, None when not."""

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        """Whether the PACS has an instance: asked when it is not known whether a store reached it."""

    def store(self, data: bytes) -> str:
        """Store a Part 10 file; what the PACS calls it, or nothing."""


_COLUMNS = "made_uid, study, kind, title, state, orthanc_id, reason"


class Results:
    """The results of one node; several processes may have it open."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self.folder = config.storage.spool / "results"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = connect(config.storage.spool / "results.db", migrations)
        (config.storage.spool / "results.db").chmod(0o600)

    def close(self) -> None:
        self._db.close()

    def take(self, data: bytes, by: str, fetch: Fetch = lambda uid: None) -> tuple[Returned, bool]:
        """Re-identify a result and keep it for the PACS -> (it, whether it is new); durable on return.

        Raises InputError for what is no result, RefusedError for one that is not this node's, or of a patient who opted out.
        """
        result = read_result(data)
        made = str(result.SOPInstanceUID)
        if earlier := self._get(made):
            return earlier, False
        study, kind = str(result.StudyInstanceUID), "SEG" if str(result.SOPClassUID) in SEGMENTATIONS else "SR"
        title = str(result.get("SeriesDescription", "") or kind)[:64]
        vault, spool = Vault.open(self._config), Spool(self._config.storage.spool)
        optouts = OptOuts(self._config.storage.catalogue, vault)
        try:
            profile = load_profile(self._config.deid.profile)
            deid = Deidentifier(profile, key=vault.pseudonym_key, uid_root=self._config.deid.uid_root)
            original, known, patient_id = find_study(vault, spool, deid, result, fetch)
            if optouts.contains(patient_id):
                raise RefusedError("The result's patient has opted out; it is not taken back.")
            sop_class, series = str(result.SOPClassUID), str(result.SeriesInstanceUID)
            identified = reidentify(result, original, self._with_results(known, study, deid.uid), deid.uid)
        finally:
            for part in (optouts, spool, vault):
                part.close()
        sop_uid = str(result.SOPInstanceUID)
        self._audit("result.reidentified", made, study=study, what=kind, sha256=_sha256(data), by=by)
        _write(self.folder / f"{sop_uid}.dcm", identified)
        row = (
            made,
            sop_uid,
            study,
            study_key(known.study_uid, patient_id),
            known.study_uid,
            patient_id,
            kind,
            title,
            "waiting",
            "",
            "",
            time.time(),
            sop_class,
            series,
        )
        with transaction(self._db) as db:
            db.execute(f"INSERT OR IGNORE INTO results VALUES({', '.join('?' * len(row))})", row)
        return Returned(made, study, kind, title, "waiting", "", ""), True

    def _with_results(self, known: Known, study: str, uid: Callable[[str], str]) -> Known:
        """What a result may refer to: the study's images, and results of the same study that were taken before."""
        rows = self._db.execute(
            "SELECT made_uid, sop_uid, sop_class, made_series FROM results WHERE study = ? AND sop_class <> ''",
            (study,),
        ).fetchall()
        instances = {row["made_uid"]: (row["sop_uid"], row["sop_class"]) for row in rows}
        series = {row["made_series"]: uid(row["made_series"]) for row in rows}
        return replace(known, instances={**known.instances, **instances}, series={**known.series, **series})

    def deliver(self, pacs: Target, to: str) -> int:
        """Store what waits in the PACS that has its study; -> how many. Call it again and again. Raises UnreachableError.

        Before a result goes out it is noted as being sent; found so after a kill, the PACS is asked whether it came.
        """
        stored = 0
        rows = self._db.execute("SELECT * FROM results WHERE state IN ('waiting', 'sending') ORDER BY at").fetchall()
        for row in rows:
            try:
                stored += self._deliver(pacs, to, row)
            except RefusedError as error:  # this one; the next may be taken
                self._set(row["made_uid"], "waiting", "", str(error))
        return stored

    def _deliver(self, pacs: Target, to: str, row: Any) -> bool:
        made, file = row["made_uid"], self.folder / f"{row['sop_uid']}.dcm"
        if pacs.find_study(row["study_uid"], row["patient_id"]) is None:
            self._set(made, "waiting", "", "no followed PACS has the study")
            return False
        there = row["state"] == "sending" and pacs.holds(row["study_uid"], row["sop_uid"])
        if not there:
            self._set(made, "sending", "", "")
        called = "" if there else pacs.store(file.read_bytes())
        self._audit("result.returned", made, study=row["study"], what=row["kind"], to=to)
        self._set(made, "stored", called, "")
        file.unlink(missing_ok=True)
        return True

    def ours(self, sop_uids: Iterable[str]) -> set[str]:
        """Those of these SOP Instance UIDs that are results: they are never pulled back as new images."""
        return {
            uid for uid in sop_uids if self._db.execute("SELECT 1 FROM results WHERE sop_uid = ?", (uid,)).fetchone()
        }

    def of_study(self, key: str) -> list[Returned]:
        """The results of an original study, by its study key in the spool, oldest first."""
        query = f"SELECT {_COLUMNS} FROM results WHERE study_key = ? ORDER BY at"
        return [Returned(*row) for row in self._db.execute(query, (key,))]

    def all(self) -> list[Returned]:
        return [Returned(*row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM results ORDER BY at")]

    def _get(self, made: str) -> Returned | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM results WHERE made_uid = ?", (made,)).fetchone()
        return Returned(*row) if row else None

    def _set(self, made: str, state: str, orthanc_id: str, reason: str) -> None:
        with transaction(self._db) as db:
            db.execute(
                "UPDATE results SET state = ?, orthanc_id = ?, reason = ? WHERE made_uid = ?",
                (state, orthanc_id, reason, made),
            )
            if state == "stored":  # whose it is need not be kept any longer
                db.execute("UPDATE results SET study_uid = '', patient_id = '' WHERE made_uid = ?", (made,))

    def _audit(self, kind: str, made: str, **facts: str) -> None:
        """One record for each result, also when a kill came between it and our own note."""
        audit = AuditLog(self._config.storage.audit)
        try:
            if not any(record.facts.get("result") == made for record in audit.records(kind)):
                audit.append(kind, result=made, **facts)
        finally:
            audit.close()


def in_order(files: Iterable[Path]) -> list[Path]:
    """Segmentations before the reports that refer to them; what cannot be read last, for `take` to refuse."""

    def rank(file: Path) -> int:
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            return 0 if str(header.SOPClassUID) in SEGMENTATIONS else 1
        except (InvalidDicomError, AttributeError, OSError, EOFError, ValueError):
            return 2

    return sorted(files, key=lambda file: (rank(file), file))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
