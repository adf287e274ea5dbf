"""Cleans what surrounds the picture in pixel data: bytes in excess, overlay bits in unused bits, segments of code streams."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from anonymizer.codestream import clean_rle, clean_stream, precision
from anonymizer.errors import PixelError
from anonymizer.walk import ITEM, SEQUENCE_END, UNDEFINED, Element, Fragments

if TYPE_CHECKING:
    from anonymizer.rewrite import Rewriter

Part = bytes | memoryview
_JPEG_FAMILY = ("1.2.840.10008.1.2.4.",)
_VIDEO = frozenset(f"1.2.840.10008.1.2.4.{n}{m}" for n in range(100, 109) for m in ("", ".1"))
_RLE = "1.2.840.10008.1.2.5"


def expected_bytes(rw: Rewriter) -> int:
    """The length of native pixel data by Rows, Columns, Samples, Frames and Bits Allocated; 0 when they do not say."""
    rows, columns = rw.top_number(0x00280010), rw.top_number(0x00280011)
    samples, bits = rw.top_number(0x00280002, 1), rw.top_number(0x00280100)
    frames = rw.top_number(0x00280008, 1) or 1
    if rw.top_text(0x00280004) == "YBR_FULL_422" and samples == 3:
        samples = 2
    return (rows * columns * samples * frames * bits + 7) // 8


def clean_native(rw: Rewriter, el: Element) -> list[Part] | None:
    """The pixel value without bytes in excess and with overlay bits cleared; None when nothing needed to be done."""
    start, stop = el[3], el[4]
    size = expected_bytes(rw)
    if el[0] in (0x7FE00008, 0x7FE00009):
        size = size and rw.top_number(0x00280010) * rw.top_number(0x00280011) * (rw.top_number(0x00280008, 1) or 1)
        size *= 4 if el[0] == 0x7FE00008 else 8
    value = rw.data[start:stop]
    if not size:
        return [b""] if len(value) else None
    surplus = len(value) > size and not (len(value) == size + 1 and value[size] in (0, 32))
    cleared = _clear_unused_bits(rw, value[:size]) if el[0] == 0x7FE00010 else None
    if cleared is None and not surplus:
        return None
    body: Part = value[:size] if cleared is None else cleared
    return [body, b"\0"] if len(body) & 1 else [body]


def _clear_unused_bits(rw: Rewriter, value: memoryview) -> bytes | None:
    allocated, stored = rw.top_number(0x00280100), rw.top_number(0x00280101)
    high = rw.top_number(0x00280102, stored - 1)
    if allocated not in (8, 16) or not 0 < stored < allocated or not stored - 1 <= high < allocated or len(value) < 2:
        return None
    kind = np.dtype(f"{'<' if rw.walker.little else '>'}u{allocated // 8}")
    cells = np.frombuffer(value, kind, len(value) // kind.itemsize)
    used = ((1 << stored) - 1) << (high + 1 - stored)
    unused = ~used & ((1 << allocated) - 1)
    if not int(np.bitwise_or.reduce(cells)) & unused:
        return None
    declared = any(tag >> 24 == 0x60 for tag in rw.top)
    extra = cells & kind.type(unused)
    if rw.top_number(0x00280103) == 1 and high == stored - 1:
        negative = (cells >> high & 1).astype(bool)
        odd = extra != np.where(negative, unused, 0).astype(kind)
    else:
        odd = extra != 0
    if not odd.any():
        return None
    # one single value out of range is a padding value, not a picture in hidden bits
    if not declared and np.ptp(cells[odd]) == 0:
        return None
    fixed = cells & kind.type(used)
    if rw.top_number(0x00280103) == 1 and high == stored - 1:
        fixed = np.where(negative, fixed | kind.type(unused), fixed).astype(kind)
    return fixed.tobytes()


def clean_fragments(rw: Rewriter, el: Element) -> list[Part] | None:
    """Encapsulated pixel data with its code streams cleaned; None when nothing needed to be done.

    Raises PixelError when a frame cannot be followed, and for video, which nothing here can look into.
    """
    found: Fragments = el[5]
    frames = max(1, rw.top_number(0x00280008, 1))
    changed: dict[int, bytes] = {}
    syntax = rw.file.transfer_syntax
    if syntax in _VIDEO and rw.profile.pixels != "trust":
        raise PixelError("A video stream cannot be searched for text.")
    if syntax == _RLE or (syntax.startswith(_JPEG_FAMILY) and syntax not in _VIDEO):
        for group in _frames(rw, found, frames):
            changed.update(_clean_frame(rw, found, group))
    table = _table(rw, found)
    if not changed and table is None:
        return None
    marker = rw.walker.marker
    body: Part = rw.data[slice(*found.table)] if table is None else table
    out: list[Part] = [rw.walker.header(el[0], el[1], UNDEFINED), marker(ITEM, len(body)), body]
    for index, (start, stop) in enumerate(found.fragments):
        piece: Part = changed.get(index, rw.data[start:stop])
        out += [marker(ITEM, len(piece)), piece]
    out.append(marker(SEQUENCE_END, 0))
    return out


def _frames(rw: Rewriter, found: Fragments, frames: int) -> list[list[int]]:
    """The fragments of each frame: a frame starts where a fragment starts with SOI or SOC."""
    count = len(found.fragments)
    if count == frames:
        return [[i] for i in range(count)]
    if frames == 1:
        return [list(range(count))]
    groups: list[list[int]] = []
    for index, (start, _) in enumerate(found.fragments):
        head = bytes(rw.data[start : start + 8])
        if head[:2] in (b"\xff\xd8", b"\xff\x4f") or head[4:] == b"jP  " or not groups:
            groups.append([])
        groups[-1].append(index)
    return groups


def _clean_frame(rw: Rewriter, found: Fragments, group: list[int]) -> dict[int, bytes]:
    spans = [found.fragments[i] for i in group]
    stream = b"".join(bytes(rw.data[s:e]) for s, e in spans)
    if rw.file.transfer_syntax == _RLE:
        allocated = max(1, rw.top_number(0x00280100) // 8)
        cleaned = clean_rle(stream, rw.top_number(0x00280010) * rw.top_number(0x00280011), _high_bytes(rw), allocated)
    else:
        cleaned = clean_stream(stream) if stream else None
        if _overlay_bits(rw) and precision(stream) > rw.top_number(0x00280101):
            raise PixelError("Overlay bits inside a compressed frame cannot be cleared.")
    if cleaned is None:
        return {}
    out, pos = {}, 0
    for index, (start, stop) in zip(group, spans, strict=True):
        out[index] = cleaned[pos : pos + stop - start]
        pos += stop - start
    return out


def _table(rw: Rewriter, found: Fragments) -> bytes | None:
    """An empty basic offset table in place of one that holds anything but offsets of fragments; None when it is fine."""
    start, stop = found.table
    raw = bytes(rw.data[start:stop])
    if not raw:
        return None
    first = found.fragments[0][0] - 8 if found.fragments else 0
    offsets = {s - 8 - first for s, _ in found.fragments}
    if len(raw) % 4 == 0 and set(struct.unpack(f"<{len(raw) // 4}I", raw)) <= offsets:
        return None
    return b""


def _overlay_bits(rw: Rewriter) -> bool:
    """Whether an overlay says that it lies in bits of the pixel data (retired, PS3.3 C.9.2)."""
    return any(tag >> 24 == 0x60 and tag & 0xFFFF == 0x0102 and rw.top_number(tag) for tag in rw.top)


def _high_bytes(rw: Rewriter) -> bytes | None:
    """What each most significant byte of a 16-bit RLE frame becomes so that bits outside Bits Stored hold nothing."""
    stored = rw.top_number(0x00280101)
    high = rw.top_number(0x00280102, stored - 1)
    if rw.top_number(0x00280100) != 16 or not 8 < stored < 16 or high != stored - 1 or not _overlay_bits(rw):
        return None
    used = (1 << (stored - 8)) - 1
    signed = rw.top_number(0x00280103) == 1
    return bytes(byte | ~used & 0xFF if signed and byte >> (stored - 9) & 1 else byte & used for byte in range(256))
