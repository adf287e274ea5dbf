"""Storage Commitment Push Model, SCP side (PS3.4 annex J): what is asked for is looked up; only what is durable is promised.

The N-EVENT-REPORT follows the N-ACTION response on the same association. To a peer that node.toml knows the address of it is
owed until acknowledged: queued on disk before the N-ACTION is answered, and sent on an association of our own by
dicom_node.reporter when the peer has gone. A request for all there is of a study also says that the study is complete.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.receiver import dimse, pdu
from dicom_node.receiver.sop_classes import EXPLICIT_BE, IMPLICIT_LE, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from dicom_node.spool import valid_uid
from dicom_node.spool.database import WriteLock, transaction
from dicom_node.spool.part10 import prefix

if TYPE_CHECKING:
    from dicom_node.receiver.association import Association

_LARGEST_REQUEST = 16 << 20
_REQUEST_COMMITMENT = 1
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119  # PS3.3 C.14.1.1
SUCCESSFUL, FAILURES_EXIST = 1, 2  # event types, PS3.4 table J.3-1

GRACE_SECONDS = 10.0  # for the acknowledgement on the association of the request
Reference = tuple[str, str]  # SOP Class UID, SOP Instance UID


class RequestError(ValueError):
    """The N-ACTION's data set is not a commitment request."""


@dataclass
class Verdict:
    """What is held, and what is not and why."""

    transaction: str
    committed: list[Reference] = field(default_factory=list)
    failed: list[tuple[Reference, int]] = field(default_factory=list)


def parse(raw: bytes, transfer_syntax: str) -> Dataset:
    """A data set of an N-service, read to its end. Raises RequestError."""
    try:
        data = dcmread(BytesIO(_as_file(raw, transfer_syntax)))
        for _ in data.iterall():
            pass
    except Exception as error:  # noqa: BLE001 - a parser fed by a peer may raise anything; the peer is told, and we go on
        raise RequestError(type(error).__name__) from None
    return data


def parse_request(raw: bytes, transfer_syntax: str) -> tuple[str, list[Reference]]:
    """(Transaction UID, references) of an N-ACTION data set. Raises RequestError."""
    request = parse(raw, transfer_syntax)
    try:
        references = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in request.ReferencedSOPSequence
        ]
        transaction = str(request.TransactionUID)
    except (AttributeError, TypeError) as error:
        raise RequestError(type(error).__name__) from None
    if not valid_uid(transaction) or not references or not all(valid_uid(uid) for pair in references for uid in pair):
        raise RequestError("a UID is missing or malformed")
    return transaction, references


def _as_file(raw: bytes, transfer_syntax: str) -> bytes:
    return prefix(STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, transfer_syntax) + raw


def look_up(db: sqlite3.Connection, transaction: str, references: list[Reference]) -> Verdict:
    """Commit to every instance whose bytes are in the spool under the class that is named."""
    verdict = Verdict(transaction)
    for reference in references:
        sop_class, sop_uid = reference
        rows = db.execute("SELECT sop_class FROM instances WHERE sop_uid=? AND state<>'purged'", (sop_uid,)).fetchall()
        if (sop_class,) in rows:
            verdict.committed.append(reference)
        else:
            verdict.failed.append((reference, CLASS_CONFLICT if rows else NO_SUCH_INSTANCE))
    return verdict


def complete(db: sqlite3.Connection, lock: WriteLock, verdict: Verdict) -> None:
    """Whoever asks to be promised everything that is here of a study is done sending it."""
    asked: Counter[str] = Counter()
    for _, uid in verdict.committed:
        row = db.execute("SELECT study_key FROM instances WHERE sop_uid=? AND state='received'", (uid,)).fetchone()
        if row is not None:
            asked[row[0]] += 1
    query = "UPDATE studies SET state='complete' WHERE study_key=? AND state='receiving' AND instances<=?"
    with transaction(db, lock) as writing:
        writing.executemany(query, asked.items())


def report_of(verdict: Verdict) -> tuple[int, Dataset]:
    """Event type and data set of the N-EVENT-REPORT (PS3.4 table J.3-2)."""
    report = Dataset()
    report.TransactionUID = verdict.transaction
    if verdict.failed:
        report.FailedSOPSequence = [_item(reference, reason) for reference, reason in verdict.failed]
    if verdict.committed:
        report.ReferencedSOPSequence = [_item(reference) for reference in verdict.committed]
    return (FAILURES_EXIST if verdict.failed else SUCCESSFUL), report


def _encoded(report: Dataset, transfer_syntax: str) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = transfer_syntax != EXPLICIT_BE, transfer_syntax == IMPLICIT_LE
    write_dataset(out, report)
    return bytes(out.getvalue())


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    if reason is not None:
        item.FailureReason = reason
    return item


class CommitmentRequest:
    """An N-ACTION being received: collects its data set, answers it, reports."""

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
        if len(self._data) > _LARGEST_REQUEST:
            raise pdu.PduError("a storage commitment request is larger than any real one")
        if last:
            self._answer()
        return last

    def _answer(self) -> None:
        association, command = self._association, self._command
        syntax = association.contexts[self._context_id][1]
        if command.number(dimse.ACTION_TYPE) != _REQUEST_COMMITMENT:
            association.reply(self._context_id, command, dimse.NO_SUCH_ACTION)
            return
        if command.uid(dimse.REQUESTED_INSTANCE) != STORAGE_COMMITMENT_INSTANCE:
            association.reply(self._context_id, command, dimse.NO_SUCH_INSTANCE)
            return
        try:
            uid, references = parse_request(bytes(self._data), syntax)
        except RequestError:
            association.reply(self._context_id, command, dimse.INVALID_ARGUMENT)
            return
        verdict = look_up(association.service.ingest.db, uid, references)
        owed = self._owe(verdict, references)
        association.reply(self._context_id, command, dimse.SUCCESS)
        association.service.count(association.calling_ae, "committed", len(verdict.committed))
        association.service.count(association.calling_ae, "not committed", len(verdict.failed))
        event, report = report_of(verdict)
        request = dimse.event_report_rq(STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, event)
        association.owed = owed
        association.send(
            pdu.p_data(self._context_id, request, command=True, max_length=association.max_length)
            + pdu.p_data(self._context_id, _encoded(report, syntax), command=False, max_length=association.max_length)
        )
        ingest = association.service.ingest
        complete(ingest.db, ingest.lock, verdict)

    def _owe(self, verdict: Verdict, references: list[Reference]) -> str:
        """Queue the report where the peer's address is known; -> its key in the queue, or ""."""
        service = self._association.service
        peer = service.settings.peers.get(self._association.calling_ae)
        if peer is None:
            return ""
        key = f"{peer}|{verdict.transaction}"
        payload = {"peer": peer, "transaction": verdict.transaction, "references": references}
        service.reports.put(key, payload, GRACE_SECONDS)
        return key
