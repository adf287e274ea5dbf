"""The seam to the cleaning of pictures: takes an object's bytes, has burned-in text covered, gives the bytes back."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from anonymizer.errors import PixelError
from anonymizer.model import PixelStep

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def clean_picture(data: bytes) -> tuple[bytes | None, str]:
    """(the object with burned-in text covered, "") or (None, why it must be withheld)."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    from anonymizer.pixels import clean_pixels

    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=True)
        outcome = clean_pixels(ds, force=True)
    except (InvalidDicomError, ValueError, NotImplementedError, RuntimeError, AttributeError, TypeError, IndexError):
        return None, "its picture cannot be decoded, so burned-in text cannot be looked for"
    if outcome.status == "failed":
        return None, outcome.reason or "its picture cannot be cleaned"
    if outcome.status != "redacted":
        return data, ""
    cleaned, reason = _read_again(ds)
    frames = int(ds.get("NumberOfFrames") or 1)
    if cleaned is None and 1 < frames <= _EACH_FRAME:  # letters that differ from frame to frame blur in a projection
        if clean_pixels(ds, force=True, each_frame=True).status == "failed":
            return None, reason
        return _read_again(ds, each_frame=True)
    return cleaned, reason


_EACH_FRAME = 200  # frames; more of them would take longer than a file may


def _read_again(ds: Dataset, each_frame: bool = False) -> tuple[bytes | None, str]:
    """The covered object as bytes, when nothing can be read in what was written; else the reason to withhold it."""
    import pydicom

    from anonymizer.pixels import still_readable

    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=False)
    try:
        readable = still_readable(pydicom.dcmread(io.BytesIO(out.getvalue()), force=True), each_frame=each_frame)
    except PixelError:
        readable = True
    return (None, "text is still found in its picture after covering it") if readable else (out.getvalue(), "")


def default_pixel_step() -> PixelStep:
    """The step shipped with the anonymizer."""
    return clean_picture
