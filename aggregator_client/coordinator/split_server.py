"""U-shaped split learning, the coordinator's end: the middle layers, and the order of the steps.

Sites take turns batch by batch, so that the middle learns from all of them; after each round their own layers are averaged
(Vepakomma et al. 2018; Thapa et al. 2022, "SplitFed"). A step is two messages each way:

    coordinator "forward", own layers        site: activations of its first batch
    coordinator "features"                   site: gradient, loss
    coordinator "backward"                   site: activations of its next batch, or none when it is through
    coordinator "collect"                    site: its own layers

`aggregator_client.coordinator.splitting` runs this over the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from aggregator_client.coordinator.strategies.base import Update
from aggregator_client.errors import MessageError
from aggregator_client.messages import Message
from trainer import weights
from trainer.errors import WeightsError
from trainer.local.split import check_batch

Ask = Callable[[str, str, Mapping[str, np.ndarray]], Message]
"""(site, step, arrays) → the site's answer."""


class SplitServer:
    """The middle layers; it sees activations and their gradients, never an image, a label or what a site's layers become."""

    def __init__(self, middle: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.middle, self.optimizer = middle, optimizer
        self._inside: torch.Tensor | None = None
        self._outside: torch.Tensor | None = None

    def forward(self, activations: np.ndarray) -> np.ndarray:
        """What the middle makes of a batch's activations. Raises WeightsError for what is no batch of this network."""
        check_batch(activations, len(activations))
        self.middle.train()
        self._inside = torch.from_numpy(np.array(activations)).requires_grad_()
        try:
            self._outside = self.middle(self._inside)
        except (RuntimeError, ValueError):  # torch has no narrower class for a shape that does not fit
            raise WeightsError("Activations do not fit the middle layers of this network: they are not used.") from None
        return np.asarray(self._outside.detach().numpy())

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient to send back to the site; the middle takes its step."""
        if self._inside is None or self._outside is None or tuple(gradient.shape) != tuple(self._outside.shape):
            raise WeightsError("The gradient belongs to no batch under way, or has another shape: it is not used.")
        check_batch(gradient, len(gradient))
        self.optimizer.zero_grad()
        self._outside.backward(torch.from_numpy(np.array(gradient)))
        assert self._inside.grad is not None
        back = np.asarray(self._inside.grad.numpy())
        nn.utils.clip_grad_norm_(self.middle.parameters(), 5.0)
        self.optimizer.step()
        self._inside = self._outside = None
        return back


@dataclass(frozen=True)
class Passed:
    """A round's outcome: the sites' own layers, and each site's mean loss."""

    updates: list[Update]
    losses: dict[str, float]


def one_round(server: SplitServer, sites: Sequence[str], own: Mapping[str, np.ndarray], ask: Ask) -> Passed:
    """Every site through its data, batch by batch in turn, beginning with the layers `own`. Raises what `ask` raises."""
    waiting = {site: ask(site, "forward", own) for site in sorted(sites)}
    losses: dict[str, list[float]] = {site: [] for site in sorted(sites)}
    while any(message.parts for message in waiting.values()):
        for site in (site for site in losses if waiting[site].parts):
            answer = ask(site, "features", {"features": server.forward(_array(waiting[site], "activations"))})
            losses[site].append(_number(answer, "loss"))
            waiting[site] = ask(site, "backward", {"gradient": server.backward(_array(answer, "gradient"))})
    updates = []
    for site in losses:
        answer = ask(site, "collect", {})
        layers = weights.from_bytes(answer.parts.get("arrays", b""))
        updates.append(Update(site, layers, int(_number(answer, "samples")), steps=len(losses[site])))
    return Passed(updates, {site: sum(told) / max(len(told), 1) for site, told in losses.items()})


def _array(message: Message, name: str) -> np.ndarray:
    arrays = weights.from_bytes(message.parts.get("arrays", b""))
    if name not in arrays:
        raise MessageError(f"A split learning message lacks {name}: it is not used.")
    return arrays[name]


def _number(message: Message, name: str) -> float:
    value = message.header.get(name)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise MessageError(f"A split learning message names no {name}: it is not used.")
    return float(value)
