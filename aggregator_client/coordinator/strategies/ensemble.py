"""Ensemble: each site trains a model of its own, which stays at home; only outputs on reference studies are combined.

After the last round the sites are asked about the project's reference studies (coordinator.reference), and what they say is
averaged, voted or weighted by each site's validation metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Strategy, Update, Weights
from aggregator_client.errors import MessageError, ProjectError

HOW = ("mean", "vote", "weighted")


class Ensemble(Strategy):
    """`combine`: "mean", "vote" or "weighted". `distil`: passes of a student over the reference studies with the ensemble's
    outputs as its labels, 0 for none (Hinton et al. 2015; Lin et al. 2020)."""

    name = "ensemble"
    models_stay_home = True

    def __init__(self, combine: str = "mean", distil: int = 0, **common: Any) -> None:
        super().__init__(**common)
        if combine not in HOW or distil < 0:
            raise ProjectError(
                f"The algorithm's combine {combine!r} or distil {distil} is wrong: use {', '.join(HOW)}; 0 or more."
            )
        self.combine, self.distil = combine, distil
        self._sites = 0

    def check(self, update: Update, current: Mapping[str, np.ndarray]) -> None:
        if update.weights or update.extra:
            raise MessageError(
                f"The answer of {update.site} holds a model, which an ensemble's sites keep: it is not used."
            )
        if update.samples < 1:
            raise MessageError(f"The update of {update.site} claims {update.samples} samples: it is not used.")

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._sites = 0

    def add(self, update: Update) -> None:
        self._sites += 1

    def finish(self) -> Weights:
        if not self._sites:
            raise MessageError("No site trained in this round: the run cannot go on.")
        return self.current
