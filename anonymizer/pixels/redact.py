"""Covers regions of chosen frames in a Dataset's pixel data and touches no other bit it need not touch.

Native pixel data is overwritten in place. Of encapsulated pixel data only the frames with a region are decoded and encoded
again, in their own transfer syntax: losslessly for RLE, JPEG-LS and JPEG 2000 (grayscale), with the frame's own quantisation
tables for JPEG baseline. For the syntaxes nobody here can encode (JPEG lossless and extended, HTJ2K, colour JPEG 2000) the
object becomes Explicit VR Little Endian, which loses nothing that decoding keeps.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from anonymizer.errors import PixelError
from anonymizer.pixels.ocr import TextRegion

Regions = Mapping[int, list[TextRegion]]  # frame index -> what to cover there

# Which encoder rewrites a frame of which syntax; a lossless stream is legal in the lossy-or-lossless syntaxes too.
_ENCODER = {
    RLELossless: (RLELossless, "pydicom"),
    JPEGLSLossless: (JPEGLSLossless, "pyjpegls"),
    JPEGLSNearLossless: (JPEGLSLossless, "pyjpegls"),
    JPEG2000Lossless: (JPEG2000Lossless, "pylibjpeg"),
    JPEG2000: (JPEG2000Lossless, "pylibjpeg"),
}


def frame_count(ds: Dataset) -> int:
    return max(1, int(ds.get("NumberOfFrames") or 1))


def with_full_chroma(ds: Dataset) -> None:
    """Native YBR_FULL_422, two pixels sharing their chroma (PS3.3 C.7.6.3.1.2), becomes YBR_FULL in place."""
    if not is_native(ds) or ds.get("PhotometricInterpretation") != "YBR_FULL_422":
        return
    need = frame_count(ds) * int(ds.Rows) * int(ds.Columns) * 2
    if int(ds.BitsAllocated) != 8 or int(ds.Columns) % 2 or len(ds.PixelData) < need:
        raise PixelError("The pixel data is shorter than Rows, Columns and Number of Frames say.")
    pairs = np.frombuffer(ds.PixelData, np.uint8, need).reshape(-1, 4)
    whole = pairs[:, [0, 2, 3, 1, 2, 3]]
    ds.PixelData, ds.PhotometricInterpretation, ds.PlanarConfiguration = whole.tobytes(), "YBR_FULL", 0


def is_native(ds: Dataset) -> bool:
    return not UID(ds.file_meta.TransferSyntaxUID).is_encapsulated


def frames(ds: Dataset) -> Iterator[NDArray[np.generic]]:
    """Every frame as [rows, columns] or [rows, columns, samples], one at a time.

    Raises PixelError when a frame cannot be decoded.
    """
    if is_native(ds):
        yield from _native_frames(ds)
        return
    if UID(ds.file_meta.TransferSyntaxUID) in _RETIRED:
        for code in generate_frames(ds.PixelData, number_of_frames=frame_count(ds)):
            yield _with_pillow(code)
        return
    decoder = get_decoder(UID(ds.file_meta.TransferSyntaxUID))
    try:
        for frame, _ in decoder.iter_array(ds, raw=True):
            yield frame
    except Exception as error:  # decoding plugins raise whatever their C library gives them
        raise PixelError(f"The pixel data cannot be decoded ({type(error).__name__}).") from error


# JPEG of 8 bits in several scans (PS3.5 8.2.1, retired): spectral selection, full progression
_RETIRED = frozenset(UID(f"1.2.840.10008.1.2.4.{tail}") for tail in (53, 55))


def _with_pillow(code: bytes) -> NDArray[np.generic]:
    """A JPEG frame of 8 bits as [rows, columns(, 3)]; colour as RGB."""
    try:
        return np.asarray(Image.open(io.BytesIO(code)))
    except (OSError, ValueError) as error:
        raise PixelError("A JPEG frame cannot be decoded.") from error


def _native_frames(ds: Dataset) -> Iterator[NDArray[np.generic]]:
    block = _native_array(ds, ds.PixelData)
    planar = block.ndim == 4 and int(ds.get("PlanarConfiguration") or 0) == 1
    for frame in block:
        yield np.moveaxis(frame, 0, -1) if planar else frame


def _native_array(ds: Dataset, buffer: bytes | bytearray) -> NDArray[np.generic]:
    """View of native pixel data: [frames, rows, columns(, samples)], or [frames, samples, rows, columns] when planar."""
    bits, samples = int(ds.BitsAllocated), int(ds.get("SamplesPerPixel") or 1)
    if bits not in (8, 16, 32) or ds.get("PhotometricInterpretation") == "YBR_FULL_422":
        raise PixelError(f"Native pixel data with {bits} bits a sample and this colour model cannot be redacted.")
    order = ">" if UID(ds.file_meta.TransferSyntaxUID) == ExplicitVRBigEndian else "<"
    kind = np.dtype(f"{order}{'i' if int(ds.get('PixelRepresentation') or 0) else 'u'}{bits // 8}")
    rows, columns, count = int(ds.Rows), int(ds.Columns), frame_count(ds)
    need = count * rows * columns * samples
    if len(buffer) < need * kind.itemsize:
        raise PixelError("The pixel data is shorter than Rows, Columns and Number of Frames say.")
    flat = np.frombuffer(buffer, dtype=kind, count=need)
    if samples == 1:
        return flat.reshape(count, rows, columns)
    if int(ds.get("PlanarConfiguration") or 0) == 1:
        return flat.reshape(count, samples, rows, columns)
    return flat.reshape(count, rows, columns, samples)


def cover(frame: NDArray[np.generic], regions: list[TextRegion], photometric: str) -> None:
    """Overwrite the regions of one writable frame with one value: black, or white where the ground is bright.

    Dark text on a bright ground would keep its own pixels under a black cover, though nobody could read them.
    """
    low, high = float(_brightness(frame).min()), float(_brightness(frame).max())
    for region in regions:
        window = frame[region.rows, region.columns]
        window[region.mask] = _value(frame, photometric, bright=_dark_text(_brightness(window)[region.mask], low, high))


def _dark_text(values: NDArray[Any], low: float, high: float) -> bool:
    """Whether a covered region's strokes are its dark part: text stands at an end of the range and fills less than half."""
    values, edge = values.astype(np.float64), (high - low) / 50
    dark, bright = float((values <= low + edge).mean()), float((values >= high - edge).mean())
    dark_text, bright_text = 0.04 < dark < 0.5, 0.04 < bright < 0.5
    if dark_text != bright_text:
        return dark_text
    return float(np.median(values)) > (low + high) / 2


def _brightness(frame: NDArray[np.generic]) -> NDArray[np.generic]:
    return frame if frame.ndim == 2 else frame[..., 0]


def _value(frame: NDArray[np.generic], photometric: str, bright: bool) -> NDArray[np.generic] | np.generic:
    """The cover's pixel: an end of the frame's own range, or of the sample's range in colour."""
    if frame.ndim == 2:
        return np.asarray(frame.max() if bright else frame.min())
    top = 256**frame.dtype.itemsize - 1 if bright else 0
    if photometric.startswith("YBR_FULL"):
        return np.array([top, 128, 128], dtype=frame.dtype)
    return np.full(frame.shape[2], top, dtype=frame.dtype)


Change = Callable[[NDArray[np.generic]], None]  # alters one writable frame


def redact(ds: Dataset, regions: Regions) -> None:
    """Cover ``regions`` in ``ds`` in place. Raises PixelError when the result cannot be written or read back."""
    photometric = str(ds.get("PhotometricInterpretation", ""))
    if UID(ds.file_meta.TransferSyntaxUID) == JPEGBaseline8Bit:
        _replace(
            ds, {i: partial(_rewrite_jpeg, regions=found, photometric=photometric) for i, found in regions.items()}
        )
        return
    change_frames(ds, {i: partial(cover, regions=found, photometric=photometric) for i, found in regions.items()})


def change_frames(ds: Dataset, changes: Mapping[int, Change]) -> None:
    """Alter the named frames (from 0) of ``ds`` in place without any loss; other frames keep their bytes where possible.

    A syntax that nobody here can encode losslessly becomes Explicit VR Little Endian. Raises PixelError.
    """
    if not is_native(ds):
        syntax = UID(ds.file_meta.TransferSyntaxUID)
        colour = int(ds.get("SamplesPerPixel") or 1) > 1
        if syntax in _ENCODER and (not colour or syntax == RLELossless):
            _replace(
                ds, {i: partial(_rewrite_lossless, ds=ds, syntax=syntax, index=i, change=c) for i, c in changes.items()}
            )
            return
        _decompress(ds)
    buffer = bytearray(ds.PixelData)
    block = _native_array(ds, buffer)
    planar = block.ndim == 4 and int(ds.get("PlanarConfiguration") or 0) == 1
    for index, change in changes.items():
        change(np.moveaxis(block[index], 0, -1) if planar else block[index])
    ds.PixelData = bytes(buffer)


def _replace(ds: Dataset, made: Mapping[int, Callable[[bytes], bytes]]) -> None:
    """Put new code streams in the place of some frames'."""
    encoded = list(generate_frames(ds.PixelData, number_of_frames=frame_count(ds)))
    for index, make in made.items():
        encoded[index] = make(encoded[index])
    extended = "ExtendedOffsetTable" in ds
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in ds:
            delattr(ds, keyword)
    ds.PixelData = encapsulate(encoded, has_bot=not extended)
    ds["PixelData"].is_undefined_length = True


def _decompress(ds: Dataset) -> None:
    if UID(ds.file_meta.TransferSyntaxUID) in _RETIRED:
        shown = list(frames(ds))
        ds.PixelData = b"".join(frame.tobytes() for frame in shown)
        if shown[0].ndim == 3:
            ds.PhotometricInterpretation, ds.PlanarConfiguration = "RGB", 0
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", False
        return
    try:
        ds.decompress(generate_instance_uid=False)
    except Exception as error:  # decoding plugins raise whatever their C library gives them
        raise PixelError(f"The pixel data cannot be decoded ({type(error).__name__}).") from error
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _rewrite_jpeg(data: bytes, regions: list[TextRegion], photometric: str) -> bytes:
    try:
        source = Image.open(io.BytesIO(data))
        pixels = np.array(source)
    except OSError as error:
        raise PixelError("A JPEG frame cannot be decoded.") from error
    if not isinstance(source, JpegImagePlugin.JpegImageFile):
        raise PixelError("A JPEG frame does not hold a JPEG stream.")
    cover(pixels, regions, "RGB")
    sampling = JpegImagePlugin.get_sampling(source)
    out = io.BytesIO()
    Image.fromarray(pixels).save(
        out,
        "JPEG",
        qtables=source.quantization,
        subsampling=sampling if sampling >= 0 else "keep" if pixels.ndim == 2 else 0,
        keep_rgb=photometric == "RGB",
    ) if pixels.ndim == 3 else Image.fromarray(pixels).save(out, "JPEG", qtables=source.quantization)
    return out.getvalue()


def _rewrite_lossless(_: bytes, ds: Dataset, syntax: UID, index: int, change: Change) -> bytes:
    target, plugin = _ENCODER[syntax]
    try:
        frame, meta = get_decoder(syntax).as_array(ds, index=index, raw=True)
    except Exception as error:  # decoding plugins raise whatever their C library gives them
        raise PixelError(f"Frame {index + 1} cannot be decoded ({type(error).__name__}).") from error
    pixels = np.array(frame)
    change(pixels)
    encoded: bytes = get_encoder(target).encode(
        pixels,
        encoding_plugin=plugin,
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        samples_per_pixel=int(ds.get("SamplesPerPixel") or 1),
        number_of_frames=1,
        bits_allocated=int(meta["bits_allocated"]),
        bits_stored=int(ds.BitsStored),
        pixel_representation=int(ds.get("PixelRepresentation") or 0),
        photometric_interpretation=str(meta["photometric_interpretation"]),
        planar_configuration=0,
    )
    return encoded
