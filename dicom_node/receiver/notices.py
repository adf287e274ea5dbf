"""How many instances a study will have, as peers tell: MPPS (PS3.4 annex F) and Instance Availability Notification (annex R).

A modality opens a performed procedure step (N-CREATE) and closes it with the images it made (N-SET); an archive notifies of what
is available (N-CREATE). A study is complete once that many instances are here; nothing else of a notice is kept. Several
steps of one study add up, and a step still open keeps the study waiting for its quiet period.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from pydicom import Dataset

from dicom_node.errors import StorageError
from dicom_node.receiver import dimse, pdu
from dicom_node.receiver.commitment import RequestError, parse
from dicom_node.receiver.sop_classes import INSTANCE_AVAILABILITY
from dicom_node.spool import valid_uid
from dicom_node.spool.database import DATABASE_ERRORS, transaction

if TYPE_CHECKING:
    from dicom_node.receiver.association import Association

_LARGEST_NOTICE = 16 << 20
_MOST, _KEPT_SECONDS = 100_000, 7 * 86400  # beyond so many, those of long ago are forgotten: their studies are complete
_CLOSED = ("COMPLETED", "DISCONTINUED")
_PUT = "INSERT INTO expectations VALUES(?,?,?,?) ON CONFLICT DO UPDATE SET instances=excluded.instances, at=excluded.at"


def studies_of(notice: Dataset) -> set[str]:
    """The Study Instance UIDs an MPPS N-CREATE names."""
    steps = notice.get("ScheduledStepAttributesSequence") or []
    return {str(step.get("StudyInstanceUID", "")) for step in steps} - {""}


def performed(notice: Dataset) -> int:
    """Instances that an MPPS lists in its performed series."""
    series = notice.get("PerformedSeriesSequence") or []
    names = ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")
    return sum(len(one.get(name) or []) for one in series for name in names)


def available(notice: Dataset) -> int:
    """Instances that an Instance Availability Notification lists as available."""
    series = notice.get("ReferencedSeriesSequence") or []
    items = [item for one in series for item in one.get("ReferencedSOPSequence") or []]
    return sum(str(item.get("InstanceAvailability", "")) != "UNAVAILABLE" for item in items)


class Notice:
    """An N-CREATE or N-SET being received: collects its data set, keeps what it tells, answers."""

    def __init__(self, association: Association, context_id: int, command: dimse.Command) -> None:
        self._association = association
        self._context_id = context_id
        self._command = command
        self._data = bytearray()

    def write(self, context_id: int, piece: memoryview, last: bool) -> bool:
        """Take a fragment; True when it was the last. Raises PduError."""
        if context_id != self._context_id:
            raise pdu.PduError("a data set changes its presentation context", pdu.UNEXPECTED_PARAMETER)
        self._data += piece
        if len(self._data) > _LARGEST_NOTICE:
            raise pdu.PduError("a notice is larger than any real one")
        if last:
            status = self._keep()
            self._association.reply(self._context_id, self._command, status)
            self._association.service.count(
                self._association.calling_ae, "notices" if status == 0 else "notices refused"
            )
        return last

    def _keep(self) -> int:
        abstract, syntax = self._association.contexts[self._context_id]
        try:
            notice = parse(bytes(self._data), syntax)
        except RequestError:
            return dimse.INVALID_ARGUMENT
        create = self._command.number(dimse.FIELD) == dimse.N_CREATE_RQ
        uid = self._command.uid(dimse.INSTANCE if create else dimse.REQUESTED_INSTANCE)
        if not valid_uid(uid):
            return dimse.INVALID_INSTANCE
        try:
            if abstract == INSTANCE_AVAILABILITY:
                return self._notify(notice) if create else dimse.UNRECOGNISED_OPERATION
            return self._open(uid, notice) if create else self._close(uid, notice)
        except (*DATABASE_ERRORS, StorageError):
            return dimse.PROCESSING_FAILURE

    def _notify(self, notice: Dataset) -> int:
        study = str(notice.get("StudyInstanceUID", ""))
        if not valid_uid(study) or not (count := available(notice)):
            return dimse.INVALID_ARGUMENT
        self._put([(study, "IAN", count)])
        return dimse.SUCCESS

    def _open(self, uid: str, notice: Dataset) -> int:
        studies = studies_of(notice)
        if not studies or not all(valid_uid(study) for study in studies):
            return dimse.INVALID_ARGUMENT
        self._put([(study, uid, None) for study in studies])
        return dimse.SUCCESS

    def _close(self, uid: str, notice: Dataset) -> int:
        rows = self._db.execute("SELECT study_uid FROM expectations WHERE source=?", (uid,)).fetchall()
        if not rows:
            return dimse.NO_SUCH_INSTANCE
        if str(notice.get("PerformedProcedureStepStatus", "")) in _CLOSED:
            count = performed(notice)
            # a step over several studies does not tell which image is of which: leave those to their quiet period
            self._put([(study, uid, count if len(rows) == 1 else None) for (study,) in rows])
        return dimse.SUCCESS

    @property
    def _db(self) -> sqlite3.Connection:
        return self._association.service.ingest.db

    def _put(self, rows: list[tuple[str, str, int | None]]) -> None:
        ingest, now = self._association.service.ingest, time.time()
        with transaction(ingest.db, ingest.lock) as db:
            if db.execute("SELECT count(*) FROM expectations").fetchone()[0] >= _MOST:
                db.execute("DELETE FROM expectations WHERE at < ?", (now - _KEPT_SECONDS,))
            db.executemany(_PUT, [(*row, now) for row in rows])
