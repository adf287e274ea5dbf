"""What hides in compressed frames: comments, application segments, gaps, tails, tables, boxes, and overlay bits."""

from __future__ import annotations

import copy
import io
import struct
from collections.abc import Iterator
from itertools import count

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from tests.anonymizer.corpus.generate import base, encoded, privacy, retention, standing
from tests.anonymizer.corpus.key import Case, Judge, Seen, gone
from tests.anonymizer.corpus.people import PEOPLE

NOTE = b"Ravensworth Ida!"
COM = b"\xff\xfe" + (len(NOTE) + 2).to_bytes(2, "big") + NOTE
APP = b"\xff\xe8" + (len(NOTE) + 2).to_bytes(2, "big") + NOTE
COM_2000 = b"\xff\x64" + (len(NOTE) + 4).to_bytes(2, "big") + b"\0\1" + NOTE


def compressed(number: int, syntax: UID) -> tuple[FileDataset, bytes]:
    ds = base(PEOPLE[0], number)
    ds.compress(syntax, generate_instance_uid=False)
    return ds, next(generate_frames(ds.PixelData, number_of_frames=1))


def _segments(frame: bytes) -> tuple[list[int], list[bytes]]:
    header = list(struct.unpack("<16I", frame[:64]))
    starts = header[1 : header[0] + 1]
    return starts, [frame[a:b] for a, b in zip(starts, [*starts[1:], len(frame)], strict=True)]


def _gaps(frame: bytes) -> bytes:
    """The RLE frame with the note before, between and after its segments, and in its unused header."""
    body, offsets = NOTE, []
    for segment in _segments(frame)[1]:
        offsets.append(64 + len(body))
        body += segment + NOTE
    unused = [int.from_bytes(b"Rave", "little")] * (15 - len(offsets))
    return struct.pack("<16I", len(offsets), *offsets, *unused) + body


def _jp2(frame: bytes) -> bytes:
    box = lambda kind, body: struct.pack(">I4s", 8 + len(body), kind) + body  # noqa: E731
    image = struct.pack(">IIHBBBB", 64, 64, 1, 11, 7, 0, 0)
    header = box(b"jp2h", box(b"ihdr", image) + box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17)))
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + header + box(b"xml ", b"<n>" + NOTE + b"</n>") + box(b"jp2c", frame)


def variants(number: int) -> Iterator[tuple[str, FileDataset, bytes, np.ndarray]]:
    """(what, object, its frame with something hidden in it, the pixels it must still give)."""
    pixels = base(PEOPLE[0], number).pixel_array
    ds, frame = compressed(number, RLELossless)
    yield "RLE tail", ds, frame + NOTE, pixels
    yield "RLE gaps", ds, _gaps(frame), pixels
    ds, frame = compressed(number, JPEGLSLossless)
    yield "JPEG-LS segments", ds, frame[:2] + COM + APP + frame[2:], pixels
    yield "JPEG-LS tail", ds, frame + NOTE, pixels
    ds, frame = compressed(number, JPEG2000Lossless)
    at = frame.find(b"\xff\x52")
    yield "JPEG 2000 comments", ds, frame[:at] + COM_2000 * 2 + frame[at:], pixels
    yield "JPEG 2000 tail", ds, frame + NOTE, pixels
    yield "JP2 boxes", ds, _jp2(frame), pixels
    tile, data = frame.find(b"\xff\x90"), frame.find(b"\xff\x93")
    longer = bytearray(frame[:data] + COM_2000 + frame[data:])
    size = int.from_bytes(frame[tile + 6 : tile + 10], "big")
    longer[tile + 6 : tile + 10] = (size + len(COM_2000) if size else 0).to_bytes(4, "big")
    yield "JPEG 2000 tile comment", ds, bytes(longer), pixels
    out = io.BytesIO()
    Image.fromarray((pixels >> 4).astype(np.uint8)).save(out, "JPEG")
    frame = out.getvalue()
    gray = np.asarray(Image.open(io.BytesIO(frame)))
    ds = base(PEOPLE[0], number)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    photoshop = b"\xff\xed" + (len(NOTE) + 16).to_bytes(2, "big") + b"Photoshop 3.0\0" + NOTE
    yield "JPEG segments and tail", ds, frame[:2] + COM + photoshop + frame[2:] + NOTE, gray


def _pixels_are(wanted: np.ndarray) -> Judge:
    return lambda seen: seen.ds is not None and np.array_equal(seen.ds.pixel_array, wanted)


def _no_bits(mask: int) -> Judge:
    def judge(seen: Seen) -> bool:
        assert seen.ds is not None
        whole = copy.deepcopy(seen.ds)
        whole.BitsStored, whole.HighBit = 16, 15  # so that the decoder shows every bit
        return not (whole.pixel_array.astype(np.uint16) & mask).any()

    return judge


def cases(start: int) -> Iterator[Case]:
    """Each variant, a frame in odd fragments, tables that hold text, and overlays in compressed frames."""
    numbers = count(start + 1)
    for what, ds, frame, pixels in variants(next(numbers)):
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].is_undefined_length = True
        checks = privacy("code streams", gone("Ravensworth")) + retention("code streams", _pixels_are(pixels))
        yield Case(what, encoded(ds), [*standing(PEOPLE[0]), *checks])
    ds, frame = compressed(next(numbers), JPEG2000Lossless)
    pixels = base(PEOPLE[0], next(numbers) - 1).pixel_array
    table = struct.pack("<HHI", 0xFFFE, 0xE000, len(NOTE)) + NOTE
    fragment = struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame
    ds.PixelData = table + fragment + table
    ds["PixelData"].is_undefined_length = True
    yield Case(
        "tables and fragments",
        encoded(ds),
        [*privacy("code streams", gone("Ravensworth")), *retention("code streams", _pixels_are(pixels))],
    )
    ds = base(PEOPLE[0], next(numbers))
    cells = ds.pixel_array.copy()
    cells.flat[10:60] |= 0x8000
    ds.PixelData, ds.BitsStored, ds.HighBit = cells.tobytes(), 16, 15
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.BitsStored, ds.HighBit = 12, 11
    kept = cells & 0x0FFF
    yield Case(
        "overlay bits in RLE",
        encoded(ds),
        [*privacy("overlay bits", _no_bits(0xF000)), *retention("overlay bits", _pixels_are(kept))],
    )
