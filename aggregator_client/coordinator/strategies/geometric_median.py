"""Geometric median of the sites' models by smoothed Weiszfeld steps (Pillutla et al. 2022, "RFA", algorithm 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.robust import Robust, distances, weighted
from aggregator_client.errors import ProjectError


class GeometricMedian(Robust):
    """`steps` Weiszfeld steps from the mean; `smoothing` keeps a site that lies on the median from counting endlessly."""

    name = "geometric_median"

    def __init__(self, steps: int = 32, smoothing: float = 1e-6, **common: Any) -> None:
        super().__init__(**common)
        if steps < 1 or smoothing <= 0:
            raise ProjectError(f"The algorithm's steps {steps} or smoothing {smoothing} is too small: mend it.")
        self.steps, self.smoothing = steps, smoothing

    def combine(self, rows: np.ndarray) -> np.ndarray:
        centre = weighted(rows, np.full(len(rows), 1 / len(rows)))
        for _ in range(self.steps):
            shares = 1 / np.maximum(distances(rows, centre), self.smoothing)
            following = weighted(rows, shares / shares.sum())
            moved = float(np.linalg.norm(following - centre))
            centre = following
            if moved <= 1e-7 * max(1.0, float(np.linalg.norm(centre))):
                break
        return centre
