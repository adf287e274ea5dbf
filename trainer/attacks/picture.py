"""The picture of a trial. It shows patients, so its file is its owner's alone."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib.image
import torch

from trainer.attacks.trial import Trial

SHOWN = 8
_DEVIATIONS = 2.5


def draw(trial: Trial, file: Path) -> Path:
    """Three rows: the images, what a bare gradient gave, what the project's step gave (the first channel of each)."""
    rows = [part[:SHOWN, 0] for part in (trial.images, trial.found_plain, trial.found)]
    grid = torch.cat([torch.cat(list(row), 1) for row in rows]).clamp(-_DEVIATIONS, _DEVIATIONS).numpy()
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        matplotlib.image.imsave(target, grid, cmap="gray", vmin=-_DEVIATIONS, vmax=_DEVIATIONS, format="png")
    return file
