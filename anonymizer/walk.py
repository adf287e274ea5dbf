"""Walks the bytes of a DICOM data set in one pass, in any of the encodings of PS3.5, without copying a value.

An element is the tuple (tag, VR, start, value start, end, items); offsets are into the walked buffer. ``items`` is None for
plain values, a list of items for sequences, and a Fragments for encapsulated pixel data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from anonymizer.errors import Malformed, NotDicom, TooLarge
from anonymizer.tables import dictionary_vr

if TYPE_CHECKING:
    from anonymizer.layout import Layouts, Twin

MAX_DEPTH = 100
MAX_INFLATED = 1 << 29
MAX_ELEMENTS = 2_000_000
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO"}
    | {b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"

Element = tuple[int, bytes, int, int, int, Any]


class Item(NamedTuple):
    """A sequence item: its elements and whether its length was undefined."""

    elements: list[Element]
    undefined: bool


@dataclass
class Items:
    """The items of a sequence; ``explicit`` tells how they are encoded (False inside UN, CP-246)."""

    items: list[Item]
    undefined: bool
    explicit: bool


@dataclass
class Fragments:
    """Encapsulated pixel data: (start, end) of the basic offset table and of each fragment."""

    table: tuple[int, int]
    fragments: list[tuple[int, int]]


class Walker:
    """One data set's buffer and encoding; ``walk`` gives its top-level elements."""

    def __init__(self, data: bytes | memoryview, explicit: bool = True, little: bool = True) -> None:
        self.data, self.explicit, self.little = data, explicit, little
        order = "<" if little else ">"
        self._short = struct.Struct(order + "HH2sH").unpack_from
        self._tag = struct.Struct(order + "HHI").unpack_from
        self._u32 = struct.Struct(order + "I").unpack_from
        self.creators: dict[int, str] = {}
        self._count = 0
        self._top: list[Element] = []

    def walk(self, pos: int = 0, end: int | None = None) -> list[Element]:
        """Every top-level element; raises Malformed or TooLarge. Trailing bytes that are no element are left out."""
        stop = len(self.data) if end is None else end
        self._top = []
        try:
            return self._elements(pos, stop, 0, False, self.explicit)[0]
        except Malformed:
            # whatever follows the pixel data and is no element trails the data set
            if self._top and any(el[0] >= PIXEL_DATA for el in self._top[-3:]):
                return self._top
            raise

    def _elements(self, pos: int, end: int, depth: int, delimited: bool, explicit: bool) -> tuple[list[Element], int]:
        if depth > MAX_DEPTH:
            raise TooLarge(f"Sequences are nested more than {MAX_DEPTH} deep.")
        out: list[Element] = [] if depth else self._top
        append, short, data = out.append, self._short, self.data
        while pos + 8 <= end:
            group, element, vr, length = short(data, pos)
            tag = group << 16 | element
            if explicit and vr in SHORT:
                value = pos + 8
            elif group == 0xFFFE:
                if tag == ITEM_END and delimited:
                    return out, pos + 8
                if depth == 0:
                    return out, pos  # stray delimiters after the data set: trailing bytes
                raise Malformed("A sequence delimiter stands where an element should be.")
            else:
                vr, value, length = self._long_header(pos, end, tag, vr, explicit)
            stop = value + length
            if length == UNDEFINED or vr == b"SQ" or (vr == b"UN" and dictionary_vr(tag) == b"SQ"):
                item, stop = self._nested(tag, vr, value, length, end, depth, explicit)
                append((tag, vr, pos, value, stop, item))
            elif stop > end:
                raise Malformed(
                    f"Element ({group:04X},{element:04X}) is longer than what holds it: the file is cut short."
                )
            else:
                append((tag, vr, pos, value, stop, None))
            pos = stop
        self._count += len(out)
        if self._count > MAX_ELEMENTS:
            raise TooLarge(f"The object holds more than {MAX_ELEMENTS} elements.")
        if delimited:
            raise Malformed("An item has no end.")
        return out, pos

    def _long_header(self, pos: int, end: int, tag: int, vr: bytes, explicit: bool) -> tuple[bytes, int, int]:
        """(VR, value start, length) of an element with a 12-byte header or of one without a VR."""
        if explicit and vr in LONG:
            if pos + 12 > end:
                raise Malformed("The file ends inside an element's header.")
            return vr, pos + 12, self._u32(self.data, pos + 8)[0]
        if explicit and vr.isalpha() and vr.isupper():
            # a VR that this edition does not know has the long form (PS3.5 7.1.2)
            return b"UN", pos + 12, self._u32(self.data, pos + 8)[0]
        if explicit and tag >> 16 == 0:
            raise Malformed("An element of group 0000 stands in the data set.")
        return dictionary_vr(tag) or b"UN", pos + 8, self._u32(self.data, pos + 4)[0]

    def _nested(
        self, tag: int, vr: bytes, value: int, length: int, end: int, depth: int, explicit: bool
    ) -> tuple[Any, int]:
        if tag == PIXEL_DATA and length == UNDEFINED:
            return self._fragments(value, end)
        undefined = length == UNDEFINED
        if not undefined and value + length > end:
            raise Malformed(f"Sequence ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than what holds it.")
        stop = end if undefined else value + length
        if vr not in (b"SQ", b"UN"):
            raise Malformed(f"Element ({tag >> 16:04X},{tag & 0xFFFF:04X}) has no length.")
        inner = explicit and vr == b"SQ"
        if vr == b"UN" and not undefined:
            try:
                return self._items(value, stop, depth, False, False)
            except Malformed:
                return None, stop
        return self._items(value, stop, depth, undefined, inner)

    def _items(self, pos: int, end: int, depth: int, undefined: bool, explicit: bool) -> tuple[Items, int]:
        items: list[Item] = []
        while pos + 8 <= end:
            group, element, length = self._tag(self.data, pos)
            tag = group << 16 | element
            if tag == SEQUENCE_END:
                # inside a defined length it should not stand; it ends the items either way
                return Items(items, undefined, explicit), pos + 8 if undefined else end
            if tag != ITEM:
                raise Malformed("Something other than an item stands in a sequence.")
            if length == UNDEFINED:
                elements, pos = self._elements(pos + 8, end, depth + 1, True, explicit)
                items.append(Item(elements, True))
                continue
            stop = pos + 8 + length
            if stop > end:
                raise Malformed("A sequence item is longer than its sequence.")
            items.append(Item(self._elements(pos + 8, stop, depth + 1, False, explicit)[0], False))
            pos = stop
        if undefined:
            raise Malformed("A sequence has no end.")
        return Items(items, undefined, explicit), end

    def _fragments(self, pos: int, end: int) -> tuple[Fragments, int]:
        found: list[tuple[int, int]] = []
        while pos + 8 <= end:
            group, element, length = self._tag(self.data, pos)
            tag = group << 16 | element
            if tag == SEQUENCE_END:
                return Fragments(found[0] if found else (0, 0), found[1:]), pos + 8
            if tag != ITEM or length == UNDEFINED or pos + 8 + length > end:
                break
            found.append((pos + 8, pos + 8 + length))
            pos += 8 + length
        raise Malformed("The encapsulated pixel data is cut short.")

    def header(self, tag: int, vr: bytes, length: int, explicit: bool | None = None) -> bytes:
        """An element's header in this encoding; raises TooLarge when a short VR cannot hold the length."""
        order = "<" if self.little else ">"
        group, element = tag >> 16, tag & 0xFFFF
        if not (self.explicit if explicit is None else explicit):
            return struct.pack(order + "HHI", group, element, length)
        if vr in SHORT:
            if length > 0xFFFF:
                raise TooLarge(f"A value of ({group:04X},{element:04X}) does not fit its VR.")
            return struct.pack(order + "HH2sH", group, element, vr, length)
        return struct.pack(order + "HH2sHI", group, element, vr, 0, length)

    def marker(self, tag: int, length: int) -> bytes:
        """An item or delimiter header."""
        return struct.pack("<HHI" if self.little else ">HHI", tag >> 16, tag & 0xFFFF, length)


class File(NamedTuple):
    """A Part 10 file taken apart: meta group elements, transfer syntax and the data set's walker with its elements."""

    transfer_syntax: str
    meta: dict[int, bytes]
    walker: Walker
    elements: list[Element]
    deflated: bool
    start: int  # of the data set in the walker's data
    twin: Twin | None = None


def open_file(data: bytes | memoryview, layouts: Layouts | None = None) -> File:
    """Take a file (or a bare data set) apart; raises NotDicom, Malformed or TooLarge.

    One that is laid out like an object that ``layouts`` remembers is not walked: it gets that object's elements.
    """
    if len(data) < 8:
        raise NotDicom("The file is empty or too short to be DICOM.")
    pos = 132 if bytes(data[128:132]) == b"DICM" else 0
    meta, pos = _meta(data, pos)
    syntax = meta.get(0x00020010, b"").strip(b" \0").decode("ascii", "replace")
    if not syntax:
        syntax = _guess(data, pos)
    deflated = syntax == DEFLATED
    if deflated:
        data, pos = inflate(data[pos:]), 0
    elif layouts is not None:
        body = memoryview(data)[pos:]
        twin = layouts.find(syntax, body)
        if twin is not None:
            walker = Walker(body, syntax != IMPLICIT, syntax != BIG_ENDIAN)
            return File(syntax, meta, walker, twin.layout.elements, False, 0, twin)
    walker = Walker(data, syntax != IMPLICIT, syntax != BIG_ENDIAN)
    elements = walker.walk(pos)
    if not elements or not (meta or any(dictionary_vr(el[0]) for el in elements)):
        raise NotDicom("No DICOM attribute was found: this is not a DICOM file.")
    return File(syntax, meta, walker, elements, deflated, pos)


def _meta(data: bytes | memoryview, pos: int) -> tuple[dict[int, bytes], int]:
    """The file meta group, always Explicit VR Little Endian (PS3.10 7.1), and where it ends."""
    walker, meta = Walker(data), {}
    while pos + 8 <= len(data):
        group, element, vr, length = walker._short(data, pos)
        if group != 2:
            break
        value = pos + 8
        if vr not in SHORT:
            vr, value, length = walker._long_header(pos, len(data), 2 << 16 | element, vr, True)
        if length > 1 << 20 or value + length > len(data):
            raise Malformed("The file meta information is cut short or has a wrong length.")
        meta[2 << 16 | element] = bytes(data[value : value + length])
        pos = value + length
    return meta, pos


def _guess(data: bytes | memoryview, pos: int) -> str:
    """The transfer syntax of a data set without meta information, from its first element; raises NotDicom."""
    group, element, vr, _ = struct.unpack_from("<HH2sH", data, pos) if pos + 8 <= len(data) else (0, 0, b"", 0)
    if vr in SHORT or vr in LONG:
        if dictionary_vr(group << 16 | element):
            return EXPLICIT
        if dictionary_vr((group >> 8 | (group & 255) << 8) << 16 | (element >> 8 | (element & 255) << 8)):
            return BIG_ENDIAN
    length = struct.unpack_from("<I", data, pos + 4)[0] if pos + 8 <= len(data) else 0
    if dictionary_vr(group << 16 | element) and group in (8, 0x10) and length <= len(data):
        return IMPLICIT
    raise NotDicom("The file has no DICOM prefix and does not start with a DICOM attribute.")


def inflate(data: bytes | memoryview, limit: int = MAX_INFLATED) -> bytes:
    """Undo Deflated Explicit VR (PS3.5 A.5) up to ``limit`` bytes; raises TooLarge or Malformed."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = engine.decompress(data, limit)
    except zlib.error:
        raise Malformed("The deflated data set cannot be inflated.") from None
    if engine.unconsumed_tail or (len(out) >= limit and not engine.eof):
        raise TooLarge(f"The deflated data set is larger than {limit >> 20} MiB.")
    if not engine.eof:
        raise Malformed("The deflated data set is cut short.")
    return out


def deflate(parts: Sequence[bytes | memoryview]) -> bytes:
    """Deflate a data set, padded to even length."""
    engine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = b"".join([engine.compress(part) for part in parts] + [engine.flush()])
    return out + b"\0" * (len(out) & 1)
