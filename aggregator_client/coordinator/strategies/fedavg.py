"""FedAvg: the mean of the sites' models, weighted by samples or equally (McMahan et al. 2017, algorithm 1)."""

from __future__ import annotations

from typing import Any

from aggregator_client.coordinator.strategies.base import Mean, Strategy, Update, Weights
from aggregator_client.errors import ProjectError


class FedAvg(Strategy):
    """w ← Σ n_k / n · w_k, or Σ 1/K · w_k with weighting="equal"."""

    name = "fedavg"

    def __init__(self, weighting: str = "samples", **common: Any) -> None:
        super().__init__(**common)
        if weighting not in ("samples", "equal"):
            raise ProjectError(f"The algorithm's weighting {weighting!r} is unknown: use 'samples' or 'equal'.")
        self.weighting = weighting

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._mean = Mean()

    def add(self, update: Update) -> None:
        self._mean.add(update.weights, update.samples if self.weighting == "samples" else 1.0)

    def finish(self) -> Weights:
        return self._mean.result()
