"""Split learning in one process with the product's own sealed messages: what the row "split" of benchmarks/algorithms.py runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aggregator_client import messages
from aggregator_client.coordinator.split_server import SplitServer, one_round
from aggregator_client.keys import coordinator_keys, node_keys
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.sealing import Context
from aggregator_client.split_site import Turn
from benchmarks import simulation as sim
from trainer import weights
from trainer.local.split import batches_of, half_of, own_layers, parts_of
from trainer.local.training import make_optimizer

DIGEST = "0" * 64


class Wire:
    """Seals each step and its answer as coordinator and site do, and counts the bytes of both ways."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.coordinator = coordinator_keys(root / "coordinator")
        self.keys = {name: node_keys(root / name) for name in names}
        self.turns: dict[str, Turn] = {}
        self.received = dict.fromkeys(names, 0)

    def ask(self, site: str, what: str, arrays: Mapping[str, np.ndarray]) -> Message:
        keys, kind = self.keys[site], f"split.{what}"
        there, back = (
            Context(DIGEST, 1, COORDINATOR, site, kind),
            Context(DIGEST, 1, site, COORDINATOR, kind + ".answer"),
        )
        request = Message({}, {"arrays": weights.to_bytes(arrays)} if arrays else {})
        out = messages.wrap(request, there, recipient_public=keys.sealing_public, signer=self.coordinator.signing)
        _, taken = messages.unwrap(
            out, private=keys.sealing, sender_public=self.coordinator.signing_public, expect=there
        )
        given = weights.from_bytes(taken.parts["arrays"]) if taken.parts else {}
        told, made = self.turns[site].step(what, given)
        answer = Message(told, {"arrays": weights.to_bytes(made)} if made else {})
        reply = messages.wrap(answer, back, recipient_public=self.coordinator.sealing_public, signer=keys.signing)
        self.received[site] += len(reply)
        _, message = messages.unwrap(
            reply, private=self.coordinator.sealing, sender_public=keys.signing_public, expect=back
        )
        return message


def train_split(settings: sim.Settings, sites: list[sim.Site], seed: int) -> tuple[sim.Weights, list[float], list[int]]:
    """(the joined model, validation after each round, bytes each site sent)."""
    model, names, trace = settings.start(seed), [f"site-{i:03d}" for i in range(len(sites))], []
    with tempfile.TemporaryDirectory(prefix="fedpacs-split-") as root:
        wire = Wire(Path(root), names)
        for number in range(settings.rounds):
            local = settings.at(number, settings.rounds)
            central = settings.build()
            weights.into_module(central, model)
            middle = parts_of(central)[1]
            own = {name: model[name] for name in own_layers(central)}
            for i, name in enumerate(names):
                wire.turns[name] = _turn(settings, local, sites[i], seed * 1000 + i + 7919 * number)
            passed = one_round(SplitServer(middle, make_optimizer(middle, local)), names, own, wire.ask)
            mean = weights.average([one.weights for one in passed.updates], [one.samples for one in passed.updates])
            model = {**weights.from_module(central), **mean}
            trace.append(sim.score(settings, model, [site.validation for site in sites]))
        return model, trace, [wire.received[name] for name in names]


def _turn(settings: sim.Settings, local: sim.LocalSpec, site: sim.Site, seed: int) -> Turn:
    half = half_of(settings.build(), site.train, local, int(settings.args["classes"]), seed)
    return Turn(half, batches_of(site.train, local, seed))
