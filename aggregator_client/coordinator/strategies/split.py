"""U-shaped split learning (`aggregator_client.coordinator.splitting`): what becomes of the sites' own layers after a round."""

from __future__ import annotations

from aggregator_client.coordinator.strategies.base import Mean, Strategy, Update, Weights


class Split(Strategy):
    """The sites' own layers, averaged by samples after each round."""

    name = "split"

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._mean = Mean()

    def add(self, update: Update) -> None:
        self._mean.add(update.weights, update.samples)

    def finish(self) -> Weights:
        return self._mean.result()
