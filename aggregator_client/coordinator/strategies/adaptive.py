"""The coordinator's adaptive optimisers take one form: the mean change of a round as a gradient (Reddi et al. 2021, alg. 2).

    Δ = mean(w_k) - w     m ← β₁ m + (1 - β₁) Δ     v ← second(v, Δ²)     w ← w + lr · m / (√v + τ)

FedAdam, FedYogi and FedAdagrad differ in `second` alone; v begins at τ².
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Weights, learned
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.errors import ProjectError


class Adaptive(FedAvg):
    """`server_lr` is the coordinator's step, `beta1` and `beta2` the decay of m and v, `tau` the degree of adaptivity."""

    def __init__(
        self,
        server_lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if server_lr <= 0 or tau <= 0 or not 0 <= beta1 < 1 or not 0 <= beta2 < 1:
            raise ProjectError(
                f"One of the algorithm's server_lr {server_lr}, beta1 {beta1}, beta2 {beta2} and tau {tau} is out of range:"
                " the first and last are above 0, the others from 0 to below 1."
            )
        self.server_lr, self.beta1, self.beta2, self.tau = server_lr, beta1, beta2, tau
        self.first: Weights = {}
        self.second: Weights = {}

    def squared(self, old: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The next v from the last one and Δ²."""
        raise NotImplementedError

    def state(self) -> Weights:
        return {f"m.{n}": v for n, v in self.first.items()} | {f"v.{n}": v for n, v in self.second.items()}

    def restore(self, state: Weights) -> None:
        self.first = {name[2:]: value for name, value in state.items() if name.startswith("m.")}
        self.second = {name[2:]: value for name, value in state.items() if name.startswith("v.")}

    def finish(self) -> Weights:
        mean = super().finish()
        for name, value in mean.items():
            if not learned(name, value):
                continue
            old = self.current[name].astype(np.float64)
            change = value.astype(np.float64) - old
            m = self.beta1 * self.first.get(name, np.zeros_like(change)) + (1 - self.beta1) * change
            v = self.squared(self.second.get(name, np.full_like(change, self.tau**2)), change**2)
            self.first[name], self.second[name] = m, v
            mean[name] = (old + self.server_lr * m / (np.sqrt(v) + self.tau)).astype(value.dtype)
        return mean
