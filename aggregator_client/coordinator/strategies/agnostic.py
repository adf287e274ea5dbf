"""Agnostic federated learning: sites are weighted for the worst mixture of them (Mohri et al. 2019, algorithm 1).

    w ← Σ λ_k w_k          λ ← project onto the simplex (λ + lr · F)

λ begins equal for all; F_k is the loss of the model the site was given, on its own held-out patients. A site that takes no part
in a round keeps its λ; the weights of those that do are scaled to sum to one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Mean, Strategy, Update, Weights
from aggregator_client.errors import MessageError, ProjectError

_LAMBDA = "lambda."


class Agnostic(Strategy):
    """`mixture_lr` is how fast λ follows the losses (0 is the equally weighted FedAvg)."""

    name = "agnostic"

    def __init__(self, mixture_lr: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        if mixture_lr < 0:
            raise ProjectError(f"The algorithm's mixture_lr {mixture_lr} is negative: use 0 or more.")
        self.mixture_lr = mixture_lr
        self.mixture: dict[str, float] = {}

    def state(self) -> Weights:
        return {_LAMBDA + site: np.array([value]) for site, value in self.mixture.items()}

    def restore(self, state: Weights) -> None:
        self.mixture = {name.removeprefix(_LAMBDA): float(value[0]) for name, value in state.items()}

    def check(self, update: Update, current: Any) -> None:
        super().check(update, current)
        if update.loss is None or not np.isfinite(update.loss):
            raise MessageError(
                f"The update of {update.site} names no loss of the given model, which this algorithm needs."
            )

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._mean, self._losses = Mean(), dict[str, float]()

    def add(self, update: Update) -> None:
        # a site seen for the first time counts as the known ones do on the mean
        fresh = sum(self.mixture.values()) / len(self.mixture) if self.mixture else 1.0
        # a λ of exactly zero would leave nothing to average when only such sites take part
        self._mean.add(update.weights, max(self.mixture.setdefault(update.site, fresh), 1e-6))
        self._losses[update.site] = float(update.loss or 0.0)

    def finish(self) -> Weights:
        merged = self._mean.result()
        sites = sorted(self.mixture)
        raised = np.array([self.mixture[s] for s in sites])
        raised = raised / raised.sum() + self.mixture_lr * np.array([self._losses.get(s, 0.0) for s in sites])
        self.mixture = dict(zip(sites, onto_simplex(raised).tolist(), strict=True))
        return merged


def onto_simplex(values: np.ndarray) -> np.ndarray:
    """The nearest point of the probability simplex (Duchi et al. 2008, figure 1)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(values - excess[last], 0.0))
