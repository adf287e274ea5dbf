"""Draws a head's surface before and after its face was taken off, as a PNG for the eyes of the hospital only.

A surface like this is what recognises a person: such a picture is never logged, never sent, and never lies with the outputs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from anonymizer.errors import OutputError, PixelError
from anonymizer.faces.tissue import head_of
from anonymizer.faces.volume import Frame, Grid, coarse, read_frames, stacks
from anonymizer.pixels.redact import frames as pictures

Array = NDArray[Any]
Opened = Callable[[], bytes]
ZOOM = 2  # pixels of the picture for each cell of the grid (2 mm)
_LIGHT = np.array([-0.35, 0.45, 0.82])  # across, up, towards the eye


def previews(before: Sequence[Opened], after: Sequence[Opened]) -> list[bytes]:
    """One PNG for each volume of a series: its surface from the front and both sides, before (above) and after (below).

    ``before`` and ``after`` give the bytes of the same objects in the same order. Raises PixelError when no volume with
    positions is among them.
    """
    made = []
    for (one, modality), (other, _) in zip(_grids(before), _grids(after), strict=False):
        made.append(drawn(one, other, modality))
    if not made:
        raise PixelError("No volume with positions is in this series, so no surface can be drawn.")
    return made


def drawn(before: Grid, after: Grid, modality: str) -> bytes:
    """The PNG of one volume."""
    rows = [_views(head_of(grid, modality == "CT"), label) for grid, label in ((before, "before"), (after, "after"))]
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, name: str, pictures_of: Sequence[bytes]) -> None:
    """``name``-1.png and so on, for the owner's eyes (mode 0600 in a folder of 0700). Raises OutputError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number, png in enumerate(pictures_of, 1):
            path = folder / f"{name}-{number}.png"
            path.touch(mode=0o600)
            path.write_bytes(png)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}); make room or name another --face-preview."
        ) from None


def _grids(objects: Sequence[Opened]) -> list[tuple[Grid, str]]:
    """The coarse grid and modality of each stack of at least two positions. Raises PixelError."""
    found: list[Frame] = []
    modality = ""
    for number, opened in enumerate(objects):
        try:
            ds = pydicom.dcmread(io.BytesIO(opened()), stop_before_pixels=True, force=True)
            modality = modality or str(ds.get("Modality", ""))
            found += read_frames(ds, number)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, InvalidDicomError):
            continue  # a localizer or a report without positions is no part of the volume
    volumes = _Volumes(objects)
    return [(coarse(stack, volumes.frame), modality) for stack in stacks(found) if len(stack.depths) > 1]


class _Volumes:
    """Frames of a series' objects, of which one is held at a time."""

    def __init__(self, objects: Sequence[Opened]) -> None:
        self._objects = objects
        self._open: tuple[int, list[Array]] = (-1, [])

    def frame(self, frame: Frame) -> Array:
        if self._open[0] != frame.source:
            ds: Dataset = pydicom.dcmread(io.BytesIO(self._objects[frame.source]()), force=True)
            self._open = (frame.source, [np.array(one) for one in pictures(ds)])
        return self._open[1][frame.number]


def _views(head: Array, label: str) -> NDArray[np.uint8]:
    """Right side, front and left side of a head, bool [z, y, x] in LPS, beside each other."""
    soft: Array = np.array(ndimage.gaussian_filter(np.pad(head, 2).astype(np.float32), 0.8) > 0.5)
    right = soft[:, ::-1, :].transpose(0, 2, 1)  # seen from the patient's right the face looks to the right
    left = soft[:, :, ::-1].transpose(0, 2, 1)
    shown = [_shaded(volume) for volume in (right, soft, left)]
    picture = Image.fromarray(np.concatenate(shown, axis=1))
    picture = picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.BILINEAR)
    ImageDraw.Draw(picture).text((4, 4), label, fill=255)
    return np.asarray(picture, dtype=np.uint8)


def _shaded(volume: Array) -> NDArray[np.uint8]:
    """A volume seen along its second axis and lit from above: uint8 [rows from the top, columns]."""
    hit: Array = np.array(volume.any(axis=1))[::-1]
    depth = np.where(hit, volume.argmax(axis=1)[::-1], volume.shape[1]).astype(np.float32)
    smooth = ndimage.gaussian_filter(depth, 0.7)
    down, across = np.gradient(smooth)
    normals = np.stack([across, down, np.ones_like(smooth)])
    normals /= np.sqrt((normals**2).sum(axis=0))
    light = np.tensordot(_LIGHT / np.linalg.norm(_LIGHT), normals, axes=(0, 0))
    near = 1.0 - 0.35 * depth / volume.shape[1]
    return np.asarray(np.where(hit, np.clip(25 + 230 * light * near, 0, 255), 0), dtype=np.uint8)
