"""Blanks what JPEG-family and RLE code streams carry beside the picture: comments, application data, gaps, trailing bytes.

Bytes are overwritten in place and lengths never change, so that offset tables and every pixel stay as they were.
References: ITU-T T.81 B.2.4 (JPEG), ITU-T T.87 (JPEG-LS), ITU-T T.800 A.9.2 (JPEG 2000 COM) and I (JP2),
PS3.5 Annex G (RLE).
"""

from __future__ import annotations

import re

from anonymizer.errors import PixelError

# what the usual encoders write of themselves, and nothing of anybody else
_SOFTWARE = re.compile(rb"|(?:Created by OpenJPEG version|Kakadu-v?|JasPer Version|LEADTOOLS) ?[\d.]*")
_BETWEEN_SCANS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_BETWEEN_SCANS_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")


def clean_stream(stream: bytes) -> bytes | None:
    """The code stream without private segments; None when it had none. Raises PixelError when it cannot be followed."""
    if stream[:2] == b"\xff\xd8":
        return _jpeg(stream)
    if stream[:4] == b"\xff\x4f\xff\x51":
        return _jpeg2000(stream)
    if stream[4:8] == b"jP  ":
        return _jp2(stream)
    raise PixelError("A compressed frame does not start as its transfer syntax demands.")


def _jpeg(stream: bytes) -> bytes | None:
    out: bytearray | None = None
    pos, lossless_ls = 2, False
    while True:
        if pos + 2 > len(stream):
            return None if out is None else bytes(out)  # cut short: nothing is left to hide in
        if stream[pos] != 0xFF:
            raise PixelError("A JPEG frame's segments cannot be followed.")
        code = stream[pos + 1]
        if code == 0xFF:
            pos += 1
            continue
        if code == 0xD9:
            return _blank_tail(stream, out, pos + 2)
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            pos += 2
            continue
        length = int.from_bytes(stream[pos + 2 : pos + 4], "big")
        if length < 2 or pos + 2 + length > len(stream):
            raise PixelError("A JPEG segment is longer than its frame.")
        body = (pos + 4, pos + 2 + length)
        lossless_ls = lossless_ls or code == 0xF7
        keep = _kept_prefix(code, stream[body[0] : body[1]])
        if keep is not None and stream[body[0] + keep : body[1]].strip(b"\0"):
            out = out or bytearray(stream)
            out[body[0] + keep : body[1]] = bytes(body[1] - body[0] - keep)
        pos = body[1]
        if code == 0xDA:
            marker = (_BETWEEN_SCANS_LS if lossless_ls else _BETWEEN_SCANS).search(stream, pos)
            if marker is None:
                return None if out is None else bytes(out)
            pos = marker.start()


def _kept_prefix(code: int, body: bytes) -> int | None:
    """How many bytes of a segment stay; None when all of it is needed to decode."""
    if code == 0xFE:
        return 0
    if not 0xE0 <= code <= 0xEF:
        return None
    if code == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        return 14 if body[12] == 0 or body[13] == 0 else 12
    if code == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        return 12
    if code == 0xE8 and body[:4] == b"mrfx":
        return 5
    return 0


def _blank_tail(stream: bytes, out: bytearray | None, end: int) -> bytes | None:
    if stream[end:].strip(b"\0\xff"):
        out = out or bytearray(stream)
        out[end:] = bytes(len(stream) - end)
    return None if out is None else bytes(out)


def _jpeg2000(stream: bytes) -> bytes | None:
    out: bytearray | None = None
    pos, tile_end = 2, 0
    while pos + 2 <= len(stream):
        code = stream[pos : pos + 2]
        if code == b"\xff\xd9":
            return _blank_tail(stream, out, pos + 2)
        if code == b"\xff\x93":
            if tile_end <= pos:
                return None if out is None else bytes(out)  # the last tile part reaches to the end
            pos = tile_end
            continue
        length = int.from_bytes(stream[pos + 2 : pos + 4], "big")
        if code[0] != 0xFF or length < 2 or pos + 2 + length > len(stream):
            if tile_end >= len(stream) or not tile_end:
                raise PixelError("A JPEG 2000 frame's segments cannot be followed.")
            raise PixelError("A JPEG 2000 frame holds bytes that belong to no tile.")
        if code == b"\xff\x90":
            size = int.from_bytes(stream[pos + 6 : pos + 10], "big")
            tile_end = pos + size if size else _last_tile_end(stream)
            if tile_end > len(stream):
                tile_end = len(stream)
        if code == b"\xff\x64" and not _SOFTWARE.fullmatch(stream[pos + 6 : pos + 2 + length].strip(b"\0")):
            out = out or bytearray(stream)
            out[pos + 6 : pos + 2 + length] = bytes(length - 4)
        pos += 2 + length
    return None if out is None else bytes(out)


def _last_tile_end(stream: bytes) -> int:
    end = stream.rfind(b"\xff\xd9")
    return end if end > 0 else len(stream)


def _jp2(stream: bytes) -> bytes | None:
    """A code stream in a JP2 file: every box but those needed to decode becomes free space of the same length."""
    out, pos, changed = bytearray(stream), 0, False
    while pos + 8 <= len(stream):
        size, kind = int.from_bytes(stream[pos : pos + 4], "big"), stream[pos + 4 : pos + 8]
        end = len(stream) if size == 0 else pos + size
        if size == 1 or not pos + 8 <= end <= len(stream):
            raise PixelError("A JP2 file's boxes cannot be followed.")
        if kind == b"jp2c":
            inner = _jpeg2000(stream[pos + 8 : end])
            if inner is not None:
                out[pos + 8 : end], changed = inner, True
        elif kind == b"jp2h" and b"acsp" in stream[pos:end]:
            raise PixelError("A JP2 frame holds a colour profile, which may hold text.")
        elif kind not in (b"jP  ", b"ftyp", b"jp2h"):
            out[pos + 4 : end], changed = b"free" + bytes(end - pos - 8), True
        pos = end
    if stream[pos:].strip(b"\0"):
        out[pos:], changed = bytes(len(stream) - pos), True
    return bytes(out) if changed else None


def clean_rle(stream: bytes, cells: int, high: bytes | None = None, every: int = 2) -> bytes | None:
    """An RLE frame without bytes that no segment needs; None when it had none.

    ``cells`` is Rows times Columns, the decoded length of each segment. ``high`` (256 bytes) maps the bytes of the most
    significant segments, the first of ``every`` many. Raises PixelError when the segments cannot be followed.
    """
    count = int.from_bytes(stream[:4], "little")
    starts = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(1, count + 1)] if count <= 15 else []
    if not starts or len(stream) < 64 or starts != sorted(starts) or starts[0] < 64 or starts[-1] > len(stream):
        raise PixelError("An RLE frame's segments cannot be followed.")
    out = bytearray(stream)
    out[4 + 4 * count : 64] = bytes(60 - 4 * count)
    out[64 : starts[0]] = bytes(starts[0] - 64)
    for index, (start, limit) in enumerate(zip(starts, [*starts[1:], len(stream)], strict=True)):
        end = _packbits_end(out, start, limit, cells, high if index % every == 0 else None)
        out[end:limit] = bytes(limit - end)
    return None if out == stream else bytes(out)


def _packbits_end(data: bytearray, pos: int, limit: int, cells: int, table: bytes | None) -> int:
    """Where a PackBits segment has given ``cells`` bytes; on the way its bytes go through ``table``."""
    done = 0
    while done < cells and pos < limit:
        code = data[pos]
        if code < 128:
            run = slice(pos + 1, min(pos + 2 + code, limit))
            done, step = done + code + 1, code + 2
        else:
            run = slice(pos + 1, min(pos + 2, limit)) if code > 128 else slice(0, 0)
            done, step = done + (257 - code if code > 128 else 0), 2 if code > 128 else 1
        if table is not None and code != 128:
            data[run] = data[run].translate(table)
        pos += step
    return min(pos, limit)


def precision(stream: bytes) -> int:
    """Bits a sample in a JPEG or JPEG 2000 code stream's header; 0 when it does not say."""
    if stream[:4] == b"\xff\x4f\xff\x51":
        return (stream[42] & 0x7F) + 1 if len(stream) > 42 else 0
    found = re.search(rb"\xff[\xc0-\xc3\xf7]..(.)", stream, re.DOTALL)
    return found[1][0] if found else 0
