"""What noisy training has spent of a patient's privacy: (epsilon, delta) of any number of Poisson-sampled Gaussian steps.

Neighbouring data sets differ by one unit (a record or a patient) that is there or is not. The privacy loss distribution
(Koskela et al. 2020, Doroshenko et al. 2022; dp-accounting) gives a tight upper bound; Rényi differential privacy (Mironov 2017)
one that always holds and is taken when the first cannot be computed. The central-limit figure (GDP) is no bound and not offered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

PLD, RDP = "PLD (dp-accounting)", "RDP (dp-accounting)"
_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


@dataclass(frozen=True, order=True)
class Spend:
    """`steps` steps, each with a unit's contribution clipped to C, in the sum with probability `rate`, under Gaussian noise of
    standard deviation noise_multiplier · C.
    """

    noise_multiplier: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError("noise_multiplier must be a number above 0")
        if not 0 < self.rate <= 1 or self.steps < 1:
            raise ValueError("rate must be in (0, 1] and steps at least 1")


@dataclass(frozen=True)
class Loss:
    """An upper bound of the privacy loss, and the accountant that gave it."""

    epsilon: float
    accountant: str


def privacy_loss(spends: Iterable[Spend], delta: float) -> Loss:
    """The epsilon at `delta` of all these spends together; 0 for none. ValueError for a delta outside (0, 1)."""
    if not 0 < delta < 1:
        raise ValueError("delta must lie between 0 and 1")
    return _loss(joined(spends), delta)


def joined(spends: Iterable[Spend]) -> tuple[Spend, ...]:
    """The same spends with equal steps added up, in one order: equal histories compare equal."""
    steps: dict[tuple[float, float], int] = {}
    for one in spends:
        key = (one.noise_multiplier, one.rate)
        steps[key] = steps.get(key, 0) + one.steps
    return tuple(sorted(Spend(*key, count) for key, count in steps.items()))


@lru_cache(maxsize=4096)
def _loss(spends: tuple[Spend, ...], delta: float) -> Loss:
    if not spends:
        return Loss(0.0, PLD)
    try:
        epsilon = _epsilon(PLDAccountant(_RELATION), spends, delta)
    except (
        ValueError,
        OverflowError,
        MemoryError,
        FloatingPointError,
    ):  # too little noise, or too many different spends
        epsilon = math.nan
    if math.isfinite(epsilon):
        return Loss(epsilon, PLD)
    return Loss(_epsilon(RdpAccountant(neighboring_relation=_RELATION), spends, delta), RDP)


def rdp_loss(spends: Iterable[Spend], delta: float) -> Loss:
    """The same by Rényi differential privacy alone."""
    return Loss(_epsilon(RdpAccountant(neighboring_relation=_RELATION), joined(spends), delta), RDP)


def _epsilon(accountant: PLDAccountant | RdpAccountant, spends: tuple[Spend, ...], delta: float) -> float:
    for one in spends:
        step = dp_accounting.PoissonSampledDpEvent(one.rate, dp_accounting.GaussianDpEvent(one.noise_multiplier))
        accountant.compose(step, one.steps)
    return float(accountant.get_epsilon(delta))
