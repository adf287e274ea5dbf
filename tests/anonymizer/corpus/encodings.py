"""The same content in other encodings and containers: transfer syntaxes, code streams, preamble, file meta, trailing bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import count

from pydicom.encaps import encapsulate, generate_frames
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from tests.anonymizer.corpus.generate import base, encoded, privacy, retention, standing
from tests.anonymizer.corpus.key import Case, gone, keeps, same_pixels
from tests.anonymizer.corpus.people import PEOPLE

JPEG = None


def cases(start: int) -> Iterator[Case]:
    numbers = count(start + 1)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        for turn in range(3):
            number = next(numbers)
            person = PEOPLE[number % len(PEOPLE)]
            ds = base(person, number)
            ds.ImageComments = f"seen {person.pieces[0]} stable"
            ds.file_meta.TransferSyntaxUID = syntax
            out = io.BytesIO()
            dcmwrite(
                out, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, force_encoding=True
            )
            kept = [] if syntax is ExplicitVRBigEndian else retention("encodings", same_pixels)
            yield Case(
                f"{syntax.name}-{turn}",
                out.getvalue(),
                [*standing(person), *kept, *retention("encodings", keeps("seen stable", "ImageComments"))],
            )
    yield from _containers(numbers)
    yield from _streams(numbers)


def _containers(numbers: Iterator[int]) -> Iterator[Case]:
    for turn in range(3):
        number = next(numbers)
        person = PEOPLE[number % len(PEOPLE)]
        ds = base(person, number)
        ds.preamble = b"Ravensworth Ida ".ljust(128, b"\0")
        ds.file_meta.add_new(0x00020016, "AE", "RAVENSWORTH")
        ds.file_meta.add_new(0x00020100, "UI", "1.2.3")
        ds.file_meta.add_new(0x00020102, "OB", b"Ravensworth ")
        data = encoded(ds) + b"Ravensworth Ida"
        yield Case(
            f"containers-{turn}",
            data,
            [*standing(person), *privacy("containers", gone("Ravensworth")), *retention("containers", same_pixels)],
        )


def _streams(numbers: Iterator[int]) -> Iterator[Case]:
    for turn in range(3):
        number = next(numbers)
        person = PEOPLE[number % len(PEOPLE)]
        ds = base(person, number)
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        size = frame.find(b"\xff\x52")
        note = b"Ravensworth scanned this"
        frame = frame[:size] + b"\xff\x64" + (len(note) + 4).to_bytes(2, "big") + b"\0\1" + note + frame[size:]
        pixels = base(person, number).pixel_array
        ds.PixelData = encapsulate([frame])
        yield Case(
            f"j2k-{turn}",
            encoded(ds),
            [
                *standing(person),
                *privacy("JPEG 2000 comment", gone("Ravensworth")),
                *retention("JPEG 2000 comment", _decodes(pixels)),
            ],
        )
    for turn in range(3):
        number = next(numbers)
        person = PEOPLE[number % len(PEOPLE)]
        ds = base(person, number)
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit = 7
        frame, pixels = _jpeg(number)
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.PixelData = encapsulate([frame + b"\0" * (len(frame) & 1) + b"Ravensworth tail"])
        ds["PixelData"].is_undefined_length = True
        yield Case(
            f"jpeg-{turn}",
            encoded(ds),
            [
                *standing(person),
                *privacy("JPEG segments", gone("Ravensworth"), gone("Umberleigh")),
                *retention("JPEG segments", _decodes(pixels)),
            ],
        )


def _jpeg(seed: int):
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        out, "JPEG", comment=b"Ravensworth was here"
    )
    frame = out.getvalue()
    app1 = b"Exif\0\0Umberleigh"
    frame = frame[:2] + b"\xff\xe1" + (len(app1) + 2).to_bytes(2, "big") + app1 + frame[2:]
    return frame, np.asarray(Image.open(io.BytesIO(frame)))


def _decodes(pixels):
    return lambda seen: (seen.ds.pixel_array == pixels).all()
