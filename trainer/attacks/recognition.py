"""Whether a reconstruction shows one image and no other.

A blurred mean of all chests is similar to every chest, and SSIM calls it good. So the candidates' mean is taken off before images
are compared (residual correlation), and a reconstruction has to point to its own image among the candidates.
"""

from __future__ import annotations

import torch


def residual_correlations(found: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """[R, N] in -1..1: correlation of each of found [R, C, H, W] with candidates [N, C, H, W], without the candidates' mean."""
    mean = candidates.float().mean(0)
    left, right = ((part.float() - mean).flatten(1) for part in (found, candidates))
    left, right = (part - part.mean(1, keepdim=True) for part in (left, right))
    return torch.nn.functional.normalize(left, dim=1) @ torch.nn.functional.normalize(right, dim=1).T


def recognised(correlations: torch.Tensor, own: int) -> bool:
    """Whether one of the reconstructions [R, N] is more like image `own` than like any other, by more than chance rounding."""
    best = correlations.max(0).values
    others = torch.cat([best[:own], best[own + 1 :]])
    return bool(best[own] > others.max() + 1e-6)


def psnr(found: torch.Tensor, image: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of `image`. Both [C, H, W]."""
    error = float(((found.float() - image.float()) ** 2).mean())
    return 10 * float(torch.log10(torch.tensor(float(image.max() - image.min()) ** 2 / max(error, 1e-12))))
