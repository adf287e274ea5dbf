"""MONAI's networks behind plain arguments, with BatchNorm or GroupNorm by name.

MONAI is imported when such a network is built: it costs seconds, which a job with our small network need not pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn


def _norm(kind: str) -> Any:
    if kind == "batch":
        return "batch"
    if kind == "instance":
        return "instance"
    if kind == "group":
        return ("group", {"num_groups": 8})
    raise ValueError(f"norm must be 'batch', 'group' or 'instance', not {kind!r}")


def _group_instead(model: nn.Module) -> None:
    """Replace every BatchNorm inside by a GroupNorm over the same channels, eight groups where they divide so."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(model, name, nn.GroupNorm(math.gcd(8, child.num_features), child.num_features))
        else:
            _group_instead(child)


def densenet(
    in_channels: int = 1,
    classes: int = 2,
    dimensions: int = 2,
    init_features: int = 16,
    growth_rate: int = 8,
    layers: Sequence[int] = (2, 4, 4),
    norm: str = "batch",
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI DenseNet for classification."""
    from monai.networks.nets import DenseNet

    return DenseNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=classes,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=tuple(layers),
        norm=_norm(norm),
        dropout_prob=dropout,
    )


def resnet(
    in_channels: int = 1,
    classes: int = 2,
    dimensions: int = 2,
    layers: Sequence[int] = (1, 1, 1, 1),
    widths: Sequence[int] = (16, 32, 64, 128),
    norm: str = "batch",
    stem: int = 2,
) -> nn.Module:
    """MONAI ResNet (basic blocks) for classification."""
    from monai.networks.nets import ResNet

    model = ResNet(
        block="basic",
        layers=list(layers),
        block_inplanes=list(widths),
        spatial_dims=dimensions,
        n_input_channels=in_channels,
        conv1_t_size=3,
        conv1_t_stride=stem,
        num_classes=classes,
        norm=_norm(norm),
    )
    if norm != "batch":
        _group_instead(model)  # MONAI 1.6 keeps BatchNorm in the shortcuts whatever `norm` says
    return model


def unet(
    in_channels: int = 1,
    classes: int = 2,
    dimensions: int = 2,
    widths: Sequence[int] = (16, 32, 64, 128),
    strides: Sequence[int] | None = None,
    units: int = 2,
    norm: str = "batch",
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI residual UNet for segmentation; classes counts the background."""
    from monai.networks.nets import UNet

    model = UNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=classes,
        channels=tuple(widths),
        strides=tuple(strides or (2,) * (len(widths) - 1)),
        num_res_units=units,
        norm=_norm("batch" if norm == "group" else norm),
        dropout=dropout,
    )
    if norm == "group":
        _group_instead(model)  # eight groups do not divide the last layer's classes
    return model


def dynunet(
    in_channels: int = 1,
    classes: int = 2,
    dimensions: int = 2,
    widths: Sequence[int] = (16, 32, 64),
    strides: Sequence[int] | None = None,
    residual: bool = False,
    norm: str = "instance",
) -> nn.Module:
    """MONAI DynUNet (the nnU-Net architecture) for segmentation; classes counts the background."""
    from monai.networks.nets import DynUNet

    steps = list(strides or (1, *(2,) * (len(widths) - 1)))
    if len(steps) != len(widths) or len(widths) < 3:
        raise ValueError("widths needs at least three levels and strides as many")
    model = DynUNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=classes,
        kernel_size=[3] * len(widths),
        strides=steps,
        upsample_kernel_size=steps[1:],
        filters=list(widths),
        norm_name=_norm("batch" if norm == "group" else norm),
        res_block=residual,
    )
    if norm == "group":
        _group_instead(model)
    return model


def segresnet(
    in_channels: int = 1,
    classes: int = 2,
    dimensions: int = 2,
    init_filters: int = 16,
    down: Sequence[int] = (1, 2, 2),
    up: Sequence[int] = (1, 1),
    norm: str = "group",
) -> nn.Module:
    """MONAI SegResNet for segmentation; classes counts the background."""
    from monai.networks.nets import SegResNet

    return SegResNet(
        spatial_dims=dimensions,
        init_filters=init_filters,
        in_channels=in_channels,
        out_channels=classes,
        norm=_norm(norm),
        blocks_down=tuple(down),
        blocks_up=tuple(up),
    )


def vit(
    in_channels: int = 1,
    classes: int = 2,
    dimensions: int = 2,
    size: int = 64,
    patch: int = 8,
    hidden: int = 96,
    mlp: int = 192,
    layers: int = 4,
    heads: int = 4,
) -> nn.Module:
    """MONAI Vision Transformer for classification (it normalises with LayerNorm only)."""
    from monai.networks.nets import ViT

    return _Logits(
        ViT(
            in_channels=in_channels,
            img_size=(size,) * dimensions,
            patch_size=(patch,) * dimensions,
            hidden_size=hidden,
            mlp_dim=mlp,
            num_layers=layers,
            num_heads=heads,
            classification=True,
            num_classes=classes,
            post_activation="",
            spatial_dims=dimensions,
        )
    )


class _Logits(nn.Module):
    """Keep the first of a network's outputs: the logits [N, classes]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)[0]
