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

from trainer.harmonise.landmarks import harmonised
from trainer.spec import TaskSpec

VERSION = 2  # raise when the same settings give other pixels, so that no cache outlives its code


@dataclass(frozen=True)
class Preparation:
    """Everything that decides a prepared image; its `digest` names the cache."""

    size: int = 64
    normalise: Literal["zscore", "none"] = "zscore"
    square: bool = True
    landmarks: tuple[float, ...] = ()  # trainer.spec.LandmarkScale
    above_mean: bool = False
    extra: str = ""  # what else decides a prepared array (a segmentation's classes and spacing)

    @classmethod
    def of(cls, task: TaskSpec, extra: str = "") -> Preparation:
        """What a task asks for."""
        scale = task.harmonise
        return cls(
            size=task.size,
            extra=extra,
            landmarks=scale.at if scale else (),
            above_mean=scale is not None and scale.above_mean,
        )

    @property
    def digest(self) -> str:
        """Sixteen hex digits of SHA-256 over the settings and the code's version."""
        text = json.dumps(asdict(self) | {"version": VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_frame(frame: np.ndarray, preparation: Preparation) -> np.ndarray:
    """float32 [H, W] → float32 [1, size, size]. A frame without contrast becomes zeros, never NaN."""
    frame = reduce(np.asarray(frame, dtype=np.float32), preparation.size)
    frame = harmonised(frame, preparation.landmarks, preparation.above_mean)
    image = torch.from_numpy(np.ascontiguousarray(frame))[None, None]
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


def reduce(frame: np.ndarray, size: int) -> np.ndarray:
    """Average k × k blocks of a much larger frame [H, W] first, when both sides divide by k: several times quicker.

    Only from k = 3 on; the rest of the way, and every smaller step, is the resampling filter's.
    """
    height, width = frame.shape
    for k in range(max(height, width) // size, 2, -1):
        if height % k == 0 and width % k == 0:
            rows = sum(frame[i::k] for i in range(1, k)) + frame[::k]
            return np.asarray((sum(rows[:, i::k] for i in range(1, k)) + rows[:, ::k]) / np.float32(k * k))
    return frame


def _pad_square(image: torch.Tensor) -> torch.Tensor:
    """Pad the shorter side with the image's lowest value (air), equally on both sides."""
    height, width = image.shape[2:]
    if height == width:
        return image
    missing = abs(height - width)
    before, after = missing // 2, missing - missing // 2
    pad = (before, after, 0, 0) if height > width else (0, 0, before, after)
    return functional.pad(image, pad, value=float(image.min()))
