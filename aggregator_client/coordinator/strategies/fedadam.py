"""FedAdam: v ← β₂ v + (1 - β₂) Δ² (Reddi et al. 2021, algorithm 2)."""

from __future__ import annotations

import numpy as np

from aggregator_client.coordinator.strategies.adaptive import Adaptive


class FedAdam(Adaptive):
    """A moving mean of the squared changes."""

    name = "fedadam"

    def squared(self, old: np.ndarray, square: np.ndarray) -> np.ndarray:
        return np.asarray(self.beta2 * old + (1 - self.beta2) * square)
