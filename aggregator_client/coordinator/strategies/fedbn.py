"""FedBN: FedAvg in which each site keeps its own normalisation layers (Li et al. 2021, "FedBN").

A site sends everything but its normalisation layers and puts its own back into each model it receives. The global model
keeps the layers it began with. What stays was measured under the site's own weights, not the averaged ones, so a site
re-estimates its statistics before it evaluates (`reestimate_norm` of trainer.job).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Update, Weights, check_arrays
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.errors import ProjectError
from trainer.weights import norm_layers, norm_statistics


class KeepsLayers(FedAvg):
    """The mean of all arrays but those that stay at the sites."""

    def own(self, arrays: Mapping[str, np.ndarray]) -> set[str]:
        """The names that never leave a site."""
        raise NotImplementedError

    def check(self, update: Update, current: Mapping[str, np.ndarray]) -> None:
        own = self.own(current)
        super().check(
            Update(update.site, {**{n: current[n] for n in own}, **update.weights}, update.samples, update.extra),
            current,
        )
        check_arrays(update.weights, {n: v for n, v in current.items() if n not in own}, update.site)

    def finish(self) -> Weights:
        return {**self.current, **super().finish()}


class FedBN(KeepsLayers):
    """`keep`: "layers" (BatchNorm's weights, biases and statistics) or "statistics" alone.

    The latter is SiloBN (Andreux et al. 2020): the learned scale and shift are averaged as all else, which serves hospitals
    that differ in their cases rather than in their scanners.
    """

    name = "fedbn"

    def __init__(self, keep: str = "layers", **common: Any) -> None:
        super().__init__(**common)
        if keep not in ("layers", "statistics"):
            raise ProjectError(f"The algorithm's keep {keep!r} is unknown: use 'layers' or 'statistics'.")
        self.keep = keep

    def own(self, arrays: Mapping[str, np.ndarray]) -> set[str]:
        return norm_layers(arrays) if self.keep == "layers" else norm_statistics(arrays)
