"""A round of split learning over the hub: the steps of split_server.py as sealed requests, and what a lost site means.

The round's middle layers live in memory: a coordinator that is killed begins the round again from the last checkpoint, and so it
does when a site lost its half. A site that does not come back by the deadline is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from aggregator_client.coordinator.gathering import Gathering, Running
from aggregator_client.coordinator.split_server import Passed, SplitServer, one_round
from aggregator_client.coordinator.strategies.base import check_arrays
from aggregator_client.errors import FederationError, TooFewSitesError
from aggregator_client.messages import Message
from aggregator_client.schedule import round_lr
from aggregator_client.split_site import LOST
from trainer import networks, weights
from trainer.errors import TrainerError
from trainer.local.split import own_layers, parts_of
from trainer.local.training import make_optimizer


class SiteLost(FederationError):
    """A site gave no answer to a step."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"{site}: {reason}")
        self.site, self.reason = site, reason


def train(
    run: Running, number: int, model: weights.Weights, chosen: Sequence[str]
) -> tuple[weights.Weights, list[str]]:
    """(the next model, the sites in it). Raises TooFewSitesError when fewer than min_sites stay."""
    document, sites = run.document, sorted(chosen)
    end, attempt = time.monotonic() + document.deadline_s, 0
    while True:
        if len(sites) < document.min_sites:
            raise TooFewSitesError(
                f"Round {number} needs {document.min_sites} sites and has {len(sites)}: mend what `fedpacs coordinator status`"
                " names, then `fedpacs coordinator resume`."
            )
        attempt += 1
        try:
            return _attempt(run, number, model, sites, attempt, max(1.0, end - time.monotonic())), sites
        except SiteLost as lost:
            run.tell({"event": "stalled", "round": number, "site": lost.site, "reason": lost.reason})
            if lost.reason != LOST or time.monotonic() > end:
                sites = [site for site in sites if site != lost.site]


def _attempt(
    run: Running, number: int, model: weights.Weights, sites: list[str], attempt: int, left: float
) -> weights.Weights:
    document = run.document
    network = networks.build(document.network.name, document.network.args)
    weights.into_module(network, model)
    torch.manual_seed(document.seed + number)
    lr = round_lr(document.local.lr, number, document.rounds, "split", document.algorithm.args)
    middle = parts_of(network)[1]
    server = SplitServer(middle, make_optimizer(middle, document.local.model_copy(update={"lr": lr})))
    own = {name: model[name] for name in own_layers(network)}
    steps = 0

    def ask(site: str, what: str, arrays: Mapping[str, np.ndarray]) -> Message:
        nonlocal steps
        steps += 1
        return _Step(run, what, number, site, arrays, {"attempt": attempt, "step": steps, "roster": sites}, left).go()

    passed = one_round(server, sites, own, ask)
    run.strategy.begin(own)
    for update in passed.updates:
        try:
            check_arrays(update.weights, own, update.site)
        except FederationError as error:
            raise SiteLost(update.site, str(error)) from None
        run.strategy.add(update)
    _note(run, number, passed)
    trained = weights.from_module(network)
    return {**{name: trained[name] for name in trained if name not in own}, **run.strategy.finish()}


def _note(run: Running, number: int, passed: Passed) -> None:
    for update in passed.updates:
        loss = passed.losses[update.site]
        cell = replace(
            run.state.cell(number, update.site), state="accepted", reason="", cases=update.samples, loss=loss
        )
        run.state.put(cell)
        run.tell(
            {"event": "update", "round": number, "site": update.site, "cases": update.samples, "loss": loss,
             "seconds": cell.seconds, "metric": None, "bytes": cell.bytes_in}
        )  # fmt: skip


class _Step(Gathering):
    """One step with one site."""

    def __init__(
        self,
        run: Running,
        what: str,
        number: int,
        site: str,
        arrays: Mapping[str, np.ndarray],
        told: Mapping[str, Any],
        left: float,
    ) -> None:
        self._told, self._site, self._answer = told, site, Message({})
        parts = {"arrays": weights.to_bytes(arrays)} if arrays else {}
        super().__init__(run, f"split.{what}", number, [site], {}, parts)
        self.terms = replace(self.terms, deadline_s=left)

    def _header(self) -> dict[str, Any]:
        return {**super()._header(), **self._told}

    def take(self, site: str, answer: Message) -> None:
        for part in answer.parts.values():
            weights.from_bytes(part)
        self._answer = answer

    def go(self) -> Message:
        """The site's answer. Raises SiteLost."""
        try:
            gathered = self.wait()
        except TrainerError as error:
            raise SiteLost(self._site, str(error)) from None
        if self._site not in gathered.accepted:
            raise SiteLost(self._site, gathered.stalled(self.terms)[self._site])
        return self._answer

    def _note(self, site: str, answer: Message, size: int) -> None:
        cell = self.run.state.cell(self.number, site)
        self.run.state.put(replace(cell, bytes_in=cell.bytes_in + size))
