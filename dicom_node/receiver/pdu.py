"""Upper-layer PDUs as bytes (PS3.8 section 9.3): A-ASSOCIATE-RQ read without trust, the answers written.

Nothing here allocates by a length it was told: every length is checked against the bytes at hand first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct, pack

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
MAX_ASSOCIATE_RQ = 1 << 20

_ITEM = Struct(">BxH")
_FIXED = 68  # protocol version to reserved bytes

RELEASE_REPLY = pack(">BxI4x", RELEASE_RP, 4)


class PduError(ValueError):
    """The peer broke the protocol; `reason` is the A-ABORT reason (PS3.8 table 9-26)."""

    def __init__(self, message: str, reason: int = 6) -> None:
        super().__init__(message)
        self.reason = reason


UNRECOGNISED, UNEXPECTED, UNRECOGNISED_PARAMETER, UNEXPECTED_PARAMETER, INVALID_PARAMETER = 1, 2, 4, 5, 6


@dataclass(frozen=True, slots=True)
class PresentationContext:
    """One proposed presentation context."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(slots=True)
class AssociateRequest:
    """What an A-ASSOCIATE-RQ asks for."""

    protocol_version: int
    called_ae: str
    calling_ae: str
    application_context: str = ""
    contexts: list[PresentationContext] = field(default_factory=list)
    max_length: int = 0
    implementation_class: str = ""
    implementation_version: str = ""
    roles: dict[str, tuple[bool, bool]] = field(default_factory=dict)


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip(" \0")


def _items(data: bytes, start: int, end: int) -> Sequence[tuple[int, int, int]]:
    """(type, start, end) of each item between two positions, which they must fill exactly."""
    found = []
    while start < end:
        if end - start < 4:
            raise PduError("an item is cut short")
        kind, length = _ITEM.unpack_from(data, start)
        start += 4
        if start + length > end:
            raise PduError("an item is longer than what holds it")
        found.append((kind, start, start + length))
        start += length
    return found


def parse_associate_rq(body: bytes) -> AssociateRequest:
    """Read the body of an A-ASSOCIATE-RQ (after the 6-byte PDU header). Raises PduError."""
    if len(body) < _FIXED:
        raise PduError("the A-ASSOCIATE-RQ is shorter than its fixed fields")
    request = AssociateRequest(int.from_bytes(body[:2], "big"), _text(body[4:20]), _text(body[20:36]))
    for kind, start, end in _items(body, _FIXED, len(body)):
        if kind == 0x10:
            request.application_context = _text(body[start:end])
        elif kind == 0x20:
            request.contexts.append(_context(body, start, end))
        elif kind == 0x50:
            _user_information(body, start, end, request)
    ids = [context.context_id for context in request.contexts]
    if not ids:
        raise PduError("the A-ASSOCIATE-RQ proposes no presentation context")
    if len(set(ids)) != len(ids):
        raise PduError("a presentation context identifier is used twice")
    return request


def _context(body: bytes, start: int, end: int) -> PresentationContext:
    if end - start < 4:
        raise PduError("a presentation context is cut short")
    abstract, transfer = [], []
    for kind, first, last in _items(body, start + 4, end):
        if kind == 0x30:
            abstract.append(_text(body[first:last]))
        elif kind == 0x40:
            transfer.append(_text(body[first:last]))
    if body[start] % 2 == 0:
        raise PduError("a presentation context identifier is not odd")
    if len(abstract) != 1 or not transfer:
        raise PduError("a presentation context lacks its abstract or transfer syntax")
    return PresentationContext(body[start], abstract[0], tuple(transfer))


def _user_information(body: bytes, start: int, end: int, request: AssociateRequest) -> None:
    for kind, first, last in _items(body, start, end):
        if kind == 0x51:
            if last - first != 4:
                raise PduError("the maximum length item has not four bytes")
            request.max_length = int.from_bytes(body[first:last], "big")
        elif kind == 0x52:
            request.implementation_class = _text(body[first:last])
        elif kind == 0x55:
            request.implementation_version = _text(body[first:last])
        elif kind == 0x54:
            _role(body, first, last, request)


def _role(body: bytes, first: int, last: int, request: AssociateRequest) -> None:
    length = int.from_bytes(body[first : first + 2], "big")
    if last - first != length + 4:
        raise PduError("a role selection item has a wrong length")
    request.roles[_text(body[first + 2 : last - 2])] = (body[last - 2] == 1, body[last - 1] == 1)


def _item(kind: int, body: bytes) -> bytes:
    return _ITEM.pack(kind, len(body)) + body


def associate_ac(
    request_body: bytes, results: Sequence[tuple[int, int, str]], max_length: int, implementation: tuple[str, str]
) -> bytes:
    """A-ASSOCIATE-AC for (context id, result, transfer syntax) triples; AE titles are returned as they were sent."""
    contexts = b"".join(
        _item(0x21, pack(">BxBx", context_id, result) + _item(0x40, transfer_syntax.encode("ascii", "replace")))
        for context_id, result, transfer_syntax in results
    )
    user = _item(0x51, max_length.to_bytes(4, "big"))
    user += _item(0x52, implementation[0].encode()) + _item(0x55, implementation[1].encode())
    body = b"\0\1\0\0" + request_body[4:36] + bytes(32)
    body += _item(0x10, APPLICATION_CONTEXT.encode()) + contexts + _item(0x50, user)
    return pack(">BxI", ASSOCIATE_AC, len(body)) + body


def associate_rj(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return pack(">BxIxBBB", ASSOCIATE_RJ, 4, result, source, reason)


def abort(source: int, reason: int) -> bytes:
    """A-ABORT: source 0 is the service user, 2 the service provider (PS3.8 table 9-26)."""
    return pack(">BxI2xBB", ABORT, 4, source, reason)


def p_data(context_id: int, payload: bytes, *, command: bool, max_length: int) -> bytes:
    """P-DATA-TF PDUs for one message part, no PDU longer than the peer allows (0: no limit)."""
    step = max(1, max_length - 6) if max_length else len(payload) or 1
    pdus = []
    for at in range(0, len(payload) or 1, step):
        piece = payload[at : at + step]
        control = (1 if command else 0) | (2 if at + step >= len(payload) else 0)
        pdus.append(pack(">BxIIBB", P_DATA, len(piece) + 6, len(piece) + 2, context_id, control) + piece)
    return b"".join(pdus)
