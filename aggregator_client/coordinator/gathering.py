"""One round's waiting: sends the request, takes, proves and keeps the answers, and says why a site stalls.

The decisions are `rounds.Gather`'s; here are the clock, the hub, the keys and the state around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from aggregator_client import messages
from aggregator_client.compression import decompress
from aggregator_client.coordinator import receipts
from aggregator_client.coordinator.rounds import Gather, Terms, Verdict
from aggregator_client.coordinator.state import RunFacts, RunState, SiteFacts
from aggregator_client.coordinator.strategies import Strategy, Update
from aggregator_client.coordinator.strategies.fedbn import KeepsLayers
from aggregator_client.errors import FederationError, MessageError, TooFewSitesError
from aggregator_client.keys import CoordinatorKeys
from aggregator_client.messages import ANSWERS, COORDINATOR, REPLIES, VERSION, Message
from aggregator_client.project import ProjectDocument, SignedProject
from aggregator_client.roster import Member
from aggregator_client.sealing import Context
from aggregator_client.secagg.stages import base_of
from aggregator_client.transport import Failure, Handle, Hub
from trainer import weights
from trainer.errors import TrainerError

LOOK_SECONDS = 0.5


def proof(state: RunState, model: weights.Weights) -> bytes:
    """The ballots that carried this model, or nothing for the one the project starts from."""
    name = base_of(model)
    carrying = [one.round for one in state.candidates() if one.candidate == name and one.outcome == "accepted"]
    return state.bundle(carrying[-1]) if carrying else b""


class Running(Protocol):
    """What a round needs of the run it belongs to (server.Run)."""

    project: SignedProject
    document: ProjectDocument
    members: dict[str, Member]
    keys: CoordinatorKeys
    hub: Hub
    state: RunState
    facts: RunFacts
    strategy: Strategy
    tell: Callable[[Mapping[str, Any]], None]
    grace_s: float

    def member(self, site: str, told: Sequence[Any] = ()) -> Member:
        """The site with its present keys, which `told` may introduce. Raises RefusedError when it was revoked."""

    def understand(self, site: str, message: Message) -> Any:
        """An ensemble's outputs in an answer. Raises MessageError."""


class Gathering:
    """One round's waiting, with clock, hub and state around the pure `Gather`."""

    def __init__(
        self,
        run: Running,
        kind: str,
        number: int,
        sites: list[str],
        model: weights.Weights,
        parts: Mapping[str, bytes] | None = None,
    ) -> None:
        self.run, self.kind, self.number, self.model, self.sites = run, kind, number, model, sites
        document = run.document
        self.counts = kind in ("train", "predict")
        need = min(document.min_sites, len(sites)) if self.counts else 0
        self.parts = parts
        self.terms = Terms(need, document.deadline_s, run.grace_s)
        self.gather = Gather(number, frozenset(sites), time.monotonic())
        self.request = self._request()
        self.digest = self.request.digest()
        self.handles: dict[str, Handle] = {}
        for site in sites:
            if self.counts and run.state.update(number, site) is not None:
                self.gather = self.gather.took(site)

    def _request(self) -> Message:
        """The same bytes however often a round is begun, so that a site knows it for the same."""
        extra = self.run.strategy.extra()
        if self.parts is not None:
            return Message(self._header(), self.parts)
        stays = self.run.strategy.models_stay_home and self.number > 1
        parts = {} if stays else {"model": weights.to_bytes(self.model)}
        if extra:
            parts["extra"] = weights.to_bytes(extra)
        if self.kind == "train" and self.run.document.vote_share and (ballots := proof(self.run.state, self.model)):
            parts["votes"] = ballots
        return Message(self._header(), parts)

    def _header(self) -> dict[str, Any]:
        document = self.run.document
        return {
            "v": VERSION,
            "kind": self.kind,
            "name": document.name,
            "run": self.run.facts.id,
            "round": self.number,
            "rounds": document.rounds,
            "deadline_s": document.deadline_s,
            "roster": sorted(self.sites),
        }

    def request_of(self, site: str) -> Message:
        """What this site is asked."""
        return self.request

    def digest_of(self, site: str) -> str:
        """How this site's answer names what it was asked."""
        return self.digest

    def bound_of(self, site: str) -> dict[str, str]:
        """The hashes of roster and schema that this site's request and answer are bound to."""
        request = self.request_of(site)
        return {
            "roster_hash": messages.roster_hash(request.header.get("roster", [])),
            "schema_hash": messages.schema_hash(request.parts.get("model")),
        }

    def take(self, site: str, answer: Message) -> None:
        """Check a proven answer before it is kept. Raises FederationError when it is not used."""
        if self.kind == "train" and not self.run.document.privacy.summed:
            update = as_update(site, answer, self.model, self.run.strategy, self.run.document)
            self.run.strategy.check(update, self.model)
        if self.kind == "predict":
            self.run.understand(site, answer)

    def wait(self) -> Gather:
        """Until the round has enough. Raises TooFewSitesError naming each site that gave nothing and why."""
        while True:
            now = time.monotonic()
            infos = [info for info in self.run.hub.sites() if info.name in self.run.members]
            self.run.state.see([SiteFacts(info.name, info.online, info.last_seen) for info in infos])
            self.gather = self.gather.seen(infos, now)
            for site in self.gather.to_send(infos, self.terms, now):
                self._send(site)
            verdict = self.gather.verdict(self.terms, now)
            if verdict is not Verdict.WAIT:
                break
            self._collect()
        self._note_stalled()
        if verdict is Verdict.SHORT and self.counts:
            raise TooFewSitesError(self._short())
        return self.gather

    def _send(self, site: str) -> None:
        try:
            member = self.run.member(site)
        except FederationError as error:  # revoked while the round goes on
            self._refuse(site, str(error), "refused")
            return
        context = Context(self.run.project.digest, self.number, COORDINATOR, site, self.kind, **self.bound_of(site))
        blob = messages.wrap(
            self.request_of(site),
            context,
            recipient_public=member.sealing_public,
            signer=self.run.keys.signing,
            introductions=self.run.keys.introductions,
        )
        wall = time.time()
        handle = self.run.hub.send(site, blob)
        self.handles[handle.id] = handle
        self.gather = self.gather.was_sent(site, time.monotonic(), wall)
        cell = self.run.state.cell(self.number, site)
        self.run.state.put(
            replace(cell, state="asked", bytes_out=cell.bytes_out + len(blob), attempts=cell.attempts + 1)
        )
        self.run.tell({"event": "sent", "round": self.number, "site": site, "bytes": len(blob)})

    def _collect(self) -> None:
        for handle, reply in self.run.hub.collect(list(self.handles.values()), time.monotonic() + LOOK_SECONDS):
            self.handles.pop(handle.id, None)
            if handle.site in self.gather.accepted:
                continue
            if isinstance(reply, Failure):
                self._fail(handle.site, reply)
            else:
                self._take(handle.site, reply)

    def _fail(self, site: str, failure: Failure) -> None:
        if any(handle.site == site for handle in self.handles.values()):
            return  # a later copy of the request is still under way
        if failure.retry:
            self.gather = self.gather.lost(site)
        else:
            self._refuse(site, failure.reason, "failed")

    def _take(self, site: str, blob: bytes) -> None:
        try:
            answer = self._proven(site, blob)
            if answer.header["kind"] == "refused":
                self._refuse(site, str(answer.header.get("reason", "no reason given"))[:500], "refused", len(blob))
                return
            self.take(site, answer)
            receipts.keep(self.run.state.folder, blob)
            if self.counts:
                self.run.state.keep_update(self.number, site, answer)
        except (FederationError, TrainerError) as error:
            self._refuse(site, str(error), "failed", len(blob))
            return
        self.gather = self.gather.took(site)
        self._note(site, answer, len(blob))

    def _proven(self, site: str, blob: bytes) -> Message:
        """The answer, proven to be this site's to this very request. Raises MessageError, SignatureError."""
        claimed, _ = messages.peek(blob)
        if claimed.kind not in REPLIES:
            raise MessageError(f"The answer of {site} is of the unknown kind {claimed.kind!r}: it is not used.")
        unread = claimed.kind == "refused" and not claimed.roster_hash  # a site that could not read what it was asked
        bound = {} if unread else self.bound_of(site)
        expect = Context(self.run.project.digest, self.number, site, COORDINATOR, claimed.kind, **bound)
        _, answer = messages.unwrap(
            blob,
            private=self.run.keys.sealing,
            sender_public=self.run.member(site, messages.introductions(blob)).signing_public,
            expect=expect,
            retired=self.run.keys.retired,
        )
        header = answer.header
        if header.get("kind") != claimed.kind or header.get("v") != VERSION:
            raise MessageError(f"The answer of {site} is of another version or kind: update fedpacs there.")
        if header["kind"] == "refused":
            return answer
        if header.get("request") != self.digest_of(site) or header["kind"] != ANSWERS[self.kind]:
            raise MessageError(f"The answer of {site} belongs to another request: it is not used.")
        return answer

    # -- what people see ----------------------------------------------------------------------------------------------

    def _note(self, site: str, answer: Message, size: int) -> None:
        header = answer.header
        loss, metrics = header.get("loss"), header.get("metrics")
        cell = replace(
            self.run.state.cell(self.number, site),
            state="accepted",
            reason="",
            cases=int(header.get("samples", 0)),
            seconds=float(header.get("seconds", 0.0)),
            loss=float(loss) if isinstance(loss, int | float) else None,
            metrics=_figures(metrics, header.get("personal")),
        )
        cell = replace(cell, bytes_in=cell.bytes_in + size)
        self.run.state.put(cell)
        facts = {"cases": cell.cases, "seconds": cell.seconds, "loss": cell.loss, "metric": cell.metric, "bytes": size}
        self.run.tell(
            {"event": "update" if self.kind == "train" else "metrics", "round": self.number, "site": site, **facts}
        )

    def _refuse(self, site: str, reason: str, state: str, size: int = 0) -> None:
        self.gather = self.gather.refuse(site, reason, time.monotonic())
        cell = self.run.state.cell(self.number, site)
        self.run.state.put(replace(cell, state=state, reason=reason, bytes_in=cell.bytes_in + size))
        self.run.tell({"event": state, "round": self.number, "site": site, "reason": reason})

    def _note_stalled(self) -> None:
        for site, reason in self.gather.stalled(self.terms).items():
            if site not in self.gather.refused:
                cell = self.run.state.cell(self.number, site)
                self.run.state.put(replace(cell, state="away" if site in self.gather.away else "failed", reason=reason))
                self.run.tell({"event": "stalled", "round": self.number, "site": site, "reason": reason})

    def _short(self) -> str:
        told = "; ".join(f"{site}: {reason}" for site, reason in self.gather.stalled(self.terms).items())
        return (
            f"Round {self.number} needs {self.terms.need} sites and has {len(self.gather.accepted)} after"
            f" {self.terms.deadline_s:g} s ({told}): mend that, then `fedpacs coordinator resume`."
        )


def _figures(metrics: Any, personal: Any) -> dict[str, Any]:
    """The metrics of the model given, with those of the site's own further trained model under "personal"."""
    found = dict(metrics) if isinstance(metrics, dict) else {}
    if isinstance(personal, dict) and isinstance(personal.get("metrics"), dict):
        found["personal"] = personal["metrics"]
    return found


def as_update(
    site: str, message: Message, given: weights.Weights, strategy: Strategy, document: ProjectDocument
) -> Update:
    """The update in a site's answer to a request with the model `given`. Raises WeightsError, MessageError."""
    header = message.header
    samples, steps = header.get("samples"), header.get("steps", 1)
    if type(samples) is not int or type(steps) is not int:
        raise MessageError(f"The update of {site} names no number of samples or steps: it is not used.")
    metrics = header.get("metrics")
    loss = metrics.get("loss") if isinstance(metrics, dict) else None
    if document.transfer.compression == "none" or strategy.models_stay_home:
        model = weights.from_bytes(message.parts["model"]) if "model" in message.parts else {}
    else:
        absent = frozenset(strategy.own(given)) if isinstance(strategy, KeepsLayers) else frozenset[str]()
        model = decompress(message.parts.get("change", b""), given, document.transfer, absent)
    extra = message.parts.get("extra")
    loss = float(loss) if isinstance(loss, int | float) else None
    return Update(site, model, samples, weights.from_bytes(extra) if extra else {}, steps, loss)
