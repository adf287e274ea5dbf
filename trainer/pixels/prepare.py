"""Stored values in modality units → a square, z-scored image: pad to square, resize, normalise.

The VOI window is not applied: windows differ by site and reader, and z-scoring each image removes what they would.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

VERSION = 1  # raise when the same settings give other pixels, so that no cache outlives its code


@dataclass(frozen=True)
class Preparation:
    """Everything that decides a prepared image; its `digest` names the cache."""

    size: int = 64
    normalise: Literal["zscore", "none"] = "zscore"
    square: bool = True
    extra: str = ""  # what else decides a prepared array (a segmentation's classes and spacing)

    @property
    def digest(self) -> str:
        """Sixteen hex digits of SHA-256 over the settings and the code's version."""
        text = json.dumps(asdict(self) | {"version": VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_frame(frame: np.ndarray, preparation: Preparation) -> np.ndarray:
    """float32 [H, W] → float32 [1, size, size]. A frame without contrast becomes zeros, never NaN."""
    image = torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32))[None, None]
    if preparation.square:
        image = _pad_square(image)
    size = preparation.size
    if tuple(image.shape[2:]) != (size, size):
        smaller = image.shape[2] > size
        image = functional.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=smaller)
    out = image[0]
    if preparation.normalise == "zscore":
        out = out - out.mean()
        out = out / out.std().clamp_min(1e-6) if float(out.abs().max()) > 0 else out
    return np.asarray(out.numpy())


def _pad_square(image: torch.Tensor) -> torch.Tensor:
    """Pad the shorter side with the image's lowest value (air), equally on both sides."""
    height, width = image.shape[2:]
    if height == width:
        return image
    missing = abs(height - width)
    before, after = missing // 2, missing - missing // 2
    pad = (before, after, 0, 0) if height > width else (0, 0, before, after)
    return functional.pad(image, pad, value=float(image.min()))
