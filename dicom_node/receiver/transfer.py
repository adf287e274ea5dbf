"""One C-STORE operation, from its command to an instance that is ready to be committed, or to the reason it is refused.

The data set is held in a slab while it is small and streamed into a segment of its own when it is not; a refused one is read and
forgotten. Every check comes before the answer: Success (0x0000) means whole, matching, identified and durable.
"""

from __future__ import annotations

from dicom_node.receiver import dimse
from dicom_node.receiver.service import Service
from dicom_node.spool import DataSetError, Header, Incoming, Outcome, scan, valid_uid
from dicom_node.spool.digest import Digest
from dicom_node.spool.header import DEFLATED_LE, JPIP_DEFLATED
from dicom_node.spool.ingest import LargeObject
from dicom_node.spool.part10 import prefix
from dicom_node.spool.segment import BLOCK, HEADER_SIZE
from dicom_node.spool.slab import Slab

_ALONE_AT_LEAST = 64 << 10  # written straight from its slab; smaller ones are gathered into one write
_SPILL_AT_LEAST = 256 << 10
_NO_STUDY = "the data set names no Study or Series Instance UID"

STATUS_OF = {
    Outcome.STORED: dimse.SUCCESS,
    Outcome.DUPLICATE: dimse.SUCCESS,
    Outcome.CONFLICT: dimse.SUCCESS,
    Outcome.QUARANTINED: dimse.STORED_BUT_QUARANTINED,
}


class Refusal(Exception):
    """The object is not taken: the status that says so, and a reason without any value of it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Transfer:
    """A C-STORE operation in progress."""

    __slots__ = (
        "_data_at", "_digest", "_head", "_large", "_service", "_slab", "_transfer_syntax",
        "command", "context_id", "incoming", "refusal", "size", "source",
    )  # fmt: skip

    def __init__(
        self, service: Service, command: dimse.Command, context_id: int, syntaxes: tuple[str, str], source: str
    ) -> None:
        """`syntaxes` are the abstract and transfer syntax of the presentation context; `source` the calling AE title."""
        self._service = service
        self.command = command
        self.context_id = context_id
        self.source = source
        self._transfer_syntax = syntaxes[1]
        self._digest = Digest()
        self._large: LargeObject | None = None
        self._slab: Slab | None = None
        self.size = 0
        self.incoming: Incoming | None = None
        self.refusal = self._refuse_early(syntaxes[0])
        if self.refusal is None:
            self._head = prefix(command.uid(dimse.CLASS), command.uid(dimse.INSTANCE), syntaxes[1], source)
            self._data_at = HEADER_SIZE + len(self._head)
            self._slab = service.slabs.take()

    def _refuse_early(self, abstract: str) -> Refusal | None:
        command = self.command
        if command.uid(dimse.CLASS) != abstract:
            return Refusal(dimse.CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context")
        if not valid_uid(command.uid(dimse.INSTANCE)):
            return Refusal(dimse.INVALID_INSTANCE, "affected SOP Instance UID is not a UID")
        if self._service.disk_is_full():
            return Refusal(dimse.OUT_OF_RESOURCES, "disk watermark reached")
        return None

    # -- receiving ----------------------------------------------------------------------------------------------------

    def write(self, piece: memoryview) -> None:
        """Take the next fragment; copies it, since the buffer it lies in is used again."""
        length = len(piece)
        if self.refusal is None and self._large is None and not self._holds(length):
            self._spill()
        self.size += length
        if self.refusal is not None:
            return
        if self._large is not None:
            self._stream(self._large, piece)
            return
        assert self._slab is not None
        end = self._data_at + self.size
        self._slab.view[end - length : end] = piece
        self._digest.update(self._slab.view[end - length : end])
        self._service.memory += length

    def _holds(self, more: int) -> bool:
        """Whether the object with `more` bytes is still to be held in memory."""
        service, size = self._service, self.size + more
        if size > service.settings.spill_bytes or self._data_at + size + BLOCK > service.slabs.size:
            return False
        return size <= _SPILL_AT_LEAST or service.memory + more <= service.settings.memory_bytes

    def _held(self) -> memoryview:
        assert self._slab is not None
        return self._slab.view[self._data_at : self._data_at + self.size]

    def _spill(self) -> None:
        """Move what is held into a segment of its own, once its head has been checked."""
        try:
            self._check(scan(self._held(), self._transfer_syntax, whole=False))
            self._large = self._service.ingest.large(self.source)
            self._large.begin(self._head)
            self._large.write([self._held()])
            self._digest.settle()
            self._release_slab()
        except Refusal as refusal:
            self._refuse(refusal)
        except DataSetError as error:
            self._refuse(Refusal(dimse.CANNOT_UNDERSTAND, str(error)))
        except OSError:
            self._refuse(Refusal(dimse.OUT_OF_RESOURCES, "disk full"))

    def _stream(self, large: LargeObject, piece: memoryview) -> None:
        chunk = bytes(piece)
        self._digest.update(chunk)
        try:
            if self._service.disk_is_full():
                raise OSError("disk watermark reached")
            large.write([chunk])
        except OSError:
            self._refuse(Refusal(dimse.OUT_OF_RESOURCES, "disk full"))

    def _refuse(self, refusal: Refusal) -> None:
        # A copy: one that was raised holds its traceback, and by its frames the association with its buffers.
        self.refusal = Refusal(refusal.status, refusal.reason)
        self._release_slab()
        if self._large is not None:
            self._large.abandon()
            self._large = None

    def _release_slab(self) -> None:
        """Give back the memory that the object was counted with."""
        if self._slab is not None:
            self._service.memory -= self.size
            self._service.slabs.give(self._slab, self._data_at + self.size)
            self._slab = None

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> bool:
        """The last fragment is here: True when there is an instance to commit, False when it is refused."""
        if self.refusal is None:
            try:
                self.incoming = self._validated()
            except Refusal as refusal:
                self._refuse(refusal)
        return self.refusal is None

    def _validated(self) -> Incoming:
        if self._large is not None:
            return self._validated_large(self._large)
        data = self._held()
        try:
            header = scan(data, self._transfer_syntax)
        except DataSetError as error:
            raise Refusal(dimse.CANNOT_UNDERSTAND, str(error)) from None
        reason = self._check(header)
        item = Incoming(header, self._transfer_syntax, self.source, self._digest, self.size, (data,), reason)
        if self.size >= _ALONE_AT_LEAST:
            item.slab, item.data_at = self._slab, self._data_at
        return item

    def _validated_large(self, large: LargeObject) -> Incoming:
        deflated = self._transfer_syntax == DEFLATED_LE or self._transfer_syntax in JPIP_DEFLATED
        try:
            with large.mapped() as data:
                header = scan(data[: 1 << 20] if deflated else data, self._transfer_syntax, whole=not deflated)
        except DataSetError as error:
            raise Refusal(dimse.CANNOT_UNDERSTAND, str(error)) from None
        reason = self._check(header)
        item = Incoming(header, self._transfer_syntax, self.source, self._digest, self.size, (), reason)
        item.placed = large
        return item

    def _check(self, header: Header) -> str:
        """Why the object goes to quarantine, or ''. Raises Refusal where it may not even be kept."""
        command = self.command
        if header.fault and not (header.sop_uid and header.sop_class):
            raise Refusal(dimse.CANNOT_UNDERSTAND, header.fault)
        if header.sop_uid != command.uid(dimse.INSTANCE) or header.sop_class != command.uid(dimse.CLASS):
            raise Refusal(
                dimse.DATA_SET_MISMATCH, "SOP class or instance UID of the data set is not that of the command"
            )
        for uid in (header.study_uid, header.series_uid):
            if uid and not valid_uid(uid):
                raise Refusal(dimse.CANNOT_UNDERSTAND, "Study or Series Instance UID is not a UID")
        if header.fault:
            return header.fault
        return "" if header.study_uid and header.series_uid else _NO_STUDY

    def release(self) -> None:
        """The object is committed: nothing of it is needed in memory any more."""
        self._release_slab()

    def abandon(self) -> None:
        """The association ended before the object did, or it could not be kept."""
        self._release_slab()
        if self._large is not None:
            self._large.abandon()
            self._large = None
