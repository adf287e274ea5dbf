"""FedProx: FedAvg whose sites are held near the global model by mu/2·‖w - w_global‖² (Li et al. 2020).

The proximal term is the site's work (trainer.local.algorithms); the mean is FedAvg's.
"""

from __future__ import annotations

from typing import Any

from aggregator_client.coordinator.strategies.fedavg import FedAvg
from aggregator_client.errors import ProjectError


class FedProx(FedAvg):
    """`mu` is how strongly; every site reads it from the project it approved."""

    name = "fedprox"

    def __init__(self, mu: float = 0.01, **common: Any) -> None:
        super().__init__(**common)
        if mu < 0:
            raise ProjectError(f"The algorithm's mu {mu} is negative: use 0 or more.")
        self.mu = mu
