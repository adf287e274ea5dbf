"""Code streams lose what is beside the picture, keep their length, and refuse what cannot be followed."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anonymizer.codestream import clean_rle, clean_stream, precision
from anonymizer.documents import placeholder
from anonymizer.errors import PixelError


def jpeg(**options: object) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_a_clean_jpeg_is_left_alone_and_a_comment_is_blanked_in_place(options: dict[str, object]) -> None:
    frame = jpeg(**options)
    assert clean_stream(frame) is None
    told = frame[:2] + b"\xff\xfe\x00\x0cRavenswort" + frame[2:]
    cleaned = clean_stream(told)
    assert cleaned is not None and len(cleaned) == len(told) and b"Raven" not in cleaned
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(cleaned))), np.asarray(Image.open(io.BytesIO(frame))))


@pytest.mark.parametrize(
    "frame", [b"", b"\xff\xd8\x00\x00", b"nothing", b"\xff\xd8\xff\xfe\xff\xff", b"\xff\x4f\xff\x51\x00\x01"]
)
def test_a_stream_that_cannot_be_followed_is_refused(frame: bytes) -> None:
    with pytest.raises(PixelError):
        clean_stream(frame)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_nothing_but_a_refusal_comes_of_random_bytes(data: bytes) -> None:
    for stream in (data, b"\xff\xd8" + data, b"\xff\x4f\xff\x51" + data, b"\0\0\0\x0cjP  " + data):
        try:
            cleaned = clean_stream(stream)
        except PixelError:
            continue
        assert cleaned is None or len(cleaned) == len(stream)
    try:
        clean_rle(data, 64)
    except PixelError:
        pass


def packed(cells: bytes) -> bytes:
    """PackBits (PS3.5 Annex G.3) of literal runs."""
    return b"".join(bytes([len(cells[i : i + 128]) - 1]) + cells[i : i + 128] for i in range(0, len(cells), 128))


def unpacked(frame: bytes) -> list[bytes]:
    count, *starts = struct.unpack("<16I", frame[:64])
    out = []
    for start in starts[:count]:
        cells, pos = b"", start
        while len(cells) < 64:
            code = frame[pos]
            cells += frame[pos + 1 : pos + 2 + code]
            pos += 2 + code
        out.append(cells)
    return out


@given(
    st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=3), st.binary(max_size=9), st.binary(max_size=9)
)
def test_rle_keeps_the_cells_and_loses_gaps_and_tails(planes: list[bytes], gap: bytes, tail: bytes) -> None:
    body, starts = gap, []
    for plane in planes:
        starts.append(64 + len(body))
        body += packed(plane) + gap
    frame = struct.pack("<16I", len(planes), *starts, *[0] * (15 - len(planes))) + body + tail
    cleaned = clean_rle(frame, 64) or frame
    assert len(cleaned) == len(frame) and unpacked(cleaned) == planes
    last = starts[-1] + len(packed(planes[-1]))
    assert not cleaned[last:].strip(b"\0") and not cleaned[64 : starts[0]].strip(b"\0")


def test_rle_high_bytes_go_through_the_table() -> None:
    table = bytes(byte & 0x0F for byte in range(256))
    frame = struct.pack("<16I", 2, 64, 129, *[0] * 13) + packed(bytes([0xF3] * 64)) + packed(bytes([0xF3] * 64))
    high, low = unpacked(clean_rle(frame, 64, table, 2) or b"")
    assert set(high) == {0x03} and set(low) == {0xF3}


def test_the_precision_is_read_from_the_header() -> None:
    assert precision(jpeg()) == 8 and precision(b"\0" * 50) == 0


def test_documents_give_way_to_an_empty_one_of_their_kind() -> None:
    pdf = placeholder(b"%PDF-1.7 Ravensworth")
    assert pdf is not None and pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF") and b"Raven" not in pdf
    table = int(pdf.split(b"startxref\n")[1].split()[0])
    assert pdf[table : table + 4] == b"xref"
    cda = placeholder(b"<?xml version='1.0'?><ClinicalDocument>Ravensworth</ClinicalDocument>")
    assert cda is not None and b"<ClinicalDocument" in cda and b"Raven" not in cda
    model = placeholder(b"solid Ravensworth\nfacet normal 0 0 1")
    assert model.startswith(b"solid") and b"Raven" not in model
    assert placeholder(b"# Ravensworth\nv 0 0 0\n").startswith(b"#")
    assert placeholder(b"Ravensworth".ljust(80, b"\0") + b"\1\0\0\0" + bytes(50)) == bytes(84)  # STL, and all unknown
