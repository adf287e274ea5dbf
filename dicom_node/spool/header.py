"""Walks a received data set once, without decoding it: is it whole, and whose is it?

Only element headers are read; values are skipped, so a walk costs a microsecond an element whatever the object's size, never
recurses (a data set nested a million deep costs a list of a million flags) and never allocates by a length it was told.
Encodings: PS3.5 section 7.1 (explicit and implicit VR), 7.5 (sequences), A.4 (encapsulated), A.5 (deflated).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from struct import Struct

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
GE_IMPLICIT_LE = "1.2.840.113619.5.2"
JPIP_DEFLATED = ("1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")

CHARSET, SOP_CLASS, SOP_UID, ACCESSION, MODALITY = 0x00080005, 0x00080016, 0x00080018, 0x00080050, 0x00080060
PATIENT_ID, STUDY_UID, SERIES_UID, STUDY_INSTANCES = 0x00100020, 0x0020000D, 0x0020000E, 0x00201206
_WANTED = frozenset(
    {CHARSET, SOP_CLASS, SOP_UID, ACCESSION, MODALITY, PATIENT_ID, STUDY_UID, SERIES_UID, STUDY_INSTANCES}
)
_LONG_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_ITEM, _ITEM_END, _SEQUENCE_END, _PIXELS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_MAX_VALUE = 4096  # of the elements wanted; the longest legal one is 64 characters
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*\Z")

# Flags of the walk's stack: inside a sequence or an item, in explicit or implicit VR.
_SEQUENCE, _IMPLICIT = 1, 2

INFLATE_KEEP = 4 << 20  # bytes of a deflated data set that are walked
INFLATE_CHECK = 64 << 20  # bytes inflated to tell a bomb from an image
INFLATE_RATIO = 200

_LITTLE = (Struct("<HH2sH"), Struct("<I"), Struct("<HHI"))
_BIG = (Struct(">HH2sH"), Struct(">I"), Struct(">HHI"))
_Order = tuple[Struct, Struct, Struct]


class DataSetError(ValueError):
    """The data set cannot be what it says it is; the message names no value of it."""


class StructureError(DataSetError):
    """The data set breaks off, or an element in it cannot be told from the next."""


@dataclass(slots=True)
class Header:
    """What the spool must know of an instance. Text is as received, decoded as Latin-1 (identified: left of the wall)."""

    sop_class: str = ""
    sop_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    patient_id: str = ""
    accession: str = ""
    modality: str = ""
    study_instances: int | None = None
    fault: str = ""  # why the data set's structure is not sound, where it is not


def valid_uid(uid: str) -> bool:
    """PS3.5 section 9.1, but leading zeros of a component are let through: real devices send them."""
    return 0 < len(uid) <= 64 and _UID.match(uid) is not None


def scan(data: bytes | bytearray | memoryview, transfer_syntax: str, whole: bool = True) -> Header:
    """Read the header of a data set; with `whole`, also prove that its structure ends where its bytes end.

    `whole=False` is for the head of an object too large to hold: the walk stops at the end of what is there.
    Raises `DataSetError` where the identifying elements contradict each other or a deflated data set is a bomb; a structure
    that breaks off is told in `Header.fault`, with what was found before it.
    """
    found: dict[int, bytes] = {}
    fault = ""
    if transfer_syntax == DEFLATED_LE or transfer_syntax in JPIP_DEFLATED:
        data, whole = _inflate(data, whole)
    with memoryview(data) as view:
        try:
            if transfer_syntax in (IMPLICIT_LE, GE_IMPLICIT_LE):
                _walk_implicit(view, found, whole)
            else:
                _walk_explicit(view, found, whole, _BIG if transfer_syntax == EXPLICIT_BE else _LITTLE)
        except StructureError as error:
            fault = str(error)
            if not found and transfer_syntax not in (IMPLICIT_LE, GE_IMPLICIT_LE):
                fault = _despite_its_syntax(view, found, fault, whole)
    return _header(found, fault)


def _despite_its_syntax(view: memoryview, found: dict[int, bytes], fault: str, whole: bool) -> str:
    """Some writers encode implicit VR whatever the transfer syntax says: find out whose object it is all the same."""
    try:
        _walk_implicit(view, found, whole)
    except StructureError:
        return fault
    return "the data set is encoded in implicit VR, against its transfer syntax" if found else fault


def _header(found: dict[int, bytes], fault: str) -> Header:
    text = {tag: value.decode("latin-1").strip(" \0") for tag, value in found.items()}
    count = text.get(STUDY_INSTANCES, "")
    return Header(
        sop_class=text.get(SOP_CLASS, ""),
        sop_uid=text.get(SOP_UID, ""),
        study_uid=text.get(STUDY_UID, ""),
        series_uid=text.get(SERIES_UID, ""),
        patient_id=text.get(PATIENT_ID, ""),
        accession=text.get(ACCESSION, ""),
        modality=text.get(MODALITY, ""),
        study_instances=int(count) if count.isascii() and count.isdigit() and len(count) < 10 else None,
        fault=fault,
    )


def _keep(found: dict[int, bytes], tag: int, view: memoryview, pos: int, length: int) -> None:
    if length > _MAX_VALUE:
        raise DataSetError("an identifying element is longer than the standard allows")
    value = bytes(view[pos : pos + length])
    if found.setdefault(tag, value) != value:
        raise DataSetError("an identifying element occurs twice with different values")


def _walk_explicit(view: memoryview, found: dict[int, bytes], whole: bool, order: _Order) -> None:
    """The hot path: top-level elements of an explicit VR data set."""
    element, long_length, _ = order
    read, read_long = element.unpack_from, long_length.unpack_from
    pos, end = 0, len(view)
    while pos < end:
        if end - pos < 8:
            return _stop(whole)
        group, number, vr, length = read(view, pos)
        tag = group << 16 | number
        if vr in _LONG_VRS:
            if end - pos < 12:
                return _stop(whole)
            length = read_long(view, pos + 8)[0]
            pos += 12
            if length == _UNDEFINED:
                at = _skip_sequence(view, pos, end, vr == b"UN", order, whole)
                if at < 0:
                    return None
                pos = at
                continue
        elif vr in _SHORT_VRS:
            pos += 8
        else:
            raise StructureError("an element has no known value representation")
        if tag in _WANTED and pos + length <= end:
            _keep(found, tag, view, pos, length)
        pos += length
    if pos > end:
        return _stop(whole and tag != _PIXELS)
    return None


def _walk_implicit(view: memoryview, found: dict[int, bytes], whole: bool) -> None:
    read = _LITTLE[2].unpack_from
    pos, end, tag = 0, len(view), 0
    while pos < end:
        if end - pos < 8:
            return _stop(whole)
        group, number, length = read(view, pos)
        tag = group << 16 | number
        if group == 0xFFFE:
            raise StructureError("an item stands outside a sequence")
        pos += 8
        if length == _UNDEFINED:
            at = _skip_sequence(view, pos, end, True, _LITTLE, whole)
            if at < 0:
                return None
            pos = at
            continue
        if tag in _WANTED and pos + length <= end:
            _keep(found, tag, view, pos, length)
        pos += length
    if pos > end:
        return _stop(whole and tag != _PIXELS)
    return None


def _stop(whole: bool) -> None:
    if whole:
        raise StructureError("the data set ends in the middle of an element")


def _skip_sequence(view: memoryview, pos: int, end: int, implicit: bool, order: _Order, whole: bool) -> int:
    """Position after a sequence (or encapsulated value) of undefined length; -1 where a partial data set ends in it."""
    element, long_length, plain = order
    read, read_long, read_plain = element.unpack_from, long_length.unpack_from, plain.unpack_from
    stack = bytearray([_SEQUENCE | (_IMPLICIT if implicit else 0)])
    while stack:
        if end - pos < 8:
            _stop(whole)
            return -1
        state = stack[-1]
        group, number, length = read_plain(view, pos)
        tag = group << 16 | number
        pos += 8
        if state & _SEQUENCE:
            if tag == _SEQUENCE_END:
                stack.pop()
            elif tag != _ITEM:
                raise StructureError("a sequence holds something that is not an item")
            elif length == _UNDEFINED:
                stack.append(state & _IMPLICIT)
            else:
                pos += length
            continue
        if tag == _ITEM_END:
            stack.pop()
            continue
        nested = state & _IMPLICIT
        if not nested:
            vr, length = read(view, pos - 8)[2:]
            if vr in _LONG_VRS:
                if end - pos < 4:
                    _stop(whole)
                    return -1
                length = read_long(view, pos)[0]
                pos += 4
                nested = _IMPLICIT if vr == b"UN" else 0
                if length != _UNDEFINED:
                    pos += length
                    continue
            elif vr in _SHORT_VRS:
                pos += length
                continue
            else:
                raise StructureError("an element in a sequence has no known value representation")
        elif length != _UNDEFINED:
            pos += length
            continue
        stack.append(_SEQUENCE | nested)
    return pos


def _inflate(data: bytes | bytearray | memoryview, whole: bool) -> tuple[bytes, bool]:
    """The head of a deflated data set, and whether it is all of it; refuses a bomb without inflating it whole."""
    inflater = zlib.decompressobj(-15)
    kept, total, chunk = bytearray(), 0, bytes(data)
    try:
        while chunk and not inflater.eof and total < INFLATE_CHECK:
            out = inflater.decompress(chunk, 1 << 20)
            total += len(out)
            if len(kept) < INFLATE_KEEP:
                kept += out
            chunk = inflater.unconsumed_tail
            if not out and not chunk:
                break
    except zlib.error:
        raise DataSetError("the deflated data set cannot be inflated") from None
    if total > 1 << 20 and total > INFLATE_RATIO * max(1, len(data)):
        raise DataSetError("the deflated data set inflates beyond any real image")
    if whole and total < INFLATE_CHECK and not inflater.eof:
        raise DataSetError("the deflated data set ends early")
    return bytes(kept), whole and inflater.eof and total == len(kept)
