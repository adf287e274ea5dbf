"""Krum and Multi-Krum: the updates with the nearest neighbours, as they are or averaged (Blanchard et al. 2017).

The score of a site is the sum of squared distances to its K - f - 2 nearest others; Krum takes the site with the least score,
Multi-Krum the mean of the `keep` best.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.robust import Robust, blocks, weighted
from aggregator_client.errors import ProjectError


class MultiKrum(Robust):
    """`bad` is the share of sites that may be bad; `keep` how many are averaged, 0 for all that are presumed good."""

    name = "multi_krum"

    def __init__(self, bad: float = 0.3, keep: int = 0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= bad < 0.5 or keep < 0:
            raise ProjectError(f"The algorithm's bad {bad} or keep {keep} is out of range: below 0.5, 0 or more.")
        self.bad, self.keep = bad, keep

    def combine(self, rows: np.ndarray) -> np.ndarray:
        sites, bad = len(rows), int(self.bad * len(rows) + 1e-9)
        chosen = np.argsort(self.scores(rows, bad), kind="stable")[: self.keep or max(1, sites - bad)]
        shares = np.zeros(sites)
        shares[chosen] = 1 / len(chosen)
        return weighted(rows, shares)

    @staticmethod
    def scores(rows: np.ndarray, bad: int) -> np.ndarray:
        """Sum of squared distances of each row to its max(1, K - bad - 2) nearest others."""
        sites = len(rows)
        squared = np.zeros((sites, sites))
        for _, block in blocks(rows):
            for i in range(sites):
                squared[i] += ((block - block[i]) ** 2).sum(1)
        nearest = np.sort(squared, axis=1)[:, 1 : 1 + max(1, sites - bad - 2)]
        return np.asarray(nearest.sum(1))


class Krum(MultiKrum):
    """One site's update, the one with the nearest neighbours."""

    name = "krum"

    def __init__(self, bad: float = 0.3, **common: Any) -> None:
        super().__init__(bad=bad, keep=1, **common)
