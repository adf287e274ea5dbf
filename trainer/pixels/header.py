"""A quick reader of the Image Pixel module from a Part 10 file in a native little-endian transfer syntax.

A full parse of the header costs more than the pixels of a small image. This one walks top-level elements only and keeps
what turns stored values into modality units (PS3.3 C.7.6.3, C.11.1; encoding PS3.5 section 7). Anything unusual
makes it
return None, and the caller lets pydicom read the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_WANTED = {
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280103, 0x00280120,
    0x00280121, 0x00281052, 0x00281053, 0x00281054, 0x00541001,
}  # fmt: skip
_ELSEWHERE = {0x00283000, 0x52009229, 0x52009230}  # modality LUT, functional groups: left to pydicom
_DEEPEST = 16


@dataclass(frozen=True)
class PixelHeader:
    """How to read a native image: geometry, word layout, and the linear modality transform."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    signed: bool
    slope: float
    intercept: float
    padding: int | None
    padding_limit: int | None
    offset: int
    length: int


class _Unusual(Exception):
    """The walk met something it leaves to pydicom."""


def scan(data: bytes | memoryview) -> PixelHeader | None:
    """The pixel header of a whole Part 10 file (or of one from its start to its pixel value), or None."""
    try:
        found, offset, length = _walk(data)
        return _header(found, offset, length)
    except (_Unusual, struct.error, ValueError, KeyError, IndexError):
        return None


def _walk(data: bytes | memoryview) -> tuple[dict[int, bytes], int, int]:
    if bytes(data[128:132]) != b"DICM":
        raise _Unusual
    meta_length = struct.unpack_from("<I", data, 140)[0]
    at = 144 + meta_length
    syntax = _transfer_syntax(bytes(data[144:at]))
    if syntax not in (IMPLICIT_LE, EXPLICIT_LE):
        raise _Unusual
    explicit = syntax == EXPLICIT_LE
    found: dict[int, bytes] = {}
    while True:
        tag, _, length, at = _element(data, at, explicit)
        if tag == _PIXEL_DATA:
            if length == _UNDEFINED:
                raise _Unusual
            return found, at, length
        if tag in _ELSEWHERE or tag > _PIXEL_DATA:
            raise _Unusual
        if length == _UNDEFINED:
            at = _skip_sequence(data, at, explicit, 0)
            continue
        if tag in _WANTED:
            found[tag] = bytes(data[at : at + length])
        at += length


def _transfer_syntax(meta: bytes) -> str:
    """(0002,0010) of a file meta group, which is always explicit little endian."""
    at = meta.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        raise _Unusual
    length = struct.unpack_from("<H", meta, at + 6)[0]
    return meta[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii")


def _element(data: bytes | memoryview, at: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """(tag, VR, length, offset of the value) of the element at `at`."""
    group, number = struct.unpack_from("<HH", data, at)
    tag = group << 16 | number
    if not explicit or group == 0xFFFE:
        return tag, b"", struct.unpack_from("<I", data, at + 4)[0], at + 8
    vr = bytes(data[at + 4 : at + 6])
    if vr in _LONG:
        return tag, vr, struct.unpack_from("<I", data, at + 8)[0], at + 12
    if not vr.isalpha():
        raise _Unusual
    return tag, vr, struct.unpack_from("<H", data, at + 6)[0], at + 8


def _skip_sequence(data: bytes | memoryview, at: int, explicit: bool, depth: int) -> int:
    """The offset after a sequence of undefined length whose first item is at `at`."""
    if depth > _DEEPEST:
        raise _Unusual
    while True:
        tag, _, length, at = _element(data, at, explicit)
        if tag == 0xFFFEE0DD:
            return at
        if tag != 0xFFFEE000:
            raise _Unusual
        at = at + length if length != _UNDEFINED else _skip_item(data, at, explicit, depth)


def _skip_item(data: bytes | memoryview, at: int, explicit: bool, depth: int) -> int:
    """The offset after an item of undefined length whose first element is at `at`."""
    while True:
        tag, vr, length, at = _element(data, at, explicit)
        if tag == 0xFFFEE00D:
            return at
        if length == _UNDEFINED:
            if vr == b"UN":
                raise _Unusual  # an undefined-length UN is implicit inside (PS3.5 6.2.2 note 3)
            at = _skip_sequence(data, at, explicit, depth + 1)
        else:
            at += length


def _header(found: dict[int, bytes], offset: int, length: int) -> PixelHeader:
    signed = _short(found[0x00280103]) == 1
    samples = _short(found.get(0x00280002, b"\1\0"))
    if _text(found.get(0x00541001, b"")) == "BQML":
        raise _Unusual  # becomes SUV, which needs the radiopharmaceutical's sequence
    return PixelHeader(
        rows=_short(found[0x00280010]),
        columns=_short(found[0x00280011]),
        frames=int(_text(found.get(0x00280008, b"")) or 1),
        samples=samples,
        photometric=_text(found[0x00280004]),
        allocated=_short(found[0x00280100]),
        stored=_short(found[0x00280101]),
        signed=signed,
        slope=float(_text(found.get(0x00281053, b"")) or 1.0),
        intercept=float(_text(found.get(0x00281052, b"")) or 0.0),
        padding=_padding(found.get(0x00280120), signed),
        padding_limit=_padding(found.get(0x00280121), signed),
        offset=offset,
        length=length,
    )


def _short(value: bytes) -> int:
    return int(struct.unpack_from("<H", value)[0])


def _padding(value: bytes | None, signed: bool) -> int | None:
    return None if not value else int(struct.unpack_from("<h" if signed else "<H", value)[0])


def _text(value: bytes) -> str:
    return value.decode("ascii").strip("\0 ")
