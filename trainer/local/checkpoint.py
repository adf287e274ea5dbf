"""Checkpoints in the middle of a local training that survive kill -9 and resume to the same result.

A checkpoint holds weights, optimiser state, the algorithm's anchors, the step reached and the random generator's state,
as safetensors (so without pickle), under a key made of everything that decides the result: another key is ignored.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import weights as weights_file
from trainer.errors import WeightsError
from trainer.local.algorithms import LocalAlgorithm
from trainer.local.data import epoch_order


@dataclass
class Progress:
    """Where a training stands: `step` of `total`, `at` batches into the epoch whose order `epoch_state` decides."""

    total: int
    generator: torch.Generator
    step: int = 0
    at: int = 0
    loss_sum: float = 0.0
    last: float = 0.0
    epoch_state: torch.Tensor | None = field(default=None)
    scaling: dict[str, float] = field(default_factory=dict)
    """Mixed precision's loss scale."""

    @classmethod
    def start(cls, seed: int, total: int) -> Progress:
        return cls(total, torch.Generator().manual_seed(seed))

    def epoch_rows(self, count: int, batch: int) -> list[np.ndarray]:
        """The current epoch's batches; after a resume the same ones, with the generator left where it was."""
        if self.at and self.epoch_state is not None:
            here = self.generator.get_state()
            self.generator.set_state(self.epoch_state)
            rows = epoch_order(count, batch, self.generator)
            self.generator.set_state(here)
            return rows
        self.epoch_state = self.generator.get_state()
        return epoch_order(count, batch, self.generator)

    def advance(self, loss: float, scaling: dict[str, float] | None = None) -> None:
        self.scaling = scaling or {}
        self.step += 1
        self.at += 1
        self.last = loss
        self.loss_sum += loss

    def next_epoch(self) -> None:
        self.at = 0

    @property
    def mean_loss(self) -> float:
        return self.loss_sum / max(self.step, 1)


class Checkpoints:
    """One checkpoint file, renewed at most every `every` seconds."""

    def __init__(self, path: Path, key: str, every: float = 30.0) -> None:
        self.path = path
        self.key = key
        self.every = every
        self._last = time.monotonic()

    def maybe_save(self, model: nn.Module, optimizer: Any, algorithm: LocalAlgorithm, progress: Progress) -> None:
        """Save when the last save is old enough."""
        if time.monotonic() - self._last >= self.every:
            self.save(model, optimizer, algorithm, progress)
            self._last = time.monotonic()

    def save(self, model: nn.Module, optimizer: Any, algorithm: LocalAlgorithm, progress: Progress) -> None:
        """Write the whole state; the file is whole or absent."""
        arrays = {f"model.{n}": v for n, v in weights_file.from_module(model).items()}
        arrays |= {f"algorithm.{n}": v.cpu().numpy() for n, v in algorithm.state().items()}
        for index, state in optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer.{index}.{n}": np.asarray(v.cpu()) for n, v in state.items() if v is not None}
        arrays["generator"] = progress.generator.get_state().numpy()
        arrays["global_generator"] = torch.get_rng_state().numpy()
        if progress.epoch_state is not None:
            arrays["epoch"] = progress.epoch_state.numpy()
        if next(model.parameters()).is_cuda:
            arrays["device_generator"] = torch.cuda.get_rng_state().numpy()
        facts = {"key": self.key, "step": progress.step, "at": progress.at, "loss_sum": progress.loss_sum}
        facts["scaling"] = progress.scaling
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        weights_file.save(self.path, arrays)

    def resume(self, model: nn.Module, optimizer: Any, algorithm: LocalAlgorithm, fresh: Progress) -> Progress | None:
        """Load the checkpoint into model, optimiser and algorithm; None when there is none for this key."""
        if not self.path.exists():
            return None
        try:
            arrays = weights_file.load(self.path)
            facts = json.loads(bytes(arrays["facts"]))
        except (WeightsError, KeyError, ValueError):
            return None  # a damaged checkpoint costs a restart of this local training, nothing more
        if facts.get("key") != self.key:
            return None
        weights_file.into_module(model, _part(arrays, "model."))
        algorithm.restore({n: torch.from_numpy(v.copy()) for n, v in _part(arrays, "algorithm.").items()})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _part(arrays, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = torch.from_numpy(value.copy())
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        fresh.generator.set_state(torch.from_numpy(arrays["generator"].copy()))
        torch.set_rng_state(torch.from_numpy(arrays["global_generator"].copy()))
        if next(model.parameters()).is_cuda and "device_generator" in arrays:
            torch.cuda.set_rng_state(torch.from_numpy(arrays["device_generator"].copy()))
        fresh.epoch_state = torch.from_numpy(arrays["epoch"].copy()) if "epoch" in arrays else None
        fresh.step, fresh.at, fresh.loss_sum = facts["step"], facts["at"], facts["loss_sum"]
        fresh.scaling = facts.get("scaling", {})
        return fresh

    def remove(self) -> None:
        """Forget the checkpoint once the result is safe elsewhere."""
        self.path.unlink(missing_ok=True)


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
