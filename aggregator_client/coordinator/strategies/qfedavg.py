"""q-FedAvg: sites with a high loss count for more, so that the sites' results lie nearer together (Li et al. 2020, alg. 2).

    Δ_k = F_k^q · L (w - w_k)     h_k = q F_k^(q-1) ‖L (w - w_k)‖² + L F_k^q     w ← w - Σ Δ_k / Σ h_k

F_k is the loss of the model the site was given, on its own held-out patients; q = 0 is the equally weighted FedAvg.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Mean, Strategy, Update, Weights, learned
from aggregator_client.errors import MessageError, ProjectError

_LEAST_LOSS = 1e-10


class QFedAvg(Strategy):
    """`q` is how much fairness, `lipschitz` is L, the paper's estimate 1 / (local learning rate)."""

    name = "qfedavg"

    def __init__(self, q: float = 0.2, lipschitz: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        if q < 0 or lipschitz <= 0:
            raise ProjectError(
                f"The algorithm's q {q} or lipschitz {lipschitz} is out of range: use 0 or more, above 0."
            )
        self.q, self.lipschitz = q, lipschitz

    def check(self, update: Update, current: Any) -> None:
        super().check(update, current)
        if update.loss is None or not np.isfinite(update.loss) or update.loss < 0:
            raise MessageError(f"The update of {update.site} names no loss of the given model, which q-FedAvg needs.")

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._mean, self._normaliser = Mean(), 0.0
        self._sums = {n: np.zeros(v.shape, np.float64) for n, v in current.items() if learned(n, v)}

    def add(self, update: Update) -> None:
        self._mean.add({n: v for n, v in update.weights.items() if n not in self._sums}, 1.0)
        loss = max(float(update.loss or 0.0), _LEAST_LOSS)
        weight, squares = loss**self.q, 0.0
        for name, total in self._sums.items():
            step = self.lipschitz * (self.current[name].astype(np.float64) - update.weights[name])
            squares += float(np.vdot(step, step))
            total += weight * step
        self._normaliser += self.q * loss ** (self.q - 1) * squares + self.lipschitz * weight

    def finish(self) -> Weights:
        merged = self._mean.result()
        for name, total in self._sums.items():
            stepped = self.current[name].astype(np.float64) - total / self._normaliser
            merged[name] = stepped.astype(self.current[name].dtype)
        return merged
