"""FedYogi: v ← v - (1 - β₂) Δ² sign(v - Δ²) (Reddi et al. 2021, algorithm 2)."""

from __future__ import annotations

import numpy as np

from aggregator_client.coordinator.strategies.adaptive import Adaptive


class FedYogi(Adaptive):
    """v moves by at most Δ² a round, whichever is larger: it forgets more slowly than Adam's."""

    name = "fedyogi"

    def squared(self, old: np.ndarray, square: np.ndarray) -> np.ndarray:
        return np.asarray(old - (1 - self.beta2) * square * np.sign(old - square))
