"""SCAFFOLD: FedAvg with control variates that take out the sites' drift (Karimireddy et al. 2020, algorithm 1, option II).

    x ← x + lr_g · mean(x_i - x)          c ← c + |S|/N · mean(c_i⁺ - c_i)

The mean is over the sites of the round, each counted once as in the paper, or weighted by samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Mean, Scores, Update, Weights, check_arrays
from aggregator_client.coordinator.strategies.fedavg import FedAvg

CONTROL = "global."
DELTA = "delta."


class Scaffold(FedAvg):
    """`global_lr` is lr_g. The control variate c goes out with the model, each site's change of its own comes back."""

    name = "scaffold"

    def __init__(self, global_lr: float = 1.0, weighting: str = "equal", **common: Any) -> None:
        super().__init__(weighting, **common)
        self.global_lr = global_lr
        self.control: Weights = {}
        self.members = 1

    def participants(self, number: int, members: Sequence[str], scores: Scores | None = None) -> list[str]:
        self.members = max(len(members), 1)
        return super().participants(number, members, scores)

    def extra(self) -> Weights:
        return {CONTROL + name: value.astype(np.float32) for name, value in self.control.items()}

    def state(self) -> Weights:
        return dict(self.control)

    def restore(self, state: Weights) -> None:
        self.control = dict(state)

    def check(self, update: Update, current: Mapping[str, np.ndarray]) -> None:
        super().check(update, current)
        names = {name.removeprefix(DELTA) for name in update.extra}
        like = {DELTA + name: current[name] for name in names if name in current}
        check_arrays(update.extra, like, update.site)

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._deltas, self._sites = Mean(), 0

    def add(self, update: Update) -> None:
        super().add(update)
        self._deltas.add(update.extra, 1.0)
        self._sites += 1

    def finish(self) -> Weights:
        mean, share = super().finish(), min(1.0, self._sites / self.members)
        for name, delta in self._deltas.result().items():
            key = name.removeprefix(DELTA)
            old = self.control.get(key, np.zeros_like(delta, np.float64))
            self.control[key] = old + share * delta.astype(np.float64)
        if self.global_lr == 1.0:
            return mean
        return {
            name: value
            if value.dtype.kind != "f"
            else (self.current[name] + self.global_lr * (value.astype(np.float64) - self.current[name])).astype(
                value.dtype
            )
            for name, value in mean.items()
        }
