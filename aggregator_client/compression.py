"""Makes a site's update smaller on its way: the change of the model, rounded, thinned out or factored.

| compression | what is sent of each array | bytes of a float32 model |
|---|---|---|
| fp16, bf16 | the change in two bytes | 1/2 |
| int8, int4 | the change in 255 or 15 steps a block of 1,024, rounded by chance so that the mean is exact | 1/4, 1/8 |
| topk | the largest `share` of the changes, with error feedback (Karimireddy et al. 2019) | about 1.5 · share |
| lowrank | rank-`rank` factors of each matrix, with error feedback (PowerSGD, Vogels et al. 2019, by a full SVD) | by shape |

Error feedback: what was left out is kept at the site and added to the next round's change. Small arrays, integers and BatchNorm's
running statistics travel in full. The result is safetensors, so reading it runs nothing. Not for secure aggregation, which needs
every site's numbers on one grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from aggregator_client.errors import MessageError
from trainer.weights import Weights, from_bytes, to_bytes

Kind = Literal["none", "fp16", "bf16", "int8", "int4", "topk", "lowrank"]
BLOCK = 1024
_SMALL = 64
_STEPS = {"int8": 127, "int4": 7}


class TransferSettings(BaseModel):
    """How updates travel. `share` is topk's, `rank` lowrank's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compression: Kind = "none"
    share: float = Field(default=0.1, gt=0, le=0.5)
    rank: int = Field(default=4, ge=1, le=256)

    @property
    def feeds_back(self) -> bool:
        """Whether a site keeps what was left out for the next round."""
        return self.compression in ("topk", "lowrank")


def compress(
    trained: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    settings: TransferSettings,
    seed: int,
    left_out: Mapping[str, np.ndarray] | None = None,
) -> tuple[bytes, Weights]:
    """The change from `given` to `trained` as bytes, and what it leaves out (float32 by name; empty without feedback).

    Equal arguments give equal bytes. `trained` may lack arrays of `given` (those that stay at the site).
    """
    generator = np.random.default_rng(seed)
    sent: Weights = {}
    rest: Weights = {}
    for name in sorted(trained):
        value = trained[name]
        if _in_full(name, value):
            sent[name] = value
            continue
        change = value.astype(np.float32) - given[name].astype(np.float32)
        if settings.feeds_back and left_out is not None and name in left_out:
            change = change + left_out[name]
        parts = _pack(change, settings, generator)
        sent |= {name + suffix: part for suffix, part in parts.items()}
        if settings.feeds_back:
            rest[name] = change - _unpack(parts, change.shape, settings)
    return to_bytes(sent), rest


def decompress(
    data: bytes, given: Mapping[str, np.ndarray], settings: TransferSettings, absent: frozenset[str] = frozenset()
) -> Weights:
    """The update that `compress` made small, on top of the model it was given. Arrays in `absent` stayed at the site.

    Raises MessageError naming the array that does not fit the model. NaN in the result is the strategy's to refuse.
    """
    sent = from_bytes(data)
    out: Weights = {}
    for name, like in given.items():
        if name in absent:
            continue
        if _in_full(name, like):
            if name not in sent or sent[name].shape != like.shape or sent[name].dtype != like.dtype:
                raise MessageError(
                    f"The compressed update lacks array {name!r} in the model's form: it is not used; check the versions."
                )
            out[name] = sent.pop(name)
            continue
        parts = {suffix: sent.pop(name + suffix, None) for suffix in _suffixes(like.shape, settings)}
        try:
            change = _unpack(parts, like.shape, settings)
        except (ValueError, TypeError, AttributeError, IndexError):
            raise MessageError(
                f"The compressed update holds {name!r} in another form than {settings.compression}: it is not used."
            ) from None
        out[name] = (like.astype(np.float32) + change).astype(like.dtype)
    if sent:
        raise MessageError(f"The compressed update holds the unknown array {min(sent)!r}: it is not used.")
    return out


def _in_full(name: str, value: np.ndarray) -> bool:
    return value.dtype.kind != "f" or value.size < _SMALL or name.endswith(("running_mean", "running_var"))


def _factored(shape: tuple[int, ...], settings: TransferSettings) -> bool:
    """Whether a low-rank form of this array is smaller than its half-precision one."""
    rows, columns = shape[0], math.prod(shape[1:])
    return len(shape) > 1 and settings.rank * (rows + columns) < rows * columns


def _suffixes(shape: tuple[int, ...], settings: TransferSettings) -> tuple[str, ...]:
    if settings.compression in _STEPS:
        return ("", "#scale")
    if settings.compression == "topk":
        return ("", "#at")
    if settings.compression == "lowrank" and _factored(shape, settings):
        return ("#left", "#right")
    return ("",)


def _pack(change: np.ndarray, settings: TransferSettings, generator: np.random.Generator) -> Weights:
    kind = settings.compression
    if kind in _STEPS:
        return _quantise(change.ravel(), kind, generator)
    if kind == "topk":
        flat = change.ravel()
        count = max(1, math.ceil(settings.share * flat.size))
        at = np.sort(np.argpartition(np.abs(flat), -count)[-count:]).astype(np.uint32)
        return {"": flat[at].astype(np.float16), "#at": at}
    if kind == "lowrank" and _factored(change.shape, settings):
        left, sizes, right = np.linalg.svd(change.reshape(change.shape[0], -1).astype(np.float64), full_matrices=False)
        root = np.sqrt(sizes[: settings.rank])
        return {
            "#left": (left[:, : settings.rank] * root).astype(np.float16),
            "#right": (right[: settings.rank] * root[:, None]).astype(np.float16),
        }
    if kind == "bf16":
        bits = np.ascontiguousarray(change, np.float32).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
        return {"": (rounded >> np.uint32(16)).astype(np.uint16)}
    return {"": change.astype(np.float16 if kind != "none" else np.float32)}


def _unpack(parts: Mapping[str, Any], shape: tuple[int, ...], settings: TransferSettings) -> np.ndarray:
    kind, size = settings.compression, math.prod(shape)
    if kind in _STEPS:
        return _restore(parts[""], parts["#scale"], kind, size).reshape(shape)
    if kind == "topk":
        at, values = parts["#at"], parts[""]
        if at.dtype != np.uint32 or at.shape != values.shape or at.ndim != 1 or np.any(at[1:] <= at[:-1]):
            raise ValueError("not rising positions with a value each")
        whole = np.zeros(size, np.float32)
        whole[at] = values
        return whole.reshape(shape)
    if kind == "lowrank" and _factored(shape, settings):
        product = parts["#left"].astype(np.float32) @ parts["#right"].astype(np.float32)
        return np.asarray(product.reshape(shape))
    if parts[""].shape != shape:
        raise ValueError("another shape")
    if kind == "bf16":
        return np.asarray((parts[""].astype(np.uint32) << np.uint32(16)).view(np.float32))
    return np.asarray(parts[""].astype(np.float32))


def _quantise(flat: np.ndarray, kind: str, generator: np.random.Generator) -> Weights:
    """Each block's largest absolute value becomes the last step; what lies between two steps goes to either by chance."""
    steps, blocks = _STEPS[kind], -(-flat.size // BLOCK)
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[: flat.size] = flat
    grid = padded.reshape(blocks, BLOCK)
    scale = np.abs(grid).max(1) / np.float32(steps)
    ratio = grid / np.where(scale > 0, scale, 1)[:, None]
    whole = np.floor(ratio + generator.random(ratio.shape, np.float32))
    codes = np.clip(whole, -steps, steps).astype(np.int8).ravel()[: flat.size]
    if kind == "int4":
        nibbles = np.append(codes + 8, np.zeros(codes.size % 2, np.int8)).astype(np.uint8)
        return {"": nibbles[0::2] | (nibbles[1::2] << 4), "#scale": scale}
    return {"": codes, "#scale": scale}


def _restore(codes: np.ndarray, scale: np.ndarray, kind: str, size: int) -> np.ndarray:
    if kind == "int4":
        if codes.dtype != np.uint8 or codes.shape != (-(-size // 2),):
            raise ValueError("another number of nibbles")
        codes = np.stack([codes & 15, codes >> 4], 1).ravel()[:size].astype(np.int8) - 8
    if codes.dtype != np.int8 or codes.shape != (size,) or scale.shape != (-(-size // BLOCK),):
        raise ValueError("another number of codes or scales")
    return np.asarray(codes.astype(np.float32) * np.repeat(scale.astype(np.float32), BLOCK)[:size])
