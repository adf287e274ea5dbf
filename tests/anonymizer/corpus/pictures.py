"""Burned-in text in many guises, and pictures whose bits must not change."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.anonymizer.corpus.generate import base, encoded, privacy, retention
from tests.anonymizer.corpus.key import Case, Judge, equal, same_pixels
from tests.anonymizer.corpus.people import PEOPLE

SIDE = 256
CAPTURE, MR = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.4"
TEXT = "QUENNELL 03/12/51"
Array = np.ndarray


def ground(seed: int, bright: bool = False) -> Array:
    """A smooth, slightly noisy uint8 picture without text."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    noise = np.random.default_rng(seed).normal(0, 3, (SIDE, SIDE))
    plain = (70 + 40 * np.sin(3 * x + seed) * np.cos(2 * y) + noise).clip(0, 200).astype(np.uint8)
    return 255 - plain if bright else plain


def strokes(text: str, at: tuple[int, int] = (20, 40), size: int = 16, turn: int = 0) -> Array:
    image = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(image).text(at, text, fill=255, font=ImageFont.load_default(size))
    return np.asarray(image.rotate(turn)) > 100


def _object(
    frames: Array, number: int, modality: str = "US", syntax: UID = ExplicitVRLittleEndian, sop_class: str = CAPTURE
) -> FileDataset:
    """``frames`` [n, rows, columns(, 3)] as a secondary capture (or an image of the modality)."""
    ds = base(PEOPLE[0], number, sop_class=sop_class, modality=modality, pixels=False)
    ds.Rows, ds.Columns = frames.shape[1:3]
    ds.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    if len(frames) > 1:
        ds.NumberOfFrames = len(frames)
    ds.BitsAllocated = 8 * frames.dtype.itemsize
    ds.BitsStored = 8 if frames.dtype.itemsize == 1 else 12
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    ds.PixelData = frames.tobytes()
    if syntax != ExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    return ds


def _frames(seen_ds: FileDataset, frames: Array) -> Array:
    return np.asarray(seen_ds.pixel_array).reshape(frames.shape)


def covered(frames: Array, where: dict[int, Array]) -> Judge:
    """Nothing of the text's strokes is left as it was."""

    def judge(seen: object) -> bool:
        after = _frames(seen.ds, frames)  # type: ignore[attr-defined]
        same = after == frames
        plain = same.all(axis=-1) if same.ndim == 4 else same
        return all(float(plain[i][mask].mean()) < 0.02 for i, mask in where.items())

    return judge


def spared(frames: Array, where: dict[int, Array]) -> Judge:
    """Frames without text are as they were, and of the others at least nine tenths."""

    def judge(seen: object) -> bool:
        after = _frames(seen.ds, frames)  # type: ignore[attr-defined]
        return all(float((after[i] == frames[i]).mean()) >= (0.9 if i in where else 1.0) for i in range(len(frames)))

    return judge


def guises() -> Iterator[tuple[str, Array, dict[int, Array], dict[str, object]]]:
    """(what, frames, the strokes of each frame that has text, how the object is made)."""
    for turn in (0, 90, 180, 270):
        mask, plain = strokes(TEXT, turn=turn), ground(turn)
        plain[mask] = 255
        yield f"turned {turn}", plain[None], {0: mask}, {}
    for size in (9, 28):
        mask, plain = strokes("QUENNELL T", size=size), ground(size)
        plain[mask] = 255
        yield f"size {size}", plain[None], {0: mask}, {}
    mask, plain = strokes(TEXT), ground(3, bright=True)
    plain[mask] = 0
    yield "dark on bright", plain[None], {0: mask}, {}
    mask, colour = strokes(TEXT), np.repeat(ground(4)[..., None], 3, axis=2)
    colour[mask] = (255, 220, 0)
    yield "yellow", colour[None], {0: mask}, {}
    deep = ground(5).astype(np.uint16) * 16
    deep[mask] = 4000
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless):
        yield f"12 bit {syntax.name}", deep[None], {0: mask}, {"syntax": syntax}
    many = np.stack([ground(n) for n in range(6)])
    many[4][mask] = 255
    yield "one frame of six", many, {4: mask}, {}
    each = np.stack([ground(n) for n in range(3)])
    where = {n: strokes(f"QUENNELL {n}{n * 3 + 1}7", (20 + 4 * n, 40 + 3 * n)) for n in range(3)}
    for n, own in where.items():
        each[n][own] = 255
    yield "another text on each frame", each, where, {}
    scan = ground(6).astype(np.uint16) * 10
    scan[mask] = 4095
    yield "in a CT that says NO", scan[None], {0: mask}, {"modality": "CT"}
    for slant in (30, 45):
        slanted, plain = strokes("QUENNELL 771", at=(40, 110), turn=slant), ground(slant)
        plain[slanted] = 255
        yield f"slanted {slant}", plain[None], {0: slanted}, {}
    day, plain = strokes("1951-12-03"), ground(3)
    plain[day] = 255
    yield "only a date", plain[None], {0: day}, {}
    scan = ground(6).astype(np.uint16) * 8
    scan[mask] = 0
    yield "dark in an MR that says NO", scan[None], {0: mask}, {"modality": "MR", "sop_class": MR}
    scan = ground(6).astype(np.uint16) * 8
    scan[mask] = scan.max() + 5
    yield "in an MR in JPEG-LS", scan[None], {0: mask}, {"modality": "MR", "sop_class": MR, "syntax": JPEGLSLossless}
    noise = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    big = strokes("QUENNELL", size=28)
    noise[big] = 255
    yield "in noise", noise[None], {0: big}, {}


def cases(start: int) -> Iterator[Case]:
    """Each guise, and pictures that must stay bit for bit: without text, noise, harmless marks."""
    numbers = count(start + 1)
    for what, frames, where, how in guises():
        ds = _object(frames, next(numbers), **how)  # type: ignore[arg-type]
        checks = privacy("burned-in text", covered(frames, where)) + retention(
            "burned-in text", spared(frames, where), equal("YES", "PatientIdentityRemoved")
        )
        yield Case(f"picture: {what}", encoded(ds), checks)
    untouched = {
        "without text": ground(8),
        "noise": np.random.default_rng(9).integers(0, 256, (SIDE, SIDE), dtype=np.uint8),
    }
    for mark in ("L", "R", "MI 0.7", "10 cm", "PORTABLE", "R CC"):
        plain = ground(len(mark))
        plain[strokes(mark, size=22)] = 255
        untouched[mark] = plain
    for what, plain in untouched.items():
        ds = _object(plain[None], next(numbers))
        yield Case(f"untouched: {what}", encoded(ds), retention("harmless pictures", same_pixels))
