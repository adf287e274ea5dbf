"""A small residual network for 2D classification, a few hundred kilobytes, for quick rounds on a CPU.

He et al. 2016, "Identity mappings in deep residual networks": the convolution sees an already normalised input
(pre-activation), which trains steadily at the small batch sizes a site can afford.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(min(8, channels), channels)
    raise ValueError(f"norm must be 'batch' or 'group', not {kind!r}")


class _Block(nn.Module):
    """norm → relu → conv → norm → relu → conv, plus the (projected) input: [N, C, H, W] → [N, C', H/s, W/s]."""

    def __init__(self, inside: int, outside: int, stride: int, norm: str) -> None:
        super().__init__()
        self.norm1 = _norm(norm, inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm2 = _norm(norm, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        same = stride == 1 and inside == outside
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(x))
        y = self.conv1(y)
        y = self.conv2(functional.relu(self.norm2(y)))
        return torch.as_tensor(self.skip(x) + y)


class SmallResNet(nn.Module):
    """[N, in_channels, H, W] → [N, classes] logits; H and W are halved at the stem and at every stage but the first."""

    def __init__(
        self, in_channels: int, classes: int, widths: Sequence[int], blocks: int, norm: str, dropout: float, stem: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stem, 1, bias=False)
        layers: list[nn.Module] = []
        inside = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(_Block(inside, width, 2 if stage and not block else 1, norm))
                inside = width
        self.stages = nn.Sequential(*layers)
        self.norm = _norm(norm, inside)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inside, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.norm(self.stages(self.stem(x)))).mean(dim=(2, 3))
        return torch.as_tensor(self.head(self.dropout(features)))


def small_resnet(
    in_channels: int = 1,
    classes: int = 2,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 1,
    norm: str = "batch",
    dropout: float = 0.0,
    stem: int = 2,
) -> nn.Module:
    """Small pre-activation ResNet for 2D classification."""
    if not widths or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError("widths must be a list of positive channel counts")
    if classes < 2 or blocks < 1 or in_channels < 1 or stem not in (1, 2, 4):
        raise ValueError("classes must be at least 2, blocks and in_channels at least 1, stem 1, 2 or 4")
    return SmallResNet(in_channels, classes, tuple(widths), blocks, norm, dropout, stem)
