"""Reads frames of one de-identified file and writes some of them anew: native ones in place, others losslessly re-encoded."""

from __future__ import annotations

import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from anonymizer.errors import PixelError
from anonymizer.pixels.redact import change_frames, frame_count, is_native

Array = NDArray[Any]


class Store:
    """One file's frames as stored values, [rows, columns]. Raises PixelError when it cannot be followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        try:
            self.header = pydicom.dcmread(path, defer_size=1 << 16)
        except (InvalidDicomError, ValueError, EOFError) as error:
            raise PixelError("it cannot be read again") from error
        self.frames = frame_count(self.header)
        if int(self.header.get("SamplesPerPixel") or 1) != 1 or "PixelData" not in self.header:
            raise PixelError("a head in colour, in floating point or without a picture cannot be defaced")
        self.native = is_native(self.header) and not UID(self.header.file_meta.TransferSyntaxUID).is_deflated

    def frame(self, index: int) -> Array:
        """The stored values of one frame, counted from 0."""
        try:
            # a classic object is read each time, so that a series never lies in memory as a whole
            ds = pydicom.dcmread(self.path) if self.frames == 1 else self.header
            values, _ = get_decoder(UID(ds.file_meta.TransferSyntaxUID)).as_array(ds, index=index, raw=True)
        except Exception as error:
            raise PixelError("its picture cannot be decoded, so its face cannot be removed") from error
        return np.asarray(values)

    def erase(self, changes: list[tuple[int, Array]], scale: dict[int, tuple[float, float]]) -> int:
        """Overwrite the masked pixels of the named frames with air; -> how many frames that changed. Raises PixelError."""
        ds = pydicom.dcmread(self.path)
        changed: set[int] = set()

        def paint(index: int, mask: Array, frame: Array) -> None:
            air = self._air(frame, *scale[index])
            if (frame[mask] != air).any():
                frame[mask] = air
                changed.add(index)

        change_frames(ds, {index: partial(paint, index, mask) for index, mask in changes})
        if changed:
            self._write(ds)
        return len(changed)

    def _air(self, frame: Array, slope: float, intercept: float) -> int:
        """The stored value that stands for air: -1000 HU in CT, nothing elsewhere, within what Bits Stored can hold."""
        bits = int(self.header.BitsStored)
        signed = int(self.header.get("PixelRepresentation") or 0)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        wanted = -1000.0 if self.header.get("Modality") == "CT" else 0.0
        return int(min(max(round((wanted - intercept) / slope) if slope else low, low), high))

    def _write(self, ds: pydicom.Dataset) -> None:
        syntax = str(ds.file_meta.TransferSyntaxUID)
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        data = out.getvalue()
        partial_path = self.path.with_name(f".{self.path.name}.{os.getpid()}.face")
        try:
            partial_path.write_bytes(data)
            partial_path.replace(self.path)
        except OSError:
            partial_path.unlink(missing_ok=True)
            raise
        native = is_native(ds) and not UID(syntax).is_deflated
        offset = data.rfind(ds.PixelData) if native else -1
        found = offset >= 0
        self.facts = {
            "transfer_syntax": syntax,
            "pixel_offset": offset if found else None,
            "pixel_length": len(ds.PixelData) if found else None,
        }

    def close(self) -> None:
        """Let go of what was read."""
        self.header = pydicom.Dataset()
