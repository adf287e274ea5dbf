"""FedAvgM: the mean change of a round gathers momentum at the coordinator (Hsu et al. 2019).

v ← β v + (mean(w_k) - w)          w ← w + lr · v
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Weights, learned
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.errors import ProjectError


class FedAvgM(FedAvg):
    """`momentum` is β, `server_lr` the coordinator's own step (1 with momentum 0 is FedAvg)."""

    name = "fedavgm"

    def __init__(self, momentum: float = 0.5, server_lr: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= momentum < 1 or server_lr <= 0:
            raise ProjectError(
                f"The algorithm's momentum {momentum} or server_lr {server_lr} is out of range: use 0 to below 1, above 0."
            )
        self.momentum, self.server_lr = momentum, server_lr
        self.velocity: Weights = {}

    def state(self) -> Weights:
        return dict(self.velocity)

    def restore(self, state: Weights) -> None:
        self.velocity = dict(state)

    def finish(self) -> Weights:
        mean = super().finish()
        for name, value in mean.items():
            if not learned(name, value):
                continue
            old = self.current[name].astype(np.float64)
            change = value.astype(np.float64) - old
            self.velocity[name] = self.momentum * self.velocity.get(name, np.zeros_like(change)) + change
            mean[name] = (old + self.server_lr * self.velocity[name]).astype(value.dtype)
        return mean
