"""Prepared images and their class indices, as arrays that may be memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Samples:
    """images [M, C, H, W] (float16 or float32, may be a memory map); labels int64 [N], or 0 and 1 [N, classes]
    (multi-label), or masks [N, H, W] uint8.

    Sample i is images[rows[i]]; without `rows`, M = N and sample i is images[i]. `groups` [N] numbers the patient of
    each
    sample, for metrics and splits that must not tear a patient apart.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels) if self.rows is None else len(self.rows)

    @property
    def masks(self) -> bool:
        """Whether each label is a mask, not a class index."""
        return self.labels.ndim > 2

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples by number as (float32 images, int64 labels); only these rows of a memory map are read."""
        at = rows if self.rows is None else self.rows[rows]
        images = torch.from_numpy(np.asarray(self.images[at])).float()  # torch widens float16 far quicker than numpy
        return images, torch.from_numpy(self.labels[rows].astype(np.int64))

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What training sees of these samples; samples of patches choose them with the generator's randomness."""
        return self.batch(rows)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All rows in order, `size` at a time (the last may be shorter)."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def joined(self, parts: list[Samples]) -> Samples | None:
        """These parts as one, where a kind of samples knows a way that copies nothing."""
        return None

    def class_counts(self, classes: int) -> np.ndarray:
        """How many samples (or pixels) each class has: int64 [classes]."""
        if self.labels.ndim == 2:
            return self.labels.sum(0).astype(np.int64)
        return np.bincount(self.labels.ravel().astype(np.int64), minlength=classes)[:classes]


def pool(parts: list[Samples]) -> Samples:
    """Concatenate sites' samples (for a centralised comparison)."""
    if len(parts) == 1:
        return parts[0]
    if joined_by_part := parts[0].joined(parts):
        return joined_by_part
    images = [p.images if p.rows is None else p.images[p.rows] for p in parts]
    groups: np.ndarray | None = None
    if all(p.groups is not None for p in parts):
        sizes = np.cumsum([0] + [int(p.groups.max()) + 1 if p.groups is not None and len(p) else 0 for p in parts])
        groups = np.concatenate(
            [p.groups + size for p, size in zip(parts, sizes, strict=False) if p.groups is not None]
        )
    joined = np.concatenate(images)
    if isinstance(parts[0], Slices):
        return Slices(joined, np.zeros(0, np.int64), np.arange(len(joined)), groups)
    return Samples(joined, np.concatenate([p.labels for p in parts]), None, groups)


@dataclass(frozen=True)
class Slices(Samples):
    """Slices with their masks in one array: images [M, C + 1, H, W], the last channel the class index of each pixel.

    `labels` is not used; `groups` [N] numbers the volume of each slice.
    """

    @property
    def masks(self) -> bool:
        return True

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        at = rows if self.rows is None else self.rows[rows]
        both = torch.from_numpy(np.asarray(self.images[at])).float()
        return both[:, :-1], both[:, -1].round().long()

    def class_counts(self, classes: int) -> np.ndarray:
        """How many slices show each class: int64 [classes]."""
        counts = np.zeros(classes, np.int64)
        for _, masks in self.batches(64):
            for index in range(classes):
                counts[index] += int((masks == index).flatten(1).any(1).sum())
        return counts


def epoch_order(count: int, batch: int, generator: torch.Generator) -> list[np.ndarray]:
    """A shuffled epoch as row arrays; a last batch of one sample is joined to the one before (BatchNorm needs two)."""
    order = torch.randperm(count, generator=generator).numpy()
    rows = [order[start : start + batch] for start in range(0, count, batch)]
    if len(rows) > 1 and len(rows[-1]) < 2:
        rows[-2:] = [np.concatenate(rows[-2:])]
    return rows
