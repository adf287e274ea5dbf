"""Burned-in text is found and covered in every kind of pixel data; pictures without text stay bit for bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from anonymizer.pixels import clean_pixels, needs_look
from anonymizer.pixels.benign import is_benign
from anonymizer.pixels.clean import _extreme
from anonymizer.pixels.frames import projections, standing_out
from anonymizer.pixels.ocr import TextRegion
from anonymizer.pixelstep import clean_picture

SIZE = 256
NAME = "DOE JANE 1964"


def background(seed: int = 0) -> np.ndarray:
    """A smooth, textured uint8 picture without text."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    return (60 + 50 * np.sin(3 * x + 1) * np.cos(2 * y) + rng.normal(0, 3, (SIZE, SIZE))).clip(0, 200).astype(np.uint8)


def text_mask(text: str = NAME, at: tuple[int, int] = (40, 100), turn: int = 0) -> np.ndarray:
    image = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(image).text(at, text, fill=255, font=ImageFont.load_default(16))
    return np.asarray(image.rotate(turn)) > 128


def image(frames: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **extra: object) -> Dataset:
    """A Dataset around ``frames`` [n, rows, columns(, 3)] in the given transfer syntax."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.SOPInstanceUID = "2.25.1"
    ds.Modality = "OT"
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = frames.dtype.itemsize * 8
    ds.BitsStored = ds.BitsAllocated if frames.dtype.itemsize == 1 else 12
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = 0
    for keyword, value in extra.items():
        setattr(ds, keyword, value)
    if syntax == JPEGBaseline8Bit:
        encoded = []
        for frame in frames:
            out = io.BytesIO()
            Image.fromarray(frame).save(out, "JPEG", quality=92)
            encoded.append(out.getvalue())
        ds.PixelData = encapsulate(encoded)
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax == ExplicitVRBigEndian:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = frames.astype(frames.dtype.newbyteorder(">")).tobytes()
    else:
        ds.PixelData = frames.tobytes()
        if syntax != ExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
    return ds


def decoded(ds: Dataset) -> np.ndarray:
    if UID(ds.file_meta.TransferSyntaxUID).is_encapsulated:
        frames = [array for array, _ in get_decoder(ds.file_meta.TransferSyntaxUID).iter_array(ds, raw=True)]
        return np.stack(frames)
    order = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    kind = np.dtype(f"{order}u{ds.BitsAllocated // 8}")
    shape = (ds.NumberOfFrames, ds.Rows, ds.Columns) + ((3,) if ds.SamplesPerPixel == 3 else ())
    return np.frombuffer(ds.PixelData, kind).reshape(shape)


def covered(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Share of the text's strokes that are no longer what they were."""
    changed = before != after
    if changed.ndim == 3:
        changed = changed.any(axis=2)
    return float(changed[mask].mean())


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]
)
@pytest.mark.parametrize("depth", [8, 12])
def test_text_is_covered_and_the_rest_is_kept(syntax: UID, depth: int) -> None:
    plain = background().astype(np.uint8 if depth == 8 else np.uint16) << (depth - 8)
    mask = text_mask()
    frame = plain.copy()
    frame[mask] = 255 << (depth - 8)
    ds = image(frame[None], syntax)
    outcome = clean_pixels(ds)
    after = decoded(ds)[0]
    assert outcome.status == "redacted"
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert covered(frame, after, mask) > 0.99
    changed = np.argwhere(frame != after)
    region = outcome.regions[0]
    assert (changed.max(axis=0) < [SIZE * 0.6, SIZE * 0.9]).all(), "something far from the text was changed"
    assert region.top <= changed[:, 0].min() and region.left <= changed[:, 1].min()


def test_colour_and_jpeg_baseline() -> None:
    mask = text_mask()
    rgb = np.repeat(background()[..., None], 3, axis=2)
    rgb[mask] = (255, 220, 0)
    ds = image(rgb[None])
    assert clean_pixels(ds).status == "redacted"
    assert covered(rgb, decoded(ds)[0], mask) > 0.99

    gray = background()
    gray[mask] = 255
    ds = image(np.stack([background(1), gray]), JPEGBaseline8Bit)
    untouched, _ = list(generate_frames(ds.PixelData, number_of_frames=2))
    assert clean_pixels(ds).status == "redacted"
    first, second = list(generate_frames(ds.PixelData, number_of_frames=2))
    assert first == untouched, "a frame without text was encoded again"
    assert np.asarray(Image.open(io.BytesIO(second)))[mask].max() < 60


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_and_dark_text(turn: int) -> None:
    mask = text_mask(turn=turn)
    frame = background()
    frame[mask] = 0 if turn == 180 else 255
    ds = image(frame[None])
    assert clean_pixels(ds).status == "redacted"
    after = decoded(ds)[0]
    from anonymizer.pixels.ocr import find_text

    assert not [r for r in find_text(after) if sum(c.isalpha() for c in r.text) >= 3 and r.confidence > 0.6]


def test_only_the_frames_that_carry_text_change() -> None:
    frames = np.stack([background(i) for i in range(5)])
    mask = text_mask()
    frames[2][mask] = 255
    ds = image(frames)
    outcome = clean_pixels(ds)
    after = decoded(ds)
    assert {number for region in outcome.regions for number in region.frames} == {3}
    assert covered(frames[2], after[2], mask) > 0.99
    for index in (0, 1, 3, 4):
        assert np.array_equal(frames[index], after[index])


def test_letters_that_the_noise_of_many_frames_hides_are_found_on_their_own_frame() -> None:
    rng = np.random.default_rng(5)
    frames = np.clip(rng.gamma(2.0, 26.0, (16, SIZE, SIZE)), 0, 252).astype(np.uint8)
    mask = text_mask()
    frames[9][mask] = 255
    highest, lowest = projections(iter(frames))
    assert standing_out(iter(frames), highest, lowest) == [9]
    assert standing_out(iter(frames[:9]), *projections(iter(frames[:9]))) == []


def test_letters_that_differ_from_frame_to_frame_are_covered_not_withheld() -> None:
    words = ("WHITLOCK", "PEMBERTON", "12/03/1964", "OYELARAN")
    frames = np.stack([background(i) for i in range(len(words))])
    masks = [text_mask(word, (40 + 7 * i, 100 + 5 * i)) for i, word in enumerate(words)]
    for frame, mask in zip(frames, masks, strict=True):
        frame[mask] = 255
    ds = image(frames)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    cleaned, reason = clean_picture(stream.getvalue())
    assert cleaned is not None, reason
    after = decoded(dcmread(io.BytesIO(cleaned)))
    for before, now, mask in zip(frames, after, masks, strict=True):
        assert covered(before, now, mask) > 0.97


def test_pictures_without_text_and_harmless_marks_stay_bit_for_bit() -> None:
    frame = background()
    frame[text_mask("PORTABLE", (20, 20))] = 255
    ds = image(frame[None])
    before = bytes(ds.PixelData)
    outcome = clean_pixels(ds)
    assert outcome.status == "clean" and outcome.spared >= 1
    assert bytes(ds.PixelData) == before


@pytest.mark.parametrize("text", ["L", "R", "AP", "MI 0.7", "TIs 0.4", "10 cm", "62 Hz", "RMLO", "Zoom 2.0x"])
def test_technical_marks_are_benign(text: str) -> None:
    assert is_benign(text, 0.95)


@pytest.mark.parametrize("text", ["DOE", "12.03.1964", "00412377", "MRN 12", "St. Mary", "Dr. L", "1964", "AP Smith"])
def test_identifying_text_is_not_benign(text: str) -> None:
    assert not is_benign(text, 0.99)


def test_doubtful_reading_is_not_believed() -> None:
    assert not is_benign("AP", 0.5)


def test_the_annotation_attribute_is_not_believed_to_mean_clean() -> None:
    ds = image(background()[None], BurnedInAnnotation="NO", Modality="US")
    assert needs_look(ds)
    ds = image(background()[None], Modality="CT")
    assert not needs_look(ds)
    ds.BurnedInAnnotation = "YES"
    assert needs_look(ds)
    ds = image(background()[None], Modality="CT", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    assert needs_look(ds)


def test_pixel_data_too_short_fails_closed() -> None:
    ds = image(background()[None])
    ds.PixelData = ds.PixelData[: SIZE * 10]
    outcome = clean_pixels(ds)
    assert outcome.status == "failed" and "shorter" in outcome.reason


def test_a_find_in_an_unsuspected_picture_must_be_read_or_hold_extreme_values() -> None:
    ds = image(np.full((1, 60, 60), 500, dtype=np.uint16), Modality="MR")
    frame = ds.pixel_array.copy()
    frame[0, 0], frame[10:14, 10:40], frame[40:44, 10:40] = 4000, 4000, 1500
    ds.PixelData, mask = frame.tobytes(), np.ones((10, 40), dtype=bool)
    letters = TextRegion(slice(8, 18), slice(5, 45), mask, 0.5, 4.0)
    gyrus = TextRegion(slice(35, 45), slice(5, 45), mask, 0.5, 4.0)
    ds.PixelData = np.where(frame == 500, 600, frame).astype(np.uint16).tobytes()
    ds.PixelData = ds.PixelData[:-2] + bytes(2)
    assert _extreme(ds, letters, [0]) and not _extreme(ds, gyrus, [0])
