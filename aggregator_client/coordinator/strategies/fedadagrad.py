"""FedAdagrad: v ← v + Δ², with no momentum by default (Reddi et al. 2021, algorithm 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.adaptive import Adaptive


class FedAdagrad(Adaptive):
    """The sum of all squared changes: steps only ever become smaller."""

    name = "fedadagrad"

    def __init__(self, beta1: float = 0.0, **common: Any) -> None:
        super().__init__(beta1=beta1, **common)

    def squared(self, old: np.ndarray, square: np.ndarray) -> np.ndarray:
        return np.asarray(old + square)
