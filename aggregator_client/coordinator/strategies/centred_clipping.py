"""Centred clipping: changes are pulled within a radius of the change of the round before (Karimireddy et al. 2021, alg. 2).

v ← v + mean_k( (x_k - v) · min(1, radius / ‖x_k - v‖) )          `steps` times, from the last round's v
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Weights
from aggregator_client.coordinator.strategies.robust import Robust, distances, weighted
from aggregator_client.errors import ProjectError

_CENTRE = "centre"


class CentredClipping(Robust):
    """`radius` is in the norm of a whole update; bad sites can move the model by at most their share of it a step.

    0 takes the median of the sites' distances, which follows the updates as they become smaller from round to round and holds
    while fewer than half of the sites are bad.
    """

    name = "centred_clipping"

    def __init__(self, radius: float = 0.0, steps: int = 3, **common: Any) -> None:
        super().__init__(**common)
        if radius < 0 or steps < 1:
            raise ProjectError(f"The algorithm's radius {radius} or steps {steps} is too small: mend it.")
        self.radius, self.steps = radius, steps
        self.centre: np.ndarray | None = None

    def state(self) -> Weights:
        return {} if self.centre is None else {_CENTRE: self.centre}

    def restore(self, state: Weights) -> None:
        self.centre = state.get(_CENTRE)

    def combine(self, rows: np.ndarray) -> np.ndarray:
        centre = np.zeros(rows.shape[1], np.float32) if self.centre is None else self.centre
        for _ in range(self.steps):
            far = distances(rows, centre)
            radius = self.radius or float(np.median(far))
            shares = np.minimum(1.0, radius / np.maximum(far, 1e-12)) / len(rows)
            # Σ shares (x_k - v) = Σ shares x_k - v Σ shares
            centre = centre + weighted(rows, shares) - centre * np.float32(shares.sum())
        self.centre = centre
        return centre
