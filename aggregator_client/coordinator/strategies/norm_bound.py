"""Norm bound: FedAvg over changes scaled down to a largest norm (Sun et al. 2019, section 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Update
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.errors import ProjectError


class NormBound(FedAvg):
    """`bound` is the largest norm of a site's whole change; every site counts once unless weighting says "samples"."""

    name = "norm_bound"

    def __init__(self, bound: float = 1.0, weighting: str = "equal", **common: Any) -> None:
        super().__init__(weighting, **common)
        if bound <= 0:
            raise ProjectError(f"The algorithm's bound {bound} is not above 0: mend it.")
        self.bound = bound

    def add(self, update: Update) -> None:
        floats = [name for name, value in self.current.items() if value.dtype.kind == "f"]
        change = {n: update.weights[n].astype(np.float64) - self.current[n] for n in floats}
        norm = float(np.sqrt(sum(np.vdot(c, c) for c in change.values())))
        scale = min(1.0, self.bound / max(norm, 1e-12))
        within = {n: np.asarray(self.current[n] + scale * c, self.current[n].dtype) for n, c in change.items()}
        super().add(replace(update, weights={**update.weights, **within}))
