"""A slice between its native grid and the network's square grid, there and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Grid:
    """size: pixels a side of the network's grid. spacing: mm a pixel there; None resizes the padded square to fill it."""

    size: int
    spacing: float | None = None

    def _inner(self, height: int, width: int, spacing: tuple[float, float]) -> tuple[int, int]:
        """The slice's height and width in network pixels, before cropping or padding."""
        if self.spacing is None:
            scale = self.size / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        return max(1, round(height * spacing[0] / self.spacing)), max(1, round(width * spacing[1] / self.spacing))

    def fit(self, slices: torch.Tensor, spacing: tuple[float, float], mode: str, fill: float) -> torch.Tensor:
        """[N, C, H, W] on the native grid → [N, C, size, size]; mode "bilinear" or "nearest-exact"."""
        height, width = self._inner(slices.shape[2], slices.shape[3], spacing)
        if (height, width) != tuple(slices.shape[2:]):
            slices = _resize(slices, (height, width), mode)
        return _centre(slices, (self.size, self.size), fill)

    def restore(
        self, probabilities: torch.Tensor, shape: tuple[int, int], spacing: tuple[float, float]
    ) -> torch.Tensor:
        """[N, classes, size, size] → [N, classes, H, W]; outside the network's field everything is background."""
        height, width = self._inner(*shape, spacing)
        out = _centre(probabilities, (height, width), 0.0)
        inside = _centre(torch.ones_like(probabilities[:, :1]), (height, width), 0.0)
        out[:, :1] = torch.where(inside > 0, out[:, :1], torch.ones_like(out[:, :1]))
        return out if (height, width) == shape else _resize(out, shape, "bilinear")


def _resize(slices: torch.Tensor, shape: tuple[int, int], mode: str) -> torch.Tensor:
    if mode == "bilinear":
        smaller = shape[0] < slices.shape[2] or shape[1] < slices.shape[3]
        return functional.interpolate(slices, shape, mode="bilinear", align_corners=False, antialias=smaller)
    return functional.interpolate(slices, shape, mode=mode)


def _centre(slices: torch.Tensor, shape: tuple[int, int], fill: float) -> torch.Tensor:
    """Crop and pad around the centre; the same call with the old shape undoes a padding."""
    pads: list[int] = []
    for have, want in ((slices.shape[3], shape[1]), (slices.shape[2], shape[0])):
        before = (want - have) // 2 if want >= have else -((have - want) // 2)
        pads += [before, want - have - before]
    return functional.pad(slices, pads, value=fill)
