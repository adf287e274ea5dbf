"""FedPer: each site keeps a head of its own on a shared body (Arivazhagan et al. 2019).

A site sends every array but those of its head and puts its own head back into each model it receives. The global model keeps
the head it began with; what it is worth with the sites' heads is what the sites report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aggregator_client.coordinator.strategies.fedbn import KeepsLayers
from aggregator_client.errors import ProjectError


class FedPer(KeepsLayers):
    """`head`: the beginnings of the names of the arrays that stay at the sites, such as ["head."]."""

    name = "fedper"

    def __init__(self, head: Sequence[str] = ("head.",), **common: Any) -> None:
        super().__init__(**common)
        if isinstance(head, str) or not head or not all(isinstance(part, str) and part for part in head):
            raise ProjectError("The algorithm's head must be a list of array names' beginnings, such as ['head.'].")
        self.head = tuple(head)

    def own(self, arrays: Mapping[str, np.ndarray]) -> set[str]:
        return {name for name in arrays if name.startswith(self.head)}
