"""Coordinate-wise trimmed mean: the mean without the largest and smallest share of values (Yin et al. 2018, definition 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.robust import Robust, blocks
from aggregator_client.errors import ProjectError


class TrimmedMean(Robust):
    """`trim` is cut at either end: at least the share of sites that may be bad, below one half."""

    name = "trimmed_mean"

    def __init__(self, trim: float = 0.3, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= trim < 0.5:
            raise ProjectError(f"The algorithm's trim {trim} is not from 0 to below 0.5: mend it.")
        self.trim = trim

    def combine(self, rows: np.ndarray) -> np.ndarray:
        cut = int(self.trim * len(rows) + 1e-9)
        out = np.empty(rows.shape[1], np.float32)
        for where, block in blocks(rows):
            out[where] = np.sort(block, axis=0)[cut : len(rows) - cut].mean(0)
        return out
