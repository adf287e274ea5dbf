"""Blanks what JPEG-family code streams carry beside the picture: comment and application segments, and trailing bytes.

Bytes are overwritten in place and lengths never change, so that offset tables and every pixel stay as they were.
References: ITU-T T.81 B.2.4 (JPEG), ITU-T T.87 (JPEG-LS), ITU-T T.800 A.9.2 (JPEG 2000 COM).
"""

from __future__ import annotations

import re

from anonymizer.errors import PixelError

_BETWEEN_SCANS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_BETWEEN_SCANS_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")


def clean_stream(stream: bytes) -> bytes | None:
    """The code stream without private segments; None when it had none. Raises PixelError when it cannot be followed."""
    if stream[:2] == b"\xff\xd8":
        return _jpeg(stream)
    if stream[:4] == b"\xff\x4f\xff\x51":
        return _jpeg2000(stream)
    start = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if stream[4:8] == b"jP  " and start > 0:
        raise PixelError("The JPEG 2000 frame is wrapped in a JP2 file, whose boxes may hold text.")
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
        if code == b"\xff\x64" and stream[pos + 6 : pos + 2 + length].strip(b"\0"):
            out = out or bytearray(stream)
            out[pos + 6 : pos + 2 + length] = bytes(length - 4)
        pos += 2 + length
    return None if out is None else bytes(out)


def _last_tile_end(stream: bytes) -> int:
    end = stream.rfind(b"\xff\xd9")
    return end if end > 0 else len(stream)
