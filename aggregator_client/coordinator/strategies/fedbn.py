"""FedBN: FedAvg in which each site keeps its own normalisation layers (Li et al. 2021, "FedBN").

A site sends everything but its normalisation layers and puts its own back into each model it receives. The global model
keeps the layers it began with, for evaluation re-estimate them (`reestimate_norm` of trainer.job).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aggregator_client.coordinator.strategies.base import Update, Weights, check_arrays
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from trainer.weights import norm_layers


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
    """What stays: BatchNorm's weights, biases and statistics."""

    name = "fedbn"

    def own(self, arrays: Mapping[str, np.ndarray]) -> set[str]:
        return norm_layers(arrays)
