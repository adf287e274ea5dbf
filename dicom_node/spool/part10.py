"""Part 10 files around a data set as received: the preamble and file meta information written, and read back.

PS3.10 section 7.1. The data set itself is never touched.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from struct import Struct, error

IMPLEMENTATION_CLASS_UID = "2.25.197830423158721048893162040398212765841"
IMPLEMENTATION_VERSION = "FEDPACS_01"

_SHORT = Struct("<HH2sH")
_LONG = Struct("<HH2sHI")
_PREAMBLE = bytes(128) + b"DICM"


class Part10Error(ValueError):
    """Not a Part 10 file; the message says why and names no value."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """File meta information of a file, and where its data set starts."""

    sop_class: str
    sop_uid: str
    transfer_syntax: str
    source_ae: str
    data_offset: int


def _element(number: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii", "replace")
    if len(raw) % 2:
        raw += b"\0" if vr == b"UI" else b" "
    return _SHORT.pack(2, number, vr, len(raw)) + raw


@functools.lru_cache(maxsize=256)
def _fixed(sop_class: str, transfer_syntax: str, source_ae: str) -> tuple[bytes, bytes]:
    head = _LONG.pack(2, 1, b"OB", 0, 2) + b"\0\1" + _element(2, b"UI", sop_class)
    tail = (
        _element(0x10, b"UI", transfer_syntax)
        + _element(0x12, b"UI", IMPLEMENTATION_CLASS_UID)
        + _element(0x13, b"SH", IMPLEMENTATION_VERSION)
    )
    return head, tail + (_element(0x16, b"AE", source_ae) if source_ae else b"")


def prefix(sop_class: str, sop_uid: str, transfer_syntax: str, source_ae: str = "") -> bytes:
    """Everything of a Part 10 file that stands before its data set."""
    head, tail = _fixed(sop_class, transfer_syntax, source_ae)
    meta = head + _element(3, b"UI", sop_uid) + tail
    return _PREAMBLE + _SHORT.pack(2, 0, b"UL", 4) + len(meta).to_bytes(4, "little") + meta


def parse(data: bytes | memoryview) -> FileMeta:
    """Read the file meta information of a Part 10 file; `Part10Error` when it has none that can be used."""
    if bytes(data[128:132]) != b"DICM":
        raise Part10Error("it is not a DICOM Part 10 file (no DICM mark at byte 128)")
    found: dict[int, str] = {}
    pos = 132
    try:
        while pos + 8 <= len(data):
            group, number, vr, length = _SHORT.unpack_from(data, pos)
            if group != 2:
                break
            if vr in (b"OB", b"UN"):
                length = _LONG.unpack_from(data, pos)[4]
                pos += 4
            found[number] = bytes(data[pos + 8 : pos + 8 + min(length, 256)]).decode("latin-1").strip(" \0")
            pos += 8 + length
    except error:
        raise Part10Error("its file meta information is cut short") from None
    if pos > len(data) or not found.get(0x10):
        raise Part10Error("its file meta information names no transfer syntax")
    return FileMeta(found.get(2, ""), found.get(3, ""), found[0x10], found.get(0x16, ""), pos)
