"""The installed networks, by name: a project names one of these and its arguments, never code.

A builder takes keyword arguments only and must fail on an argument it does not know, so that a project file with a
typing mistake is refused before any training. Networks that normalise take norm="batch" or norm="group".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.errors import BundleError, SpecError
from trainer.networks import library, resnet

Builder = Callable[..., nn.Module]

NETWORKS: dict[str, Builder] = {
    "small_resnet": resnet.small_resnet,
    "monai_densenet": library.densenet,
    "monai_resnet": library.resnet,
    "monai_unet": library.unet,
    "monai_dynunet": library.dynunet,
    "monai_segresnet": library.segresnet,
    "monai_vit": library.vit,
}


def build(name: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the installed network `name` with `args`.

    Errors: BundleError when no such network is installed; SpecError when an argument is unknown or refused.
    """
    builder = NETWORKS.get(name)
    if builder is None:
        raise BundleError(f"network {name!r} is not installed here; choose one of {', '.join(sorted(NETWORKS))}")
    known = inspect.signature(builder).parameters
    unknown = sorted(set(args or {}) - set(known))
    if unknown:
        raise SpecError(f"network {name!r} has no argument {unknown[0]!r}; it takes {', '.join(known)}")
    try:
        return builder(**dict(args or {}))
    except (TypeError, ValueError, AssertionError, NotImplementedError) as err:
        raise SpecError(f"network {name!r} cannot be built with these arguments: {err}") from err


def initial_weights(name: str, args: Mapping[str, Any] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """The named starting arrays of a network: equal for equal (name, args, seed) on one torch version."""
    from trainer.weights import from_module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return from_module(build(name, args))


def norm_keys(module: nn.Module) -> set[str]:
    """State names that belong to normalisation layers, found by module type (what FedBN keeps at the site)."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
    return {
        f"{prefix}.{key}" if prefix else key
        for prefix, layer in module.named_modules()
        if isinstance(layer, kinds)
        for key in layer.state_dict()
    }


def describe(name: str) -> str:
    """One line for people: the network's first docstring sentence and its arguments with defaults."""
    builder = NETWORKS[name]
    text = (inspect.getdoc(builder) or "").split("\n", 1)[0]
    return f"{text} {inspect.signature(builder)}"
