"""Weight transfer: the model visits one site after the other, in cycles or once (Chang et al. 2018).

A round is a visit. Cyclic transfer goes round and round; single transfer stays with each site for its share of the rounds
and never comes back.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from aggregator_client.coordinator.strategies.base import Strategy, Update, Weights
from aggregator_client.errors import MessageError, ProjectError


class Cyclic(Strategy):
    """`order`: "fixed" (by name) or "reshuffled" (a new order each cycle, drawn from `seed`)."""

    name = "cyclic"

    def __init__(self, order: str = "fixed", seed: int = 0) -> None:
        if order not in ("fixed", "reshuffled"):
            raise ProjectError(f"The algorithm's order {order!r} is unknown: use 'fixed' or 'reshuffled'.")
        self.order, self.seed = order, seed
        self._next: Weights | None = None

    def participants(self, number: int, members: Sequence[str]) -> list[str]:
        cycle, place = divmod(number - 1, len(members))
        order = sorted(members)
        if self.order == "reshuffled":
            random.Random(f"{self.seed}/{cycle}").shuffle(order)
        return [order[place]]

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._next = None

    def add(self, update: Update) -> None:
        self._next = update.weights

    def finish(self) -> Weights:
        if self._next is None:
            raise MessageError("The site that was to train in this round sent no update: the model stays as it is.")
        return self._next


class SingleTransfer(Cyclic):
    """Each site once, for `visits` rounds in a row; the rounds left over are the last site's."""

    name = "single_transfer"

    def __init__(self, visits: int = 1) -> None:
        super().__init__()
        if visits < 1:
            raise ProjectError(f"The algorithm's visits {visits} is too small: use 1 or more.")
        self.visits = visits

    def participants(self, number: int, members: Sequence[str]) -> list[str]:
        order = sorted(members)
        return [order[min((number - 1) // self.visits, len(order) - 1)]]
