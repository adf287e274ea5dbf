"""Storage Commitment Push Model, SCP side (PS3.4 annex J): what is asked for is looked up; only what is durable is promised.

The N-EVENT-REPORT follows the N-ACTION response on the same association.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.receiver import dimse, pdu
from dicom_node.receiver.sop_classes import EXPLICIT_BE, IMPLICIT_LE, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from dicom_node.spool import valid_uid
from dicom_node.spool.part10 import prefix

if TYPE_CHECKING:
    from dicom_node.receiver.association import Association

_LARGEST_REQUEST = 16 << 20
_REQUEST_COMMITMENT = 1
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119  # PS3.3 C.14.1.1
SUCCESSFUL, FAILURES_EXIST = 1, 2  # event types, PS3.4 table J.3-1

Reference = tuple[str, str]  # SOP Class UID, SOP Instance UID


class RequestError(ValueError):
    """The N-ACTION's data set is not a commitment request."""


@dataclass
class Verdict:
    """What is held, and what is not and why."""

    transaction: str
    committed: list[Reference] = field(default_factory=list)
    failed: list[tuple[Reference, int]] = field(default_factory=list)


def parse_request(raw: bytes, transfer_syntax: str) -> tuple[str, list[Reference]]:
    """(Transaction UID, references) of an N-ACTION data set. Raises RequestError."""
    try:
        request = dcmread(BytesIO(_as_file(raw, transfer_syntax)))
        references = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in request.ReferencedSOPSequence
        ]
        transaction = str(request.TransactionUID)
    except Exception as error:  # noqa: BLE001 - a parser fed by a peer may raise anything; the peer is told, and we go on
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


def event_report(verdict: Verdict, transfer_syntax: str) -> bytes:
    """The data set of the N-EVENT-REPORT."""
    report = Dataset()
    report.TransactionUID = verdict.transaction
    if verdict.failed:
        report.FailedSOPSequence = [_item(reference, reason) for reference, reason in verdict.failed]
    if verdict.committed:
        report.ReferencedSOPSequence = [_item(reference) for reference in verdict.committed]
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
            transaction, references = parse_request(bytes(self._data), syntax)
        except RequestError:
            association.reply(self._context_id, command, dimse.INVALID_ARGUMENT)
            return
        verdict = look_up(association.service.ingest.db, transaction, references)
        association.reply(self._context_id, command, dimse.SUCCESS)
        association.service.count(association.calling_ae, "committed", len(verdict.committed))
        association.service.count(association.calling_ae, "not committed", len(verdict.failed))
        event = FAILURES_EXIST if verdict.failed else SUCCESSFUL
        report = dimse.event_report_rq(STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, event)
        length = association.max_length
        association.send(
            pdu.p_data(self._context_id, report, command=True, max_length=length)
            + pdu.p_data(self._context_id, event_report(verdict, syntax), command=False, max_length=length)
        )
