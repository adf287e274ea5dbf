"""What every federated algorithm is to the rounds: who trains, what goes out, and how updates become the next model.

A strategy holds the state of one aggregation at a time, so memory is O(model) however many sites there are: updates are
read one by one, in the order of the sites' names, so that the same updates always give the same bits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from aggregator_client.errors import MessageError, ProjectError

Weights = dict[str, np.ndarray]
Scores = Mapping[int, Mapping[str, float]]
"""By round and site: the metric, on the site's held-out patients, of the model the round began with."""


@dataclass(frozen=True)
class Update:
    """What one site sends back: named arrays, how many samples they were trained on, and what its algorithm adds.

    steps: the optimiser steps of its training; loss: of the model it was given, on its held-out patients.
    """

    site: str
    weights: Weights
    samples: int
    extra: Weights = field(default_factory=dict)
    steps: int = 1
    loss: float | None = None


class Strategy:
    """Base of the algorithms. `begin`, `add` each update, `finish`: the next global model.

    share: of the members who train in a round, drawn anew each round from `seed` (McMahan et al. 2017, C).
    """

    name: ClassVar[str]
    models_stay_home: ClassVar[bool] = False

    def __init__(self, share: float = 1.0, seed: int = 0) -> None:
        if not 0 < share <= 1:
            raise ProjectError(f"The algorithm's share {share} of the sites is not above 0 and at most 1: mend it.")
        self.share, self.seed = share, seed

    def participants(self, number: int, members: Sequence[str], scores: Scores | None = None) -> list[str]:
        """Who trains in round `number` (from 1); `scores` of the rounds before, for algorithms that look at them."""
        everyone = sorted(members)
        count = max(1, math.ceil(self.share * len(everyone) - 1e-9))
        return sorted(random.Random(f"{self.seed}/{number}").sample(everyone, count))

    def begin(self, current: Weights) -> None:
        """Start an aggregation on top of the global model `current`."""
        self.current = current

    def add(self, update: Update) -> None:
        """Take one update in."""
        raise NotImplementedError

    def finish(self) -> Weights:
        """The next global model. MessageError when no update was added."""
        raise NotImplementedError

    # -- what beside the model is kept at the coordinator -------------------------------------------------------------

    def state(self) -> Weights:
        """Arrays to keep with the checkpoint of a round."""
        return {}

    def restore(self, state: Weights) -> None:
        """Take back what `state` gave."""

    def extra(self) -> Weights:
        """Arrays that go out to each site beside the model."""
        return {}

    def check(self, update: Update, current: Mapping[str, np.ndarray]) -> None:
        """Raise MessageError unless the update is one of this model."""
        check_arrays(update.weights, current, update.site)
        if update.samples < 1:
            raise MessageError(f"The update of {update.site} claims {update.samples} samples: it is not used.")


def learned(name: str, value: np.ndarray) -> bool:
    """Whether a server's optimiser may step along this array: counts and BatchNorm's running statistics are only averaged."""
    return value.dtype.kind == "f" and not name.endswith(("running_mean", "running_var"))


def check_arrays(arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], site: str) -> None:
    """Raise MessageError naming the first array that is missing, unknown, of another shape or type, or not finite."""
    for name in sorted(arrays.keys() | like.keys()):
        if name not in arrays or name not in like:
            what = "lacks" if name in like else "holds the unknown"
            raise MessageError(f"The update of {site} {what} array {name!r}: it is not used; check the versions.")
        found, wanted = arrays[name], like[name]
        if found.shape != wanted.shape or found.dtype.kind != wanted.dtype.kind:
            raise MessageError(
                f"The update of {site} has {name!r} as {found.dtype}{list(found.shape)} where the model has"
                f" {wanted.dtype}{list(wanted.shape)}: it is not used."
            )
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise MessageError(f"The update of {site} holds NaN or infinite values in {name!r}: it is not used.")


class Mean:
    """Weighted mean of named arrays, added one set at a time and held in float64.

    Integer arrays (BatchNorm's count of batches) have no meaningful mean: the largest value is taken.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._sums: Weights = {}
        self._kinds: dict[str, np.dtype] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        self.total += weight
        for name, value in arrays.items():
            self._kinds.setdefault(name, value.dtype)
            if value.dtype.kind != "f":
                largest = self._sums.get(name)
                self._sums[name] = value.copy() if largest is None else np.maximum(largest, value)
                continue
            if name not in self._sums:
                self._sums[name] = np.zeros(value.shape, np.float64)
            self._sums[name] += np.multiply(value, weight, dtype=np.float64)  # one temporary, not two

    def result(self) -> Weights:
        """Raises MessageError when nothing was added."""
        if self.total <= 0:
            raise MessageError("There is no update to aggregate in this round: nothing was taken in.")
        return {
            name: np.asarray(value / self.total if self._kinds[name].kind == "f" else value, self._kinds[name])
            for name, value in self._sums.items()
        }
