"""A round's secure aggregation at the coordinator: five stages over the hub after the training, then the next model.

Plan and answers are kept in runs/<digest>/summing until the round's checkpoint stands, so that a killed coordinator goes on where
it was with the same bytes. A sum that failed before anybody agreed on its sites is begun anew by `fedpacs coordinator resume`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_client.coordinator.gathering import Gathering, Running
from aggregator_client.coordinator.grouping import LEAST_GROUPS, bounded, groups, median
from aggregator_client.coordinator.strategies import Update
from aggregator_client.coordinator.voting import regrouped_size
from aggregator_client.errors import TooFewSitesError
from aggregator_client.messages import Message
from aggregator_client.secagg.ring import LIMBS
from aggregator_client.secagg.server import SecureServer, Total
from aggregator_client.secagg.stages import base_of, charter
from aggregator_client.secagg.transcript import Plan
from trainer import weights

Parts = Mapping[str, bytes]


def aggregate(run: Running, number: int, model: weights.Weights, trained: list[str]) -> weights.Weights:
    """The next model from the sum of the `trained` sites' updates. Raises TooFewSitesError below the threshold."""
    terms = run.document.privacy.secure_aggregation
    folder = run.state.folder / "summing" / f"{number:04d}"
    size = terms.group_size or regrouped_size(run, len([site for site in trained if site in terms.sites]))
    if size:
        vector, weight, sites = _grouped(run, number, model, trained, folder, size)
    else:
        total = _Sum(run, number, model, trained, folder).go()
        vector, weight, sites = total.mean(), total.weight, list(total.sites)
    vector, norm = bounded(vector, terms.max_norm)
    change = weights.unflatten(vector, weights.flatten(model)[1])
    merged = {name: value + change[name] if value.dtype.kind == "f" else value for name, value in model.items()}
    run.strategy.begin(model)
    run.strategy.add(Update("the sum", merged, weight))
    made = run.strategy.finish()
    run.tell({"event": "summed", "round": number, "sites": sites, "samples": weight, "norm": round(norm, 6)})
    return made


def _grouped(
    run: Running, number: int, model: weights.Weights, trained: list[str], folder: Path, size: int
) -> tuple[NDArray[np.float32], int, list[str]]:
    """(the median of the groups' means, samples, sites). A group below its threshold is left out while three remain."""
    terms, file = run.document.privacy.secure_aggregation, folder / "groups.json"
    if not file.exists():
        drawn = groups([site for site in trained if site in terms.sites], size, run.project.digest, number)
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(drawn).encode())
    totals: list[Total] = []
    short: list[str] = []
    for index, group in enumerate(json.loads(file.read_bytes())):
        try:
            totals.append(_Sum(run, number, model, group, folder / f"group-{index:02d}").go())
        except TooFewSitesError as error:
            short.append(str(error))
            run.tell({"event": "group lost", "round": number, "sites": group, "reason": str(error)})
    if not totals:
        file.unlink()  # nobody has agreed to anything: the next attempt draws its own groups
    if len(totals) < LEAST_GROUPS:
        raise TooFewSitesError(
            f"Round {number} has {len(totals)} groups left and needs {LEAST_GROUPS} ({short[0]}): mend that, then"
            " `fedpacs coordinator resume`."
        )
    made = median([total.mean() for total in totals])
    return made, sum(total.weight for total in totals), sorted(site for total in totals for site in total.sites)


def forget(run: Running) -> None:
    """Once the round's checkpoint stands, what led to it goes."""
    shutil.rmtree(run.state.folder / "summing", ignore_errors=True)


class _Sum:
    """One attempt, from its plan to its sum."""

    def __init__(self, run: Running, number: int, model: weights.Weights, trained: list[str], folder: Path) -> None:
        self.run, self.number, self.model, self.folder = run, number, model, folder
        folder.mkdir(parents=True, exist_ok=True)
        terms = charter(run.document, run.project.digest)
        file = folder / "plan"
        if not file.exists():
            plan = Plan(
                project=run.project.digest,
                run=run.facts.id,
                round=number,
                nonce=os.urandom(16).hex(),
                base=base_of(model),
                members={name: terms.sites[name] for name in trained if name in terms.sites},
                dimension=weights.flatten(model)[0].size + LIMBS,
                bits=terms.bits,
                clip=terms.clip,
                weight_cap=terms.weight_cap,
            )
            _write(file, plan.signed(run.keys.signing).encode())
        self.plan = file.read_bytes()
        self.server = SecureServer(self.plan, run.keys.signing)

    def go(self) -> Total:
        server = self.server
        try:
            self._ask("sum.advert", sorted(server.plan.members), lambda _: {}, self._advert)
            adverts = {"adverts": server.adverts()}
            self._ask("sum.shares", list(server.circle.roster), lambda _: adverts, server.take_shares)
            self._ask("sum.masked", server.dealers, lambda site: server.dealt(site).parts, self._masked)
            survivors = {"survivors": server.survivors()}
        except TooFewSitesError:
            shutil.rmtree(self.folder)  # nobody has agreed to anything: the next attempt has its own plan
            raise
        self._ask("sum.agree", server.surviving, lambda _: survivors, self._agreement)
        agreements = {"agreements": server.agreements()}
        self._ask("sum.unmask", server.agreeing, lambda _: agreements, server.take_reveal)
        return server.finish()

    def _advert(self, site: str, answer: Message) -> None:
        self.server.take_advert(site, answer.parts.get("advert", b""))

    def _masked(self, site: str, answer: Message) -> None:
        self.server.take_masked(site, answer.parts.get("statement", b""), answer.parts.get("vector", b""))

    def _agreement(self, site: str, answer: Message) -> None:
        self.server.take_agreement(site, answer.parts.get("agree", b""))

    def _ask(
        self, kind: str, sites: list[str], parts: Callable[[str], Parts], take: Callable[[str, Message], None]
    ) -> None:
        """One stage: what is kept is taken first, then who is left is asked. A stage that ended once is not asked again."""
        stage = self.folder / kind
        stage.mkdir(exist_ok=True)
        left = []
        for site in sites:
            file = stage / hashlib.sha256(site.encode()).hexdigest()[:16]
            if file.exists():
                take(site, Message.decode(file.read_bytes()))
            else:
                left.append(site)
        if left and not (stage / "ended").exists():
            given = {site: {"plan": self.plan, **parts(site)} for site in left}
            _Stage(self.run, kind, self.number, left, given, take, stage).wait()
        if kind not in ("sum.agree", "sum.unmask"):  # these may be asked again: what they add up to is the same
            _write(stage / "ended", b"")


class _Stage(Gathering):
    """One stage's waiting: every site gets its own request, and what was taken is kept on disk."""

    def __init__(
        self,
        run: Running,
        kind: str,
        number: int,
        sites: list[str],
        given: Mapping[str, Parts],
        use: Callable[[str, Message], None],
        folder: Path,
    ) -> None:
        self.given, self.use, self.folder = given, use, folder
        super().__init__(run, kind, number, sites, {}, {})

    def request_of(self, site: str) -> Message:
        return Message(self._header(), self.given[site])

    def digest_of(self, site: str) -> str:
        return self.request_of(site).digest()

    def take(self, site: str, answer: Message) -> None:
        self.use(site, answer)
        kept = Message({}, answer.parts)
        _write(self.folder / hashlib.sha256(site.encode()).hexdigest()[:16], kept.encode())

    def _note(self, site: str, answer: Message, size: int) -> None:
        cell = self.run.state.cell(self.number, site)
        self.run.state.put(replace(cell, state="accepted", reason="", bytes_in=cell.bytes_in + size))
        self.run.tell(_event(self.kind, self.number, site, size))


def _event(kind: str, number: int, site: str, size: int) -> dict[str, Any]:
    return {"event": "accepted", "step": kind, "round": number, "site": site, "bytes": size}


def _write(file: Path, data: bytes) -> None:
    """Whole or absent."""
    part = file.with_name(file.name + ".part")
    with part.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(file)
