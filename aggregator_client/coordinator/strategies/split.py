"""U-shaped split learning, the coordinator's end: the middle layers, and the sealed messages of every step.

Sites take turns batch by batch, so that the middle learns from all of them; after each pass over the data their own layers are
averaged (Vepakomma et al. 2018; Thapa et al. 2022, "SplitFed"). A step is two messages each way:

    coordinator "forward"                    site "activations"
    coordinator "features"                   site "gradient", loss
    coordinator "backward"                   site "activations" of its next batch, or none when its pass is over

It does not fit the rounds of the other algorithms (a message a batch, not one a round), so no project file names it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from aggregator_client import messages
from aggregator_client.errors import MessageError
from aggregator_client.keys import CoordinatorKeys
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.sealing import Context
from trainer import weights
from trainer.errors import WeightsError
from trainer.local.split import check_batch

Wire = Callable[[str, bytes], bytes]
"""(site, sealed request) → sealed answer."""


class SplitServer:
    """The middle layers; it sees activations and their gradients, never an image, a label or a site's layers."""

    def __init__(self, middle: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.middle, self.optimizer = middle, optimizer
        self._inside: torch.Tensor | None = None
        self._outside: torch.Tensor | None = None

    def forward(self, activations: np.ndarray) -> np.ndarray:
        """What the middle makes of a batch's activations."""
        check_batch(activations, len(activations))
        self.middle.train()
        self._inside = torch.from_numpy(np.array(activations)).requires_grad_()
        self._outside = self.middle(self._inside)
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


@dataclass
class SplitCoordinator:
    """Drives the steps. `sites`: (sealing public key, signing public key) by name; `wire` carries sealed bytes there and back."""

    server: SplitServer
    keys: CoordinatorKeys
    sites: Mapping[str, tuple[bytes, bytes]]
    wire: Wire
    project_digest: str
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    def one_pass(self, number: int) -> float:
        """One pass of every site over its data, batch by batch in turn, and the mean of the sites' own layers. The mean loss."""
        waiting = {site: self._ask(site, number, "forward") for site in sorted(self.sites)}
        losses = []
        while any(message.parts for message in waiting.values()):
            for site in sorted(site for site, message in waiting.items() if message.parts):
                activations = _array(waiting[site], "activations")
                answer = self._ask(site, number, "features", features=self.server.forward(activations))
                losses.append(float(answer.header["loss"]))
                back = self.server.backward(_array(answer, "gradient"))
                waiting[site] = self._ask(site, number, "backward", gradient=back)
        self._average(number)
        return sum(losses) / max(len(losses), 1)

    def _average(self, number: int) -> None:
        """FedAvg of the sites' front and head layers, weighted by samples, sent back to all."""
        answers = {site: self._ask(site, number, "collect") for site in sorted(self.sites)}
        counts = [int(answer.header["samples"]) for answer in answers.values()]
        mean = weights.average([weights.from_bytes(a.parts["model"]) for a in answers.values()], counts)
        for site in sorted(self.sites):
            self._ask(site, number, "adopt", **mean)

    def _ask(self, site: str, number: int, what: str, **arrays: np.ndarray) -> Message:
        sealing, signing = self.sites[site]
        context = Context(self.project_digest, number, COORDINATOR, site, f"split.{what}")
        request = Message({"what": what}, {"arrays": weights.to_bytes(arrays)} if arrays else {})
        blob = messages.wrap(request, context, recipient_public=sealing, signer=self.keys.signing)
        reply = self.wire(site, blob)
        self.sent[site] = self.sent.get(site, 0) + len(blob)
        self.received[site] = self.received.get(site, 0) + len(reply)
        expect = Context(self.project_digest, number, site, COORDINATOR, f"split.{what}")
        _, answer = messages.unwrap(reply, private=self.keys.sealing, sender_public=signing, expect=expect)
        if answer.header.get("request") != request.digest():
            raise MessageError(f"The answer of {site} belongs to another step: it is not used.")
        return answer


def _array(message: Message, name: str) -> np.ndarray:
    arrays = weights.from_bytes(message.parts.get("arrays", b""))
    if name not in arrays:
        raise MessageError(f"A split learning message lacks {name}: it is not used.")
    return arrays[name]
