"""Class-balanced patches from cached volumes, as samples for the training loop.

Two patches in three are centred on a voxel of a foreground class (each class that occurs in the volume alike), the rest
anywhere, after Isensee et al. 2021 (nnU-Net). Only the patch is read from the memory map, so memory does not grow with
volumes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trainer.local.data import Samples
from trainer.pixels.volume_cache import StoredVolume

_FOREGROUND = 2 / 3


@dataclass(frozen=True)
class Patches(Samples):
    """`per_volume` patches of `patch` voxels from each of `volumes` an epoch; images, labels and rows are not used."""

    volumes: tuple[StoredVolume, ...] = ()
    patch: tuple[int, int, int] = (32, 32, 32)
    per_volume: int = 1

    @classmethod
    def of(cls, volumes: list[StoredVolume], patch: tuple[int, int, int], per_volume: int) -> Patches:
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, volumes=tuple(volumes), patch=patch, per_volume=per_volume)

    def __len__(self) -> int:
        return len(self.volumes) * self.per_volume

    @property
    def masks(self) -> bool:
        return True

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The same patches for the same rows: images [N, C, d, h, w] and class indices [N, d, h, w]."""
        return self.draw(rows, torch.Generator().manual_seed(int(rows[0]) if len(rows) else 0))

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        cut = [self._cut(self.volumes[int(row) % len(self.volumes)], generator) for row in rows]
        both = torch.from_numpy(np.stack(cut)).float()
        return both[:, :-1], both[:, -1].round().long()

    def joined(self, parts: list[Samples]) -> Samples | None:
        volumes = [volume for part in parts if isinstance(part, Patches) for volume in part.volumes]
        return Patches.of(volumes, self.patch, self.per_volume)

    def class_counts(self, classes: int) -> np.ndarray:
        """How many volumes show each class: int64 [classes]."""
        return np.array([sum(index in volume.places for volume in self.volumes) for index in range(classes)], np.int64)

    def _cut(self, volume: StoredVolume, generator: torch.Generator) -> np.ndarray:
        centre = self._centre(volume, generator)
        data = volume.open()
        out = np.full((data.shape[0], *self.patch), volume.low, np.float16)
        out[-1] = 0
        inside, here = [], []
        for size, whole, middle in zip(self.patch, volume.shape, centre, strict=True):
            start = _start(middle, size, whole)
            low, high = max(start, 0), min(start + size, whole)
            inside.append(slice(low - start, high - start))
            here.append(slice(low, high))
        out[(slice(None), *inside)] = data[(slice(None), *here)]
        return out

    def _centre(self, volume: StoredVolume, generator: torch.Generator) -> list[int]:
        chance = torch.rand(3, generator=generator).tolist()
        shown = sorted(index for index in volume.places if index)
        if not shown or chance[0] >= _FOREGROUND:
            return (torch.rand(3, generator=generator) * torch.tensor(volume.shape)).long().tolist()
        places = volume.places[shown[int(chance[1] * len(shown))]]
        return [int(at) for at in places[int(chance[2] * len(places))]]


def _start(middle: int, size: int, whole: int) -> int:
    """The first voxel of a window around `middle` that stays inside, or that centres a volume smaller than it."""
    if whole <= size:
        return -((size - whole) // 2)
    return min(max(middle - size // 2, 0), whole - size)
