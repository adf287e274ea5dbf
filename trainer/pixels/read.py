"""One DICOM instance → its frames in modality units, dark air and bright bone whatever the photometric interpretation.

Native little-endian files are read through the remembered pixel offset and np.frombuffer; every other transfer
syntax and
every unusual header goes through pydicom. The VOI LUT is not applied; the modality transform, MONOCHROME1 and pixel
padding are (PS3.3 C.11.1, C.7.6.3.1.2, C.7.5.1.1.2), and PET in Bq/ml becomes SUV by body weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import PixelError
from trainer.pixels.header import PixelHeader, scan
from trainer.pixels.suv import is_activity, suv_factor

_LARGEST = 1 << 31  # bytes of one decoded image
_PIXEL_TAG = b"\xe0\x7f\x10\x00"


@dataclass(frozen=True)
class Frames:
    """values float32 [frames, H, W] in modality units."""

    values: np.ndarray
    path: str  # "offset" or "pydicom": which way it was read


def read_frames(path: Path, name: str = "", pixel_offset: int | None = None, pixel_length: int | None = None) -> Frames:
    """All frames of the instance in the file `path`.

    name: the de-identified SOP Instance UID, for messages. Errors: PixelError with one sentence.
    """
    name = name or path.stem
    try:
        data = path.read_bytes()
    except OSError as err:
        raise PixelError(
            f"instance {name} cannot be read ({err.strerror}); restore the file or withdraw the study"
        ) from err
    header = scan(data[:pixel_offset] if _offset_fits(data, pixel_offset) else data)
    if header is not None and pixel_offset is not None and header.offset != pixel_offset:
        header = None
    if header is not None and _plain(header, len(data)):
        return Frames(_native(data, header), "offset")
    return Frames(_with_pydicom(path, name), "pydicom")


def _offset_fits(data: bytes, offset: int | None) -> bool:
    """Whether the remembered offset still stands right behind a Pixel Data tag."""
    return offset is not None and (
        data[offset - 8 : offset - 4] == _PIXEL_TAG or data[offset - 12 : offset - 8] == _PIXEL_TAG
    )


def _plain(header: PixelHeader, size: int) -> bool:
    """Whether np.frombuffer alone can read it: grayscale words of 8 or 16 bits, all there."""
    need = header.rows * header.columns * header.frames * header.allocated // 8
    return (
        header.samples == 1
        and header.photometric in ("MONOCHROME1", "MONOCHROME2")
        and header.allocated in (8, 16)
        and 0 < header.stored <= header.allocated
        and 0 < need <= header.length
        and header.offset + need <= size
    )


def _native(data: bytes, header: PixelHeader) -> np.ndarray:
    word = {(8, False): "<u1", (8, True): "<i1", (16, False): "<u2", (16, True): "<i2"}[header.allocated, header.signed]
    count = header.frames * header.rows * header.columns
    stored = np.frombuffer(data, word, count, header.offset).reshape(header.frames, header.rows, header.columns)
    spare = header.allocated - header.stored
    if spare:  # high bits may hold an overlay (PS3.5 8.1.1)
        stored = (stored << spare) >> spare if header.signed else stored & ((1 << header.stored) - 1)
    return _finish(
        stored,
        header.slope,
        header.intercept,
        header.photometric,
        _padding_mask(stored, header.padding, header.padding_limit),
    )


def _finish(
    stored: np.ndarray, slope: float, intercept: float, photometric: str, padded: np.ndarray | None
) -> np.ndarray:
    values = stored.astype(np.float32)
    if slope != 1.0:
        values *= np.float32(slope)
    if intercept != 0.0:
        values += np.float32(intercept)
    return _polarity(values, photometric, padded)


def _polarity(values: np.ndarray, photometric: str, padded: np.ndarray | None) -> np.ndarray:
    """MONOCHROME1 mirrored in its own range; padding set to the darkest value of the true pixels."""
    if photometric != "MONOCHROME1" and (padded is None or not padded.any()):
        return values
    true = values if padded is None or padded.all() else values[~padded]
    low, high = float(true.min()), float(true.max())
    if photometric == "MONOCHROME1":
        values = np.float32(low + high) - values
    if padded is not None and padded.any():
        values = np.where(padded, np.float32(low), values)
    return values


def _padding_mask(stored: np.ndarray, padding: int | None, limit: int | None) -> np.ndarray | None:
    if padding is None:
        return None
    low, high = sorted((padding, padding if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _with_pydicom(path: Path, name: str) -> np.ndarray:
    """Decode with pydicom and its plugins; per-frame rescale and modality LUTs included."""
    import pydicom

    try:
        ds = pydicom.dcmread(path, force=False)
        if "Rows" not in ds or not any(tag in ds for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise PixelError(f"instance {name} holds no image; exclude its SOP class from the cohort")
        if int(ds.Rows) * int(ds.Columns) * int(ds.get("NumberOfFrames") or 1) * int(ds.BitsAllocated) // 8 > _LARGEST:
            raise PixelError(f"instance {name} claims more than 2 GiB of pixels; exclude it from the cohort")
        stored = ds.pixel_array
        return _gray_frames(ds, stored)
    except PixelError:
        raise
    except Exception as err:
        reason = str(err).splitlines()[0][:160] if str(err) else type(err).__name__
        raise PixelError(f"instance {name} cannot be decoded ({reason}); send it again or withdraw the study") from err


def _gray_frames(ds: Any, stored: np.ndarray) -> np.ndarray:
    frames = int(ds.get("NumberOfFrames") or 1)
    if int(ds.get("SamplesPerPixel") or 1) == 3:
        rgb = stored.reshape(frames, ds.Rows, ds.Columns, 3).astype(np.float32)
        return np.asarray(rgb @ np.array([0.299, 0.587, 0.114], np.float32))  # ITU-R BT.601 luma
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        rgb = apply_color_lut(stored, ds).reshape(frames, ds.Rows, ds.Columns, -1)[..., :3].astype(np.float32)
        return np.asarray(rgb @ np.array([0.299, 0.587, 0.114], np.float32))
    stored = stored.reshape(frames, ds.Rows, ds.Columns)
    padded = _padding_mask(stored, _integer(ds, "PixelPaddingValue"), _integer(ds, "PixelPaddingRangeLimit"))
    return _polarity(_modality_units(ds, stored), str(ds.PhotometricInterpretation), padded)


def _integer(ds: Any, keyword: str) -> int | None:
    value = ds.get(keyword)
    return int(value) if isinstance(value, int | float) else None


def _modality_units(ds: Any, stored: np.ndarray) -> np.ndarray:
    """Rescale by the modality LUT or slope and intercept, per frame where functional groups say so (C.7.6.16.2.9)."""
    from pydicom.pixels import apply_modality_lut

    shared = (ds.get("SharedFunctionalGroupsSequence") or [None])[0]
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if shared is None and not groups:
        values = np.asarray(apply_modality_lut(stored, ds), np.float32)
        return values * np.float32(suv_factor(ds)) if is_activity(ds) else values
    values = stored.astype(np.float32)
    for index in range(len(values)):
        item = groups[index] if index < len(groups) else None
        for group in (item, shared):
            found = group.get("PixelValueTransformationSequence") if group is not None else None
            if found:
                values[index] = values[index] * float(found[0].RescaleSlope) + float(found[0].RescaleIntercept)
                break
    return values
