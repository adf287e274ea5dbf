"""What was set aside, told without an identified value; sent through de-identification again, or erased (left of the wall).

Four kinds lie there: what the receiver could not read (`receiver`), other bytes under a known SOP Instance UID (`conflict`),
what a worker could not prove clean (`worker`: quarantine/STUDY_KEY/NUMBER.dcm with its reason), and the instances of a study
that was quarantined as a whole (`study`). Nothing here passes anything over the wall: a release is one more pass through
de-identification, with the profile and policy of now. Each act is in the audit log before it is done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID_dictionary

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, RefusedError, StorageError
from dicom_node.spool import Spool, StoredInstance, segment
from dicom_node.spool.database import WriteLock, transaction

_WORKED_ON = ("receiving", "complete")
_LIST = "list what is set aside with `fedpacs node quarantine list`"
# PS3.3 C.7.3.1.1.1: anything else in that element may be text of any kind, and is not shown.
_MODALITIES = frozenset(
    """
    ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL
    IVOCT IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG
    RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN
    TEXTUREMAP TG US VA XA XAPROTOCOL XC
    """.split()  # noqa: SIM905 - read more easily than one term a line
)


@dataclass(frozen=True, slots=True)
class SetAside:
    """One instance that is set aside. `study` is the lowest number of its study: the same for all of one study."""

    number: int
    study: int
    modality: str
    sop_class: str
    reason: str
    kind: str


class Quarantine:
    """The quarantine of one node; a context manager."""

    def __init__(self, config: NodeConfig) -> None:
        self.folder = config.storage.quarantine
        self.audit_path = config.storage.audit
        self.spool = Spool(config.storage.spool)
        self._lock = WriteLock(config.storage.spool)

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()
        self.spool.close()

    def entries(self) -> list[SetAside]:
        """Everything that is set aside, by number."""
        found: dict[int, SetAside] = {}
        for number, path in self._files().items():
            row = self._row(number)
            if row is not None:
                found[number] = self._entry(row, _reason(path), "worker")
        for state, kind in (("quarantined", "receiver"), ("conflict", "conflict")):
            for row in self.spool.set_aside(state):
                found[row.id] = self._entry(row, row.reason, kind)
        for study in self.spool.studies("quarantined"):
            for row in self.spool.instances(study.study_key):
                found.setdefault(row.id, self._entry(row, study.reason, "study"))
        return [found[number] for number in sorted(found)]

    def release(self, numbers: Sequence[int], by: str, reason: str = "") -> int:
        """Send the studies of these through de-identification again; -> how many studies. Raises RefusedError."""
        chosen = self._chosen(numbers)
        for one in chosen:
            if one.kind in ("receiver", "conflict"):
                raise RefusedError(
                    f"Number {one.number} cannot be released: it never became part of a study ({one.reason}); have its "
                    "source send it again, mended, or purge it."
                )
        self._audit("quarantine.released", chosen, by, reason)
        rows = [self.spool.instance(one.number) for one in chosen]
        files = self._files()
        for row in rows:
            if row.state == "purged":  # the study's received bytes were forgotten in time; these were kept here
                self.spool.add_file(files[row.id], source="QUARANTINE")
                files[row.id].unlink()
                files[row.id].with_suffix(".reason.txt").unlink(missing_ok=True)
        keys = {row.study_key for row in rows}
        for key in keys:
            if self.spool.study(key).state not in _WORKED_ON:
                self.spool.reopen(key)
        return len(keys)

    def purge(self, numbers: Sequence[int], by: str, reason: str = "") -> int:
        """Erase these, here and in the spool; -> how many. Raises RefusedError while a worker has their study."""
        chosen = self._chosen(numbers)
        rows = [self.spool.instance(one.number) for one in chosen]
        states = {study.study_key: study.state for study in self.spool.studies()}
        for row in rows:
            if row.state == "received" and states.get(row.study_key) in _WORKED_ON:
                raise RefusedError(
                    f"Number {row.id} cannot be purged now: its study waits for de-identification; try again later."
                )
        self._audit("quarantine.purged", chosen, by, reason)
        files = self._files()
        for row in rows:
            self._erase(row)
            if row.id in files:
                _remove(files[row.id])
        for key in {row.study_key for row in rows} & states.keys():
            self._forget(key)
        return len(rows)

    def expire(self, before: float) -> int:
        """Erase what was received before `before` (seconds since the epoch) and is set aside still; -> how many."""
        old = [one.number for one in self.entries() if self._is_older(one.number, before)]
        return self.purge(old, "retention", "retention.quarantine_hours") if old else 0

    # -- parts --------------------------------------------------------------------------------------------------------

    def _files(self) -> dict[int, Path]:
        return {int(path.stem): path for path in self.folder.glob("*/*.dcm") if path.stem.isdigit()}

    def _row(self, number: int) -> StoredInstance | None:
        try:
            return self.spool.instance(number)
        except InputError:
            return None  # the index was rebuilt since; the worker's next pass over the study removes the file

    def _is_older(self, number: int, before: float) -> bool:
        row = self._row(number)
        if row is None or row.received_at > before:
            return False
        study = self.spool.study(row.study_key) if row.study_key else None
        return study is None or study.state not in _WORKED_ON

    def _entry(self, row: StoredInstance, reason: str, kind: str) -> SetAside:
        first = row.id
        if row.study_key:
            query = "SELECT min(id) FROM instances WHERE study_key=?"
            first = self.spool.db.execute(query, (row.study_key,)).fetchone()[0]
        known = UID_dictionary.get(row.sop_class)
        modality = row.modality if row.modality in _MODALITIES else ""
        return SetAside(row.id, first, modality, known[0] if known else "not of the standard", reason, kind)

    def _chosen(self, numbers: Iterable[int]) -> list[SetAside]:
        there = {one.number: one for one in self.entries()}
        missing = sorted(set(numbers) - there.keys())
        if missing:
            raise InputError(f"Number {missing[0]} is not set aside; {_LIST}.")
        return [there[number] for number in sorted(set(numbers))]

    def _audit(self, kind: str, chosen: Sequence[SetAside], by: str, reason: str) -> None:
        log = AuditLog(self.audit_path)
        try:
            log.append(
                kind,
                by=by,
                reason=reason,
                numbers=[one.number for one in chosen],
                instances=len(chosen),
                studies=len({one.study for one in chosen}),
            )
        finally:
            log.close()

    def _erase(self, row: StoredInstance) -> None:
        """Bytes first, then the row: a kill between leaves a row that is listed still, and can be purged again."""
        path = self.spool.root / "segments" / row.segment
        try:
            with transaction(self.spool.db, self._lock) as db:
                if row.state != "purged" and path.exists():
                    segment.erase(path, row.offset, row.length)
                db.execute("UPDATE instances SET state='purged' WHERE id=?", (row.id,))
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"Number {row.id} cannot be erased ({error}); check the spool's disk.") from error

    def _forget(self, study_key: str) -> None:
        """Of a study with no bytes left, nobody needs to know whose it was."""
        query = "SELECT count(*) FROM instances WHERE study_key=? AND state<>'purged'"
        if self.spool.db.execute(query, (study_key,)).fetchone()[0] == 0:
            self.spool.purge(study_key)


def _reason(path: Path) -> str:
    try:
        return path.with_suffix(".reason.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "its reason is missing"


def _remove(path: Path) -> None:
    path.with_suffix(".reason.txt").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
