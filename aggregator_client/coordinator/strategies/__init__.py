"""The federated algorithms by their installed name, one module each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aggregator_client.coordinator.strategies.base import Strategy, Update
from aggregator_client.coordinator.strategies.cyclic import Cyclic, SingleTransfer
from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.coordinator.strategies.fedbn import FedBN
from aggregator_client.coordinator.strategies.fedprox import FedProx
from aggregator_client.coordinator.strategies.scaffold import Scaffold
from aggregator_client.errors import ProjectError

STRATEGIES: Mapping[str, type[Strategy]] = {
    kind.name: kind for kind in (FedAvg, FedProx, Scaffold, FedBN, Cyclic, SingleTransfer)
}


def choose(name: str, args: Mapping[str, Any]) -> Strategy:
    """The strategy a project names. Raises ProjectError for an unknown name or setting."""
    if name not in STRATEGIES:
        raise ProjectError(
            f"The algorithm {name!r} is not installed here: choose one of {', '.join(sorted(STRATEGIES))}."
        )
    try:
        return STRATEGIES[name](**args)
    except TypeError as error:
        raise ProjectError(f"The algorithm {name} does not know a setting of the project ({error}): mend it.") from None


__all__ = ["STRATEGIES", "Strategy", "Update", "choose"]
