"""Secure aggregation by groups: each group's sum is opened on its own, and the coordinate-wise median of the groups is taken.

Between one sum of all (no rule can see a bad update) and single updates (every rule can, and so can the coordinator): a bad
hospital spoils one group's mean, and fewer than half of the groups cannot carry the median off (Yin et al. 2018 for the median;
median of means). The price is that the coordinator sees sums of few hospitals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aggregator_client.errors import TooFewSitesError

LEAST_GROUPS = 3
"""Of fewer no minority can be outvoted."""
_COLUMNS = 1 << 18


def groups(sites: Sequence[str], size: int, project: str, number: int) -> list[list[str]]:
    """The round's groups of `size` or more hospitals, drawn anew each round from project and round, by name in each.

    Raises TooFewSitesError when there would be fewer than three: the round is then not done with less protection.
    """
    count = len(sites) // size
    if count < LEAST_GROUPS:
        raise TooFewSitesError(
            f"Round {number} has {len(sites)} sites, and {LEAST_GROUPS} groups of {size} need {LEAST_GROUPS * size}: mend what"
            " keeps the others away, then `fedpacs coordinator resume`."
        )

    def place(site: str) -> bytes:
        return hashlib.sha256(f"fedpacs groups v1\x00{project}\x00{number}\x00{site}".encode()).digest()

    drawn = sorted(sites, key=place)
    return [sorted(drawn[index::count]) for index in range(count)]


def median(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The coordinate-wise median, a block of columns at a time."""
    made = np.empty_like(vectors[0])
    for start in range(0, made.size, _COLUMNS):
        block = np.stack([vector[start : start + _COLUMNS] for vector in vectors])
        made[start : start + _COLUMNS] = np.median(block, axis=0)
    return made


def bounded(vector: NDArray[np.float32], most: float) -> tuple[NDArray[np.float32], float]:
    """(the vector scaled down to an L2 norm of `most`, the norm it had); 0 bounds nothing."""
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or not 0 < most < norm:
        return vector, norm
    return (vector * np.float32(most / norm)).astype(np.float32), norm
