"""The federated algorithms by their installed name, one module each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aggregator_client.coordinator.strategies.agnostic import Agnostic
from aggregator_client.coordinator.strategies.base import Scores, Strategy, Update
from aggregator_client.coordinator.strategies.centred_clipping import CentredClipping
from aggregator_client.coordinator.strategies.cyclic import Cyclic, SingleTransfer
from aggregator_client.coordinator.strategies.ensemble import Ensemble
from aggregator_client.coordinator.strategies.fedadagrad import FedAdagrad
from aggregator_client.coordinator.strategies.fedadam import FedAdam
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.coordinator.strategies.fedavgm import FedAvgM
from aggregator_client.coordinator.strategies.fedbn import FedBN
from aggregator_client.coordinator.strategies.fednova import FedNova
from aggregator_client.coordinator.strategies.fedper import FedPer
from aggregator_client.coordinator.strategies.fedprox import FedProx
from aggregator_client.coordinator.strategies.fedyogi import FedYogi
from aggregator_client.coordinator.strategies.geometric_median import GeometricMedian
from aggregator_client.coordinator.strategies.krum import Krum, MultiKrum
from aggregator_client.coordinator.strategies.median import Median
from aggregator_client.coordinator.strategies.norm_bound import NormBound
from aggregator_client.coordinator.strategies.qfedavg import QFedAvg
from aggregator_client.coordinator.strategies.scaffold import Scaffold
from aggregator_client.coordinator.strategies.split import Split
from aggregator_client.coordinator.strategies.trimmed_mean import TrimmedMean
from aggregator_client.decentral.settings import ALGORITHM as DECENTRALISED
from aggregator_client.errors import ProjectError

_INSTALLED: tuple[type[Strategy], ...] = (
    FedAvg,
    FedProx,
    Scaffold,
    FedBN,
    FedNova,
    FedAvgM,
    FedAdam,
    FedYogi,
    FedAdagrad,
    QFedAvg,
    Agnostic,
    FedPer,
    Cyclic,
    SingleTransfer,
    Median,
    TrimmedMean,
    Krum,
    MultiKrum,
    GeometricMedian,
    CentredClipping,
    NormBound,
    Ensemble,
    Split,
)
STRATEGIES: Mapping[str, type[Strategy]] = {kind.name: kind for kind in _INSTALLED}


def choose(name: str, args: Mapping[str, Any]) -> Strategy:
    """The strategy a project names. Raises ProjectError for an unknown name or setting."""
    if name == DECENTRALISED:
        raise ProjectError(
            "No coordinator runs a decentralised project: the hospitals that approved it run it among themselves, and"
            " `fedpacs federation ledger` shows how far they are."
        )
    if name not in STRATEGIES:
        raise ProjectError(
            f"The algorithm {name!r} is not installed here: choose one of {', '.join(sorted(STRATEGIES))}."
        )
    try:
        return STRATEGIES[name](**args)
    except TypeError as error:
        raise ProjectError(f"The algorithm {name} does not know a setting of the project ({error}): mend it.") from None


__all__ = ["STRATEGIES", "Scores", "Strategy", "Update", "choose"]
