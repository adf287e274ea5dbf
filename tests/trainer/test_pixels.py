"""Pixels: the quick way equals pydicom's, polarity and padding are right, damage is one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from trainer.errors import PixelError
from trainer.pixels.header import scan
from trainer.pixels.prepare import Preparation, prepare_frame, reduce
from trainer.pixels.read import read_frames
from trainer.pixels.suv import is_activity, suv_factor

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def write(path: Path, stored: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    """A small grayscale image; `elements` override or add attributes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = stored.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        ds.NumberOfFrames = len(stored)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    ds["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 else "OB"
    if syntax == RLELossless:
        ds.compress(RLELossless)
    ds.save_as(path, enforce_file_format=True)
    return path


def ramp(dtype: str = "<u2", shape: tuple[int, ...] = (6, 8), low: int = 0) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) + low).astype(dtype)


def offset_of(path: Path) -> int:
    header = scan(path.read_bytes())
    assert header is not None
    return header.offset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u1", "<i1"])
def test_native_words_are_read_by_offset(tmp_path: Path, syntax: str, dtype: str) -> None:
    stored = ramp(dtype, low=-20 if "i" in dtype else 0)
    path = write(tmp_path / "a.dcm", stored, syntax, RescaleSlope=2, RescaleIntercept=-7.5)
    found = read_frames(path, pixel_offset=offset_of(path))
    assert found.path == "offset"
    assert np.array_equal(found.values, stored[None].astype(np.float32) * 2 - 7.5)


def test_sequences_of_undefined_length_before_the_pixels_are_walked(tmp_path: Path) -> None:
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    outer = Dataset()
    outer.PurposeOfReferenceCodeSequence = [inner]
    outer.is_undefined_length_sequence_item = True
    path = tmp_path / "a.dcm"
    write(path, ramp(), ReferencedImageSequence=[outer])
    ds = pydicom.dcmread(path)
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.ReferencedImageSequence[0]["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    ds.save_as(path)
    assert b"\xfe\xff\xdd\xe0" in path.read_bytes()
    assert np.array_equal(read_frames(path).values[0], ramp()) and read_frames(path).path == "offset"


def test_a_stale_offset_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", ramp())
    for wrong in (0, 140, offset_of(path) - 2, offset_of(path) + 2, 10**9):
        assert np.array_equal(read_frames(path, pixel_offset=wrong).values[0], ramp())


def test_overlay_bits_above_bits_stored_are_no_pixels(tmp_path: Path) -> None:
    stored = ramp("<u2")
    path = write(tmp_path / "a.dcm", stored | 0xF000, BitsStored=12, HighBit=11)
    assert np.array_equal(read_frames(path).values[0], stored)
    signed = ramp("<i2", low=-24)
    path = write(tmp_path / "b.dcm", signed & 0x0FFF, BitsStored=12, HighBit=11)
    assert np.array_equal(read_frames(path).values[0], signed)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_monochrome1_is_inverted_and_padding_is_dark(tmp_path: Path, syntax: str) -> None:
    stored = ramp("<u2", low=100)
    stored[:, 0] = 4000
    normal = read_frames(write(tmp_path / "2.dcm", stored, syntax, PixelPaddingValue=4000)).values[0]
    assert (normal[:, 0] == 101).all() and np.array_equal(normal[:, 1:], stored[:, 1:])
    path = write(tmp_path / "1.dcm", stored, syntax, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1")
    found = read_frames(path)
    assert found.path == ("offset" if syntax == ExplicitVRLittleEndian else "pydicom")
    assert found.values[0][0, 1] == 147 and found.values[0][5, 7] == 101 and (found.values[0][:, 0] == 101).all()
    limited = write(tmp_path / "3.dcm", stored, syntax, PixelPaddingValue=3000, PixelPaddingRangeLimit=4000)
    assert (read_frames(limited).values[0][:, 0] == 101).all()


def test_multi_frame_with_a_rescale_for_each_frame(tmp_path: Path) -> None:
    def group(slope: float) -> Dataset:
        transform, item = Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = slope, 1, "US"
        item.PixelValueTransformationSequence = [transform]
        return item

    stored = ramp("<u2", (2, 4, 4))
    shared = write(tmp_path / "s.dcm", stored, SharedFunctionalGroupsSequence=[group(3)])
    assert np.array_equal(read_frames(shared).values, stored * 3 + 1)
    each = [group(2), group(5)]
    path = write(
        tmp_path / "f.dcm", stored, SharedFunctionalGroupsSequence=[Dataset()], PerFrameFunctionalGroupsSequence=each
    )
    assert np.array_equal(read_frames(path).values, stored * np.array([2, 5])[:, None, None] + 1)


def test_colour_becomes_luma(tmp_path: Path) -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[..., 1] = 100
    path = write(tmp_path / "c.dcm", ramp("<u1", (4, 4)))
    ds = pydicom.dcmread(path)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.PixelData = rgb.tobytes()
    ds.save_as(path)
    assert read_frames(path).values == pytest.approx(58.7, abs=1e-3)


def test_damage_is_one_sentence_without_a_traceback(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.dcm", ramp("<u2", (32, 32)))
    whole.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(PixelError, match=r"instance 1\.2\.9 cannot be decoded \("):
        read_frames(whole, "1.2.9")
    (tmp_path / "b.dcm").write_bytes(b"not DICOM")
    with pytest.raises(PixelError, match="cannot be decoded"):
        read_frames(tmp_path / "b.dcm")
    with pytest.raises(PixelError, match="cannot be read"):
        read_frames(tmp_path / "absent.dcm")
    ds = pydicom.dcmread(write(tmp_path / "c.dcm", ramp()))
    del ds.PixelData
    ds.save_as(tmp_path / "c.dcm")
    with pytest.raises(PixelError, match="holds no image"):
        read_frames(tmp_path / "c.dcm")
    huge = write(tmp_path / "d.dcm", ramp(), Rows=65000, Columns=65000)
    with pytest.raises(PixelError, match="2 GiB"):
        read_frames(huge)


@pytest.mark.skipif(not DATA.exists(), reason="the shared test data is not beside this checkout")
def test_every_readable_file_of_the_zoo_is_as_pydicom_says() -> None:
    checked = quick = 0
    for path in sorted((DATA / "dicom-zoo" / "files").iterdir()):
        try:
            ds = pydicom.dcmread(path)
            if ds.SamplesPerPixel != 1 or ds.PhotometricInterpretation != "MONOCHROME2" or "PixelPaddingValue" in ds:
                continue
            expected = pydicom.pixels.apply_modality_lut(ds.pixel_array, ds).astype(np.float32)
        except (Exception, RecursionError):  # noqa: BLE001 - the zoo holds broken files on purpose
            continue
        if "SharedFunctionalGroupsSequence" in ds or ds.BitsAllocated == 1:
            continue
        if is_activity(ds):
            if not ds.get("PatientWeight"):
                continue  # told as a sentence; tests/trainer/test_real_geometry.py
            expected = expected * suv_factor(ds)
        found = read_frames(path)
        assert np.allclose(found.values.reshape(expected.shape), expected, rtol=1e-6), path.name
        checked += 1
        quick += found.path == "offset"
    assert checked > 15 and quick > 5


@pytest.mark.skipif(not DATA.exists(), reason="the shared test data is not beside this checkout")
def test_no_file_of_the_zoo_raises_anything_but_a_sentence() -> None:
    for path in sorted((DATA / "dicom-zoo" / "files").iterdir()):
        try:
            assert np.isfinite(read_frames(path).values).all()
        except PixelError as err:
            assert len(str(err).splitlines()) == 1


def test_preparation_z_scores_and_pads_to_a_square() -> None:
    random = np.random.default_rng(0)
    image = prepare_frame(random.normal(1000, 50, (40, 20)).astype(np.float32), Preparation(size=16))
    assert image.shape == (1, 16, 16) and abs(image.mean()) < 1e-5 and image.std() == pytest.approx(1, abs=0.01)
    assert np.ptp(image[0, :, :3]) < 1e-4  # padded with the image's darkest value
    flat = prepare_frame(np.full((8, 8), 7.0), Preparation(size=8))
    assert np.array_equal(flat, np.zeros((1, 8, 8)))
    same = prepare_frame(random.normal(0, 1, (16, 16)), Preparation(size=16, normalise="none"))
    assert same.shape == (1, 16, 16)


def test_gain_and_offset_of_a_scanner_do_not_change_a_prepared_image() -> None:
    image = np.random.default_rng(0).normal(0, 1, (32, 32)).astype(np.float32)
    preparation = Preparation(size=16)
    assert np.allclose(prepare_frame(image, preparation), prepare_frame(image * 300 - 1024, preparation), atol=1e-3)


def test_the_digest_names_every_setting() -> None:
    digests = {
        Preparation().digest,
        Preparation(size=32).digest,
        Preparation(normalise="none").digest,
        Preparation(square=False).digest,
    }
    assert len(digests) == 4


@pytest.mark.parametrize("shape", [(96, 96), (96, 64), (64, 64), (33, 96), (97, 97)])
def test_averaging_blocks_first_changes_little_and_only_large_images(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.sin(np.arange(shape[0]) / 9), np.cos(np.arange(shape[1]) / 7)).astype(np.float32)
    frame = smooth + random.normal(0, 0.05, shape).astype(np.float32)
    small = reduce(frame, 16)
    k = shape[0] // small.shape[0]
    assert small.shape == (shape[0] // k, shape[1] // k) and max(small.shape) >= 16 and k != 2
    assert np.allclose(small, frame.reshape(shape[0] // k, k, shape[1] // k, k).mean((1, 3)), atol=1e-5)
