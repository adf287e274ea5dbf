"""DICOM on a bare socket, so that tests can also say what no toolkit would."""

from __future__ import annotations

import socket
import struct
from typing import Self

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT, IMPLICIT, BIG, DEFLATED = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
STUDY, SERIES = "2.25.1111", "2.25.2222"
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OF", b"OD", b"OL", b"OV")


def element(tag: int, vr: str, value: str | bytes) -> bytes:
    """One explicit VR little endian element."""
    raw = value.encode("latin-1") if isinstance(value, str) else value
    if len(raw) % 2:
        raw += b"\0" if vr in ("UI", "OB", "UN") else b" "
    code = vr.encode()
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + code
    return head + (struct.pack("<xxI", len(raw)) if code in _LONG else struct.pack("<H", len(raw))) + raw


def dataset(
    sop_uid: str,
    *,
    sop_class: str = CT,
    study: str | None = STUDY,
    series: str | None = SERIES,
    patient: str = "PID-1",
    accession: str = "A-1",
    pixels: bytes = b"\1\2" * 128,
    extra: bytes = b"",
) -> bytes:
    """A small explicit VR data set; `extra` stands between the series UID and the pixels."""
    parts = [
        element(0x00080005, "CS", "ISO_IR 100"),
        element(0x00080016, "UI", sop_class),
        element(0x00080018, "UI", sop_uid),
        element(0x00080050, "SH", accession),
        element(0x00080060, "CS", "CT"),
        element(0x00100010, "PN", "Planted^Name"),
        element(0x00100020, "LO", patient),
        element(0x0020000D, "UI", study) if study is not None else b"",
        element(0x0020000E, "UI", series) if series is not None else b"",
        extra,
        element(0x7FE00010, "OW", pixels),
    ]
    return b"".join(parts)


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def context(context_id: int, abstract: str, *transfer: str) -> bytes:
    return item(
        0x20,
        bytes([context_id, 0, 0, 0])
        + item(0x30, abstract.encode())
        + b"".join(item(0x40, t.encode()) for t in transfer or (EXPLICIT,)),
    )


def associate_rq(
    contexts: bytes,
    *,
    calling: bytes = b"TESTSCU",
    called: bytes = b"TEST",
    version: int = 1,
    app: str = "",
    user: bytes = b"",
) -> bytes:
    body = struct.pack(">Hxx", version) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    body += item(0x10, (app or "1.2.840.10008.3.1.1.1").encode()) + contexts
    body += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"2.25.7") + user)
    return pdu(1, body)


def command(**elements: int | str) -> bytes:
    """A command set from keyword names: `field`, `message_id`, `data_set`, `sop_class`, `instance`, `priority`."""
    numbers = {
        "sop_class": 0x0002, "field": 0x0100, "message_id": 0x0110, "priority": 0x0700, "data_set": 0x0800, "instance": 0x1000,
    }  # fmt: skip
    out = b""
    for name, number in numbers.items():
        if name in elements:
            value = elements[name]
            raw = struct.pack("<H", value) if isinstance(value, int) else value.encode("latin-1")
            raw += b"\0" * (len(raw) % 2)
            out += struct.pack("<HHI", 0, number, len(raw)) + raw
    return struct.pack("<HHII", 0, 0, 4, len(out)) + out


def store_rq(sop_uid: str, sop_class: str = CT, message_id: int = 1, data_set: int = 1) -> bytes:
    return command(sop_class=sop_class, field=1, message_id=message_id, priority=0, data_set=data_set, instance=sop_uid)


ECHO_RQ = command(sop_class=VERIFICATION, field=0x30, message_id=1, data_set=0x0101)


def pdv(context_id: int, control: int, payload: bytes) -> bytes:
    return struct.pack(">IBB", len(payload) + 2, context_id, control) + payload


def p_data(context_id: int, control: int, payload: bytes) -> bytes:
    return pdu(4, pdv(context_id, control, payload))


class Closed(Exception):
    """The peer closed, or reset, the connection."""


class Raw:
    """A connection that reads PDUs one at a time."""

    def __init__(self, port: int, timeout: float = 10) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, *data: bytes) -> None:
        try:
            self.socket.sendall(b"".join(data))
        except (BrokenPipeError, ConnectionResetError):
            pass  # what the peer said before is still to be read

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError:
                raise Closed from None
            if not more:
                raise Closed
            data += more
        return data

    def read(self) -> tuple[int, bytes]:
        """(type, body) of the next PDU; Closed at the end of the connection."""
        kind, length = struct.unpack(">BxI", self._exactly(6))
        return kind, self._exactly(length)

    def associate(self, *contexts: bytes, **options: object) -> tuple[int, bytes]:
        wanted = b"".join(contexts) or context(1, CT) + context(3, VERIFICATION)
        self.send(associate_rq(wanted, **options))  # type: ignore[arg-type]
        return self.read()

    def status(self) -> int:
        """The status of the DIMSE response that comes next."""
        kind, body = self.read()
        assert kind == 4, f"PDU type {kind} {body!r}"
        at, found = 6, {}
        while at < len(body):
            _, number, length = struct.unpack_from("<HHI", body, at)
            found[number] = body[at + 8 : at + 8 + length]
            at += 8 + length
        return int.from_bytes(found[0x0900], "little")

    def store(self, sop_uid: str, data: bytes, *, context_id: int = 1, step: int = 16000, sop_class: str = CT) -> int:
        self.send(p_data(context_id, 3, store_rq(sop_uid, sop_class)))
        for at in range(0, len(data), step) or (0,):
            self.send(p_data(context_id, 2 if at + step >= len(data) else 0, data[at : at + step]))
        return self.status()

    def release(self) -> int:
        self.send(pdu(5, bytes(4)))
        return self.read()[0]


def accepted(body: bytes) -> dict[int, int]:
    """{context id: result} of an A-ASSOCIATE-AC."""
    at, found = 68, {}
    while at < len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        if kind == 0x21:
            found[body[at + 4]] = body[at + 6]
        at += 4 + length
    return found


def echo(port: int) -> int:
    """C-ECHO on a clean association."""
    with Raw(port) as raw:
        kind, _ = raw.associate(context(1, VERIFICATION))
        assert kind == 2, f"the association was answered with PDU type {kind}"
        raw.send(p_data(1, 3, ECHO_RQ))
        status = raw.status()
        assert raw.release() == 6
        return status
