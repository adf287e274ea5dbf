"""What robust rules share: every site's change of the model as one row of a matrix on disk, looked at a block at a time.

A rule that compares sites needs all updates at once; kept in a temporary file and read by columns, they cost O(model) memory
however many sites there are. Each site counts once, whatever number of samples it claims. These rules read single updates, so
they cannot be used where updates are only ever summed (secure aggregation).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.base import Strategy, Update, Weights
from aggregator_client.errors import MessageError
from trainer.weights import flatten, unflatten

BLOCK = 1 << 20


class Robust(Strategy):
    """Base of the robust rules: `combine` makes one change out of the rows."""

    def combine(self, rows: np.ndarray) -> np.ndarray:
        """float32 [sites, parameters] (a memory map) → the change to apply, float32 [parameters]."""
        raise NotImplementedError

    def begin(self, current: Weights) -> None:
        super().begin(current)
        self._start, self._layout = flatten(current)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open from the first update to the last
        self._integers: dict[str, list[Any]] = {n: [] for n, v in current.items() if v.dtype.kind != "f"}
        self._sites = 0

    def add(self, update: Update) -> None:
        vector, _ = flatten(update.weights)
        self._file.write((vector - self._start).tobytes())
        for name, values in self._integers.items():
            values.append(update.weights[name])
        self._sites += 1

    def finish(self) -> Weights:
        if not self._sites:
            raise MessageError("There is no update to aggregate in this round: nothing was taken in.")
        self._file.flush()
        if self._start.size:
            rows = np.memmap(self._file, np.float32, "r", shape=(self._sites, self._start.size))
            merged = unflatten(self._start + self.combine(rows), self._layout)
            del rows
        else:
            merged = dict(self.current)
        self._file.close()
        for name, values in self._integers.items():
            ordered = np.sort(np.stack(values), axis=0)
            merged[name] = ordered[(len(values) - 1) // 2].astype(self.current[name].dtype)
        return merged


def blocks(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Column blocks of the matrix in float64, together about BLOCK values each."""
    width = max(1, BLOCK // len(rows))
    for start in range(0, rows.shape[1], width):
        where = slice(start, min(start + width, rows.shape[1]))
        yield where, np.asarray(rows[:, where], np.float64)


def weighted(rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Σ shares_k · row_k, float32 [parameters]."""
    total = np.empty(rows.shape[1], np.float32)
    for where, block in blocks(rows):
        total[where] = shares @ block
    return total


def distances(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """‖row_k - centre‖ for each row, float64 [sites]."""
    squares = np.zeros(len(rows))
    for where, block in blocks(rows):
        squares += ((block - centre[where]) ** 2).sum(1)
    return np.asarray(np.sqrt(squares))
