"""A whole series as the channels of one image (2.5D): planes evenly spread along its normal, in one orientation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.errors import PixelError
from trainer.geometry import to_canonical
from trainer.harmonise.landmarks import harmonised
from trainer.pixels.prepare import Preparation, prepare_frame
from trainer.volumes import read_volume


def prepare_series(paths: Sequence[Path], preparation: Preparation, slices: int) -> np.ndarray:
    """float32 [slices, size, size], harmonised and z-scored together so that planes keep their brightness to each other.

    Errors: PixelError when the series is no volume or has fewer planes than asked for.
    """
    values, _ = to_canonical((volume := read_volume(paths)).values, volume.stack.affine)
    if len(values) < slices:
        raise PixelError(f"a series has {len(values)} planes and the task needs {slices}; exclude it or ask for fewer")
    chosen = np.linspace(0, len(values) - 1, slices).round().astype(int)
    values = harmonised(values, preparation.landmarks, preparation.above_mean)
    plain = replace(preparation, normalise="none", landmarks=())
    stacked = np.concatenate([prepare_frame(values[k], plain) for k in chosen])
    return np.asarray((stacked - stacked.mean()) / max(float(stacked.std()), 1e-6), np.float32)
