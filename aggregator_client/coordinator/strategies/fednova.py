"""FedNova: updates normalised by their local steps, so that sites that step more do not pull more (Wang et al. 2020, eq. 10).

    d_k = (w - w_k) / a_k          w ← w - τ · Σ p_k d_k          τ = Σ p_k a_k

p_k is the site's share of the samples; a_k its number of steps for plain SGD, and
(τ_k - ρ (1 - ρ^τ_k) / (1 - ρ)) / (1 - ρ) with local momentum ρ (section 4.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Mean, Update, Weights, learned
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.errors import MessageError, ProjectError


class FedNova(FedAvg):
    """`momentum` is that of the sites' own optimiser (0.9 for trainer's SGD, 0 otherwise)."""

    name = "fednova"

    def __init__(self, momentum: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= momentum < 1:
            raise ProjectError(f"The algorithm's momentum {momentum} is not between 0 and 1: mend it.")
        self.momentum = momentum

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._normalised, self._effective = Mean(), 0.0

    def add(self, update: Update) -> None:
        if update.steps < 1:
            raise MessageError(f"The update of {update.site} names no local steps, which FedNova needs: update it.")
        super().add(update)  # for what is only averaged, and the total weight
        share = float(update.samples) if self.weighting == "samples" else 1.0
        length = self.effective_steps(update.steps)
        names = [name for name, value in self.current.items() if learned(name, value)]
        moved = {n: (self.current[n].astype(np.float64) - update.weights[n]) / length for n in names}
        self._normalised.add(moved, share)
        self._effective += share * length

    def finish(self) -> Weights:
        mean = super().finish()
        tau = self._effective / self._normalised.total
        for name, direction in self._normalised.result().items():
            stepped = self.current[name].astype(np.float64) - tau * direction
            mean[name] = stepped.astype(self.current[name].dtype)
        return mean

    def effective_steps(self, steps: int) -> float:
        """‖a_k‖₁ of `steps` local steps."""
        rho = self.momentum
        return float(steps) if not rho else (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
