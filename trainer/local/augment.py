"""Random changes to a training batch that a radiologist would still read the same way.

All randomness comes from the generator given, so that a seed decides every batch.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def augment(images: torch.Tensor, strength: str, generator: torch.Generator) -> torch.Tensor:
    """Change a batch [N, C, H, W] of z-scored images: "none", "light" (geometry, contrast) or "style" (also scanner
    look).
    """
    if strength == "none":
        return images
    images = warp(images, generator)
    if strength == "style":
        images = restyle(images, generator)
    n = images.shape[0]
    gain = 1 + 0.1 * _normal(n, generator).to(images.device)
    shift = 0.1 * _normal(n, generator).to(images.device)
    return images * gain + shift


def augment_pair(
    images: torch.Tensor, masks: torch.Tensor, strength: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for images [N, C, (D,) H, W] with masks [N, (D,) H, W]: geometry moves both, intensity only the images.

    All slices of a volume move alike, within their plane.
    """
    if strength == "none":
        return images, masks
    if images.ndim == 5:  # slices as channels: one transform for all
        depth = masks.shape[1]
        flat, planes = _augment_planes(images.flatten(1, 2), masks, strength, generator)
        return flat.unflatten(1, (-1, depth)), planes
    moved, planes = _augment_planes(images, masks[:, None], strength, generator)
    return moved, planes[:, 0]


def _augment_planes(
    images: torch.Tensor, masks: torch.Tensor, strength: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """images [N, C, H, W] and masks [N, M, H, W] under one similarity transform a sample."""
    grid = _grid(images, generator, degrees=15.0, scale=0.15, shift=0.08)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    moved = functional.grid_sample(masks.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    if strength == "style":
        images = restyle(images, generator, keep_moments=True)
    n = images.shape[0]
    gain = 1 + 0.1 * _normal(n, generator).to(images.device)
    return images * gain + 0.1 * _normal(n, generator).to(images.device), moved.long()


def warp(
    images: torch.Tensor, generator: torch.Generator, degrees: float = 8.0, scale: float = 0.1, shift: float = 0.08
) -> torch.Tensor:
    """Rotate, scale and shift each image a little; the border is repeated so that no black wedge teaches anything."""
    grid = _grid(images, generator, degrees, scale, shift)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _grid(images: torch.Tensor, generator: torch.Generator, degrees: float, scale: float, shift: float) -> torch.Tensor:
    """Sampling grid [N, H, W, 2] of a random similarity transform for each image."""
    n = images.shape[0]
    angle = _uniform(n, generator) * math.radians(degrees)
    zoom = 1 + _uniform(n, generator) * scale
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.cos(angle) * zoom
    theta[:, 0, 1] = -torch.sin(angle) * zoom
    theta[:, 1, 0] = torch.sin(angle) * zoom
    theta[:, 1, 1] = torch.cos(angle) * zoom
    theta[:, 0, 2] = _uniform(n, generator) * 2 * shift
    theta[:, 1, 2] = _uniform(n, generator) * 2 * shift
    return functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)


def restyle(images: torch.Tensor, generator: torch.Generator, keep_moments: bool = False) -> torch.Tensor:
    """Imitate other scanners: a random gamma, blur or sharpening, and noise for each image, then z-score again.

    With keep_moments each image gets back its own mean and deviation instead (slices of a volume z-scored as a whole).
    """
    n = images.shape[0]
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    high = images.amax(dim=(1, 2, 3), keepdim=True)
    unit = (images - low) / (high - low).clamp_min(1e-6)
    gamma = torch.exp(0.35 * _normal(n, generator)).to(images.device)
    unit = unit.clamp_min(1e-6) ** gamma
    blurred = functional.avg_pool2d(functional.pad(unit, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = (0.7 * _uniform(n, generator)).view(n, 1, 1, 1).to(images.device)
    unit = unit + mix * (blurred - unit)
    noise = torch.randn(unit.shape, generator=generator).to(images.device)
    unit = unit + noise * (0.03 * torch.rand(n, 1, 1, 1, generator=generator)).to(images.device)
    mean = unit.mean(dim=(1, 2, 3), keepdim=True)
    std = unit.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    scored = (unit - mean) / std
    if not keep_moments:
        return scored
    return scored * images.std(dim=(1, 2, 3), keepdim=True) + images.mean(dim=(1, 2, 3), keepdim=True)


def _uniform(n: int, generator: torch.Generator) -> torch.Tensor:
    """n values in [-1, 1), shaped [n]."""
    return torch.rand(n, generator=generator) * 2 - 1


def _normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 1, 1, 1, generator=generator)
