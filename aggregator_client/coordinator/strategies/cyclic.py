"""Weight transfer: the model visits one site after the other, in cycles or once (Chang et al. 2018).

A round is a visit. Cyclic transfer goes round and round; single transfer stays with each site for its share of the rounds
and never comes back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from aggregator_client.coordinator.strategies.base import Scores, Strategy, Update, Weights
from aggregator_client.errors import MessageError, ProjectError


class Cyclic(Strategy):
    """`order`: "fixed" (by name) or "reshuffled" (a new order each cycle, drawn from `seed`)."""

    name = "cyclic"

    def __init__(self, order: str = "fixed", seed: int = 0) -> None:
        if order not in ("fixed", "reshuffled"):
            raise ProjectError(f"The algorithm's order {order!r} is unknown: use 'fixed' or 'reshuffled'.")
        super().__init__(seed=seed)
        self.order = order
        self._next: Weights | None = None

    def participants(self, number: int, members: Sequence[str], scores: Scores | None = None) -> list[str]:
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
    """Each site once, for `visits` rounds in a row; the rounds left over are the last site's.

    With `patience`, the model moves on sooner: when the metric on the visited site's held-out patients has not risen for
    that many rounds (Chang et al. 2018 move on at the plateau of the validation loss).
    """

    name = "single_transfer"

    def __init__(self, visits: int = 1, patience: int = 0) -> None:
        super().__init__()
        if visits < 1 or patience < 0:
            raise ProjectError(
                f"The algorithm's visits {visits} or patience {patience} is too small: use 1, 0 or more."
            )
        self.visits, self.patience = visits, patience

    def participants(self, number: int, members: Sequence[str], scores: Scores | None = None) -> list[str]:
        order, place, seen = sorted(members), 0, list[float]()
        for earlier in range(1, number):
            score = (scores or {}).get(earlier, {}).get(order[place])
            seen.append(-math.inf if score is None else score)
            # the score of a round is of the model it began with: the first one of a visit is the previous site's model
            stale = len(seen) - 1 - max(range(len(seen)), key=lambda i: seen[i])
            if len(seen) >= self.visits or (self.patience and score is not None and stale >= self.patience):
                place, seen = min(place + 1, len(order) - 1), []
        return [order[place]]
