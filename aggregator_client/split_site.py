"""A site's end of split learning on the wire: opens the coordinator's sealed steps and seals what leaves.

Activations and their gradients leave, and the loss; images, labels and the network's first and last layers' use of them stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from aggregator_client import messages
from aggregator_client.errors import MessageError
from aggregator_client.keys import NodeKeys
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.sealing import Context
from trainer import weights
from trainer.local.split import SplitSite


@dataclass
class SplitMember:
    """`batches(number)` gives the rows of every batch of pass `number`. `coordinator`: (sealing, signing) public keys."""

    name: str
    keys: NodeKeys
    coordinator: tuple[bytes, bytes]
    site: SplitSite
    batches: Callable[[int], list[np.ndarray]]
    project_digest: str
    _left: list[np.ndarray] = field(default_factory=list)

    def handle(self, blob: bytes) -> bytes:
        """The sealed answer to one step. Raises SignatureError, MessageError for what is not the coordinator's next step."""
        context, request = messages.unwrap(blob, private=self.keys.sealing, sender_public=self.coordinator[1])
        if context.recipient != self.name or context.project_digest != self.project_digest:
            raise MessageError(f"The step is not for {self.name} in this project: it is not taken.")
        what = str(request.header.get("what"))
        if context.kind != f"split.{what}":
            raise MessageError("The step's header and seal name different things: it is not taken.")
        header, parts = self._step(what, context.round, request)
        answer = Message({"request": request.digest(), **header}, parts)
        back = Context(self.project_digest, context.round, self.name, COORDINATOR, context.kind)
        return messages.wrap(answer, back, recipient_public=self.coordinator[0], signer=self.keys.signing)

    def _step(self, what: str, number: int, request: Message) -> tuple[dict[str, object], dict[str, bytes]]:
        arrays = weights.from_bytes(request.parts["arrays"]) if "arrays" in request.parts else {}
        if what == "forward":
            self._left = list(self.batches(number))
            return {}, self._next()
        if what == "features" and "features" in arrays:
            gradient, loss = self.site.loss(arrays["features"])
            return {"loss": loss}, {"arrays": weights.to_bytes({"gradient": gradient})}
        if what == "backward" and "gradient" in arrays:
            self.site.backward(arrays["gradient"])
            return {}, self._next()
        if what == "collect":
            return {"samples": len(self.site.samples)}, {"model": weights.to_bytes(self.site.weights())}
        if what == "adopt":
            self.site.adopt(arrays)
            return {}, {}
        raise MessageError("The step is none of split learning's: it is not taken.")

    def _next(self) -> dict[str, bytes]:
        if not self._left:
            return {}
        return {"arrays": weights.to_bytes({"activations": self.site.forward(self._left.pop(0))})}
