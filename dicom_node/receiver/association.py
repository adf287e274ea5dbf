"""One association: PDUs in place out of one buffer, validated before anything is believed (PS3.8 section 9.2).

The hot path is `on_readable` → `_p_data` → `Transfer.write`: one `recv_into`, a handful of struct reads and one copy a PDU.
"""

from __future__ import annotations

import enum
import socket
import ssl
from struct import Struct

from dicom_node.receiver import dimse, pdu
from dicom_node.receiver.acceptor import Verdict, judge
from dicom_node.receiver.commitment import CommitmentRequest
from dicom_node.receiver.notices import Notice
from dicom_node.receiver.service import Service, log
from dicom_node.receiver.sop_classes import NOTICES, STORAGE_COMMITMENT
from dicom_node.receiver.transfer import Transfer

_PDU_HEADER = Struct(">BxI")
_PDV_HEADER = Struct(">IBB")
_FIRST_BUFFER = 8 << 10
_MAX_CONTROL = 1024
_MAX_UNSENT = 1 << 20
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class State(enum.Enum):
    """Where the association stands; PS3.8's sixteen states as far as an acceptor needs them."""

    HANDSHAKE = "TLS handshake"
    AWAIT_REQUEST = "waiting for A-ASSOCIATE-RQ"
    ESTABLISHED = "established"
    CLOSING = "waiting for the peer to close"
    CLOSED = "closed"


class Association:
    """A connection and the association on it. Owned by the event loop."""

    def __init__(self, service: Service, connection: socket.socket, address: str) -> None:
        self.service = service
        self.socket = connection
        self.fd = connection.fileno()
        self.address = address
        self.tls = isinstance(connection, ssl.SSLSocket)
        self.state = State.HANDSHAKE if self.tls else State.AWAIT_REQUEST
        self.opened_at = self.last_byte = self.pdu_started = service.now
        self.busy = False  # an object is being committed; nothing more is read until it is answered
        self.unsent = bytearray()
        self.calling_ae = ""
        self.max_length = 0
        self.contexts: dict[int, tuple[str, str]] = {}
        self.transfer: Transfer | None = None
        self.owed = ""  # the queued storage commitment report that the peer has not acknowledged yet
        self._sink: DataSink | CommitmentRequest | Notice | None = None
        self._command = bytearray()
        self._command_context = 0
        self._buffer = bytearray(_FIRST_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    # -- bytes in -----------------------------------------------------------------------------------------------------

    def on_readable(self) -> bool:
        """Read once and act on every whole PDU; True when a TLS layer holds more that epoll cannot see."""
        if self.state is State.HANDSHAKE and not self._handshake():
            return False
        try:
            count = self.socket.recv_into(self._room())
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            self.close("connection lost")
            return False
        if count == 0:
            self.close("connection closed by the peer")
            return False
        self.last_byte = self.service.now
        if self.state is State.CLOSING:
            self._start = self._end = 0
            return False
        if self._end == self._start:
            self.pdu_started = self.last_byte
        self._end += count
        self.process()
        if not self.busy and _QUICKACK is not None and self.state is State.ESTABLISHED:
            # A sender with Nagle on holds the next piece back until this one is acknowledged; re-armed, since Linux disarms it.
            self.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return self.tls and self.state is not State.CLOSED and self.socket.pending() > 0  # type: ignore[attr-defined]

    def _handshake(self) -> bool:
        try:
            self.socket.do_handshake()  # type: ignore[attr-defined]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except (ssl.SSLError, OSError) as error:
            self.service.count(self.address, "rejected: TLS handshake failed")
            self.close(f"TLS handshake failed ({getattr(error, 'reason', None) or type(error).__name__})")
            return False
        self.state = State.AWAIT_REQUEST
        return True

    def _room(self) -> memoryview:
        """Free space to read into: what is unread moves to the front first when the rest has become small."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and len(self._buffer) - self._end < len(self._buffer) // 2:
            size = self._end - self._start
            self._view[:size] = self._view[self._start : self._end]
            self._start, self._end = 0, size
        return self._view[self._end :]

    def _grow(self, size: int) -> None:
        """Make room for `size` bytes in one piece; only ever called with a length that was checked."""
        if size > len(self._buffer):
            grown = bytearray(size)
            unread = self._end - self._start
            grown[:unread] = self._view[self._start : self._end]
            self._view.release()
            self._buffer, self._view = grown, memoryview(grown)
            self._start, self._end = 0, unread

    def process(self) -> None:
        """Act on every whole PDU that is here, until an object has to be committed first."""
        try:
            while not self.busy and self.state in (State.AWAIT_REQUEST, State.ESTABLISHED):
                available = self._end - self._start
                if available < 6:
                    break
                kind, length = _PDU_HEADER.unpack_from(self._buffer, self._start)
                self._check_length(kind, length)
                if available < 6 + length:
                    self._grow(6 + length)
                    break
                body = self._start + 6
                self._start = body + length
                self.pdu_started = self.service.now
                self._dispatch(kind, body, body + length)
        except (pdu.PduError, dimse.CommandError) as error:
            self.abort(getattr(error, "reason", pdu.INVALID_PARAMETER), str(error))

    def _check_length(self, kind: int, length: int) -> None:
        if kind == pdu.P_DATA and self.state is State.ESTABLISHED:
            most = self.service.settings.max_pdu
        elif kind == pdu.ASSOCIATE_RQ and self.state is State.AWAIT_REQUEST:
            most = pdu.MAX_ASSOCIATE_RQ
        elif pdu.ASSOCIATE_RQ <= kind <= pdu.ABORT:
            most = _MAX_CONTROL if kind != pdu.P_DATA else -1
        else:
            raise pdu.PduError("a PDU is of no known type", pdu.UNRECOGNISED)
        if most < 0 or (kind == pdu.ASSOCIATE_RQ and self.state is not State.AWAIT_REQUEST):
            raise pdu.PduError("a PDU came out of order", pdu.UNEXPECTED)
        if length > most:
            raise pdu.PduError("a PDU is longer than was negotiated")

    def _dispatch(self, kind: int, start: int, end: int) -> None:
        if kind == pdu.P_DATA:
            self._p_data(start, end)
        elif kind == pdu.ASSOCIATE_RQ:
            self._associate(bytes(self._view[start:end]))
        elif kind == pdu.ABORT:
            self.close("aborted by the peer")
        elif kind == pdu.RELEASE_RQ and self.state is State.ESTABLISHED:
            self._end_message("released in the middle of a message")
            self.send(pdu.RELEASE_REPLY)
            self.finish_sending()
        else:
            raise pdu.PduError("a PDU came out of order", pdu.UNEXPECTED)

    # -- negotiation --------------------------------------------------------------------------------------------------

    def _associate(self, body: bytes) -> None:
        verdict: Verdict = judge(body, self.address, self.service)
        self.calling_ae = verdict.calling_ae
        if verdict.contexts is None:
            self.service.count(verdict.calling_ae, f"rejected: {verdict.reason}")
            log.warning("association.rejected", calling_ae=verdict.calling_ae, reason=verdict.reason)
            self.send(verdict.answer)
            self.finish_sending()
            return
        self.contexts, self.max_length = verdict.contexts, verdict.max_length
        self.state = State.ESTABLISHED
        self.service.established += 1
        self._grow(2 * (self.service.settings.max_pdu + 6))
        self.send(verdict.answer)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _p_data(self, pos: int, end: int) -> None:
        if pos == end:
            raise pdu.PduError("a P-DATA-TF holds no presentation data value")
        while pos < end:
            if self.busy or self.state is not State.ESTABLISHED:
                raise pdu.PduError("a message starts before the one before it was answered", pdu.UNEXPECTED)
            if end - pos < 6:
                raise pdu.PduError("a presentation data value is cut short")
            length, context_id, control = _PDV_HEADER.unpack_from(self._buffer, pos)
            after = pos + 4 + length
            if length < 2 or after > end:
                raise pdu.PduError("a presentation data value has a wrong length")
            if context_id not in self.contexts:
                raise pdu.PduError("a presentation data value names a context that was not accepted")
            if control & 1:
                self._command_fragment(context_id, self._view[pos + 6 : after], bool(control & 2))
            else:
                self._data_fragment(context_id, self._view[pos + 6 : after], bool(control & 2))
            pos = after

    def _command_fragment(self, context_id: int, piece: memoryview, last: bool) -> None:
        if self.transfer is not None or self._sink is not None:
            raise pdu.PduError("a command came where a data set was to go on", pdu.UNEXPECTED_PARAMETER)
        if self._command and context_id != self._command_context:
            raise pdu.PduError("a command changes its presentation context", pdu.UNEXPECTED_PARAMETER)
        self._command_context = context_id
        self._command += piece
        if len(self._command) > dimse.MAX_COMMAND_SET:
            raise pdu.PduError("a command set is larger than any real one")
        if last:
            raw = bytes(self._command)
            self._command.clear()
            self._on_command(context_id, dimse.parse_command(raw))

    def _on_command(self, context_id: int, command: dimse.Command) -> None:
        field = command.number(dimse.FIELD) or 0
        if field == dimse.C_STORE_RQ and command.has_data_set:
            self.transfer = Transfer(self.service, command, context_id, self.contexts[context_id], self.calling_ae)
        elif field == dimse.C_ECHO_RQ and not command.has_data_set:
            self.service.count(self.calling_ae, "echo")
            self.reply(context_id, command, dimse.SUCCESS)
        elif field == dimse.N_ACTION_RQ and command.has_data_set and self.contexts[context_id][0] == STORAGE_COMMITMENT:
            self._sink = CommitmentRequest(self, context_id, command)
        elif field in (dimse.N_CREATE_RQ, dimse.N_SET_RQ) and self._takes_notices(context_id, command):
            self._sink = Notice(self, context_id, command)
        elif field == dimse.C_CANCEL_RQ or field & dimse.RESPONSE:
            self._on_response(field, command)
            if command.has_data_set:
                self._sink = DataSink(self, context_id, command, None)
        elif command.has_data_set:
            self._sink = DataSink(self, context_id, command, dimse.UNRECOGNISED_OPERATION)
        else:
            status = dimse.CANNOT_UNDERSTAND if field == dimse.C_STORE_RQ else dimse.UNRECOGNISED_OPERATION
            self.reply(context_id, command, status)

    def _takes_notices(self, context_id: int, command: dimse.Command) -> bool:
        return command.has_data_set and self.contexts[context_id][0] in NOTICES

    def _on_response(self, field: int, command: dimse.Command) -> None:
        """The acknowledgement of a storage commitment report: it is owed no more."""
        acknowledged = (
            field == dimse.N_EVENT_REPORT_RQ | dimse.RESPONSE and command.number(dimse.STATUS) == dimse.SUCCESS
        )
        if acknowledged and self.owed:
            self.service.reports.cancel(self.owed)
            self.owed = ""

    def _data_fragment(self, context_id: int, piece: memoryview, last: bool) -> None:
        if self._sink is not None:
            if self._sink.write(context_id, piece, last):
                self._sink = None
            return
        transfer = self.transfer
        if transfer is None:
            raise pdu.PduError("a data set came without its command", pdu.UNEXPECTED_PARAMETER)
        if context_id != transfer.context_id:
            raise pdu.PduError("a data set changes its presentation context", pdu.UNEXPECTED_PARAMETER)
        transfer.write(piece)
        if last:
            self.transfer = None
            if transfer.finish():
                self.busy = True
                self.service.ready.append((self, transfer))
            else:
                self.refuse(transfer)

    def refuse(self, transfer: Transfer) -> None:
        """Answer an object that is not taken."""
        refusal = transfer.refusal
        assert refusal is not None
        self.service.count(self.calling_ae, f"refused: {refusal.reason}")
        log.warning(
            "instance.refused", calling_ae=self.calling_ae, status=f"0x{refusal.status:04X}", reason=refusal.reason
        )
        self.reply(transfer.context_id, transfer.command, refusal.status, refusal.reason)

    def reply(self, context_id: int, command: dimse.Command, status: int, comment: str = "") -> None:
        self.send(
            pdu.p_data(context_id, dimse.response(command, status, comment), command=True, max_length=self.max_length)
        )

    @property
    def in_message(self) -> bool:
        """True while the peer owes the rest of a PDU or of a message."""
        return self._end != self._start or self.transfer is not None or self._sink is not None or bool(self._command)

    # -- bytes out, and the end ---------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send now what the socket takes, keep the rest for `on_writable`."""
        if self.state is State.CLOSED:
            return
        self.unsent += data
        if len(self.unsent) > _MAX_UNSENT:
            self.close("the peer does not read its answers")
            return
        self.on_writable()

    def on_writable(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError:
            self.close("connection lost")

    def abort(self, reason: int, why: str, source: int = 2) -> None:
        """Send A-ABORT and wait for the peer to close."""
        if self.state in (State.CLOSING, State.CLOSED):
            return
        log.warning("association.aborted", calling_ae=self.calling_ae, reason=why)
        self.service.count(self.calling_ae or "(unknown)", f"aborted: {why}")
        self.send(pdu.abort(source, reason))
        self.finish_sending()

    def finish_sending(self) -> None:
        """Nothing more will be sent: half-close, so that the last PDU arrives even where the peer is still sending."""
        if self.state is State.CLOSED:
            return
        self._leave()
        self.state = State.CLOSING
        self.last_byte = self.service.now
        if not self.unsent and not self.tls:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.close("connection lost")

    def close(self, why: str) -> None:
        if self.state is State.CLOSED:
            return
        if self.state is State.ESTABLISHED and why != "closed":
            log.info("association.ended", calling_ae=self.calling_ae, reason=why)
        self._leave()
        self.state = State.CLOSED
        self.socket.close()

    def _leave(self) -> None:
        if self.state is State.ESTABLISHED:
            self.service.established -= 1
            self._end_message("")

    def _end_message(self, why: str) -> None:
        if self.transfer is not None:
            self.transfer.abandon()
            self.transfer = None
            self.service.count(self.calling_ae, "refused: association ended in the middle of an object")
        self._sink = None


class DataSink:
    """Reads a data set nobody asked for to its end and answers it with a status (None: no answer)."""

    def __init__(self, association: Association, context_id: int, command: dimse.Command, status: int | None) -> None:
        self._association = association
        self._context_id = context_id
        self._command = command
        self._status = status

    def write(self, context_id: int, piece: memoryview, last: bool) -> bool:
        if context_id != self._context_id:
            raise pdu.PduError("a data set changes its presentation context", pdu.UNEXPECTED_PARAMETER)
        if last and self._status is not None:
            self._association.reply(self._context_id, self._command, self._status)
        return last
