"""Model weights as named numpy arrays and safetensors files, without pickle anywhere.

safetensors only holds plain arrays, so a weights file from a coordinator can never execute anything.
Integer state (BatchNorm's num_batches_tracked) stays integer through every function here.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as save_bytes
from torch import nn

from trainer.errors import WeightsError

Weights = dict[str, np.ndarray]


def from_module(module: nn.Module) -> Weights:
    """Copy a module's state into named numpy arrays (float and integer types kept)."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def into_module(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Load named arrays into a module; names and shapes must match exactly.

    Errors: WeightsError names the first array that is missing, unexpected, of another shape or not finite.
    """
    state = module.state_dict()
    for name in sorted(set(state) | set(weights)):
        if name not in weights:
            raise WeightsError(
                f"weights lack the array {name!r} of this network; use weights made for the same network"
            )
        if name not in state:
            raise WeightsError(
                f"weights hold {name!r}, which this network lacks; use weights made for the same network"
            )
        if tuple(weights[name].shape) != tuple(state[name].shape):
            raise WeightsError(
                f"array {name!r} has shape {tuple(weights[name].shape)}, the network needs {tuple(state[name].shape)};"
                " use weights made for the same network arguments"
            )
        if weights[name].dtype.kind == "f" and not np.isfinite(weights[name]).all():
            raise WeightsError(f"array {name!r} holds NaN or infinite values; go back to the last good round")
    module.load_state_dict({n: torch.from_numpy(np.array(w)).to(state[n].dtype) for n, w in weights.items()})


def to_bytes(weights: Mapping[str, np.ndarray]) -> bytes:
    """The safetensors bytes; equal weights give equal bytes (arrays are written in name order)."""
    return save_bytes({name: np.require(weights[name], requirements="C") for name in sorted(weights)})


def from_bytes(data: bytes) -> Weights:
    """Named arrays from safetensors bytes. Errors: WeightsError when the bytes are not safetensors."""
    try:
        return dict(load_bytes(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as err:
        raise WeightsError(f"the weights are not a whole safetensors file ({err}); fetch them again") from err


def save(path: Path, weights: Mapping[str, np.ndarray]) -> str:
    """Write a safetensors file so that it is whole or absent, and return its SHA-256 (hex)."""
    data = to_bytes(weights)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as err:
        raise WeightsError(
            f"cannot write weights to {path.name} ({err.strerror}); free some space and run again"
        ) from err
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> Weights:
    """Read a safetensors file. Errors: WeightsError when it is absent or damaged."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise WeightsError(f"cannot read weights from {path.name} ({err.strerror}); give an existing file") from err
    return from_bytes(data)


def flatten(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[tuple[str, tuple[int, ...], str]]]:
    """Concatenate the floating arrays in name order: (float32 vector [P], layout of every array).

    Integer arrays are in the layout (and come back as zeros) but take no room in the vector.
    """
    layout = [(name, tuple(weights[name].shape), weights[name].dtype.str) for name in sorted(weights)]
    parts = [weights[name].astype(np.float32).ravel() for name, _, kind in layout if np.dtype(kind).kind == "f"]
    return (np.concatenate(parts) if parts else np.zeros(0, np.float32)), layout


def unflatten(vector: np.ndarray, layout: Sequence[tuple[str, tuple[int, ...], str]]) -> Weights:
    """The inverse of `flatten`. Errors: WeightsError when the vector's length does not fit the layout."""
    out: Weights = {}
    at = 0
    for name, shape, kind in layout:
        dtype = np.dtype(kind)
        if dtype.kind != "f":
            out[name] = np.zeros(shape, dtype)
            continue
        size = math.prod(shape)
        out[name] = vector[at : at + size].reshape(shape).astype(dtype)
        at += size
    if at != vector.size:
        raise WeightsError(
            f"the vector holds {vector.size} values where the layout needs {at}; use one layout for both"
        )
    return out


def average(updates: Sequence[Mapping[str, np.ndarray]], counts: Sequence[float]) -> Weights:
    """Sample-weighted mean of named arrays (McMahan et al. 2017, algorithm 1), accumulated in float64.

    Integer arrays take the largest value (a count of batches has no meaningful mean).
    """
    if not updates or len(updates) != len(counts) or sum(counts) <= 0:
        raise WeightsError("an average needs at least one update with a positive sample count")
    total = float(sum(counts))
    out: Weights = {}
    for name, first in updates[0].items():
        if first.dtype.kind != "f":
            out[name] = np.max([update[name] for update in updates], axis=0).astype(first.dtype)
            continue
        mean = sum(
            update[name].astype(np.float64) * (count / total) for update, count in zip(updates, counts, strict=True)
        )
        out[name] = np.asarray(mean).astype(first.dtype)
    return out


def norm_layers(weights: Mapping[str, np.ndarray]) -> set[str]:
    """The names that belong to BatchNorm layers: every array beside a `running_mean` (what FedBN keeps at a site)."""
    layers = {name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")}
    return {name for name in weights if name[: name.rfind(".") + 1] in layers}


def norm_statistics(weights: Mapping[str, np.ndarray]) -> set[str]:
    """Of those, what is counted and not learned: running means and variances, and the number of batches."""
    counted = ("running_mean", "running_var", "num_batches_tracked")
    return {name for name in norm_layers(weights) if name.endswith(counted)}
