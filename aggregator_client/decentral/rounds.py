"""A hospital's part in decentralised rounds: train, offer, wait for the others, agree, go on; with no coordinator in between.

`step` does whatever is next for each approved project and comes back; the federation process calls it between requests. All that
must survive is on disk: a node killed at any moment goes on in the round it was in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator_client import hours
from aggregator_client.approvals import require_approved, require_known_coordinator
from aggregator_client.contract import require_ready
from aggregator_client.decentral.chain import write_whole
from aggregator_client.decentral.mailbox import Mailbox, relay_of
from aggregator_client.decentral.node import Node, weights_digest
from aggregator_client.decentral.settings import ALGORITHM
from aggregator_client.egress import EgressGate
from aggregator_client.errors import FederationError, RefusedError
from aggregator_client.executor import Executor
from aggregator_client.local_job import LocalJob
from aggregator_client.messages import Message
from aggregator_client.project import SignedProject
from aggregator_client.sealing import Context
from dicom_node.config import NodeConfig
from dicom_node.pause import is_paused
from dicom_node.projects import Projects
from trainer import weights

BALLOT_SECONDS = 10.0
REST_SECONDS = 30.0  # before something that could not be done is tried again
RUN = "peers"
KEPT_ROUNDS = 3


def home_of(config: NodeConfig, digest: str) -> Path:
    """Where a decentralised project's ledger, models and mailbox lie at a node."""
    return config.storage.federation / "peers" / digest[:16]


@dataclass
class Membership:
    """One project's state in this process. `since`: when this node's update went out; `moved`: when anything last changed."""

    node: Node
    mailbox: Mailbox
    since: float = 0.0
    ballot: int = 0
    moved: float = field(default_factory=time.monotonic)


class PeerRounds:
    """All decentralised projects of one node; `executor` trains and reports."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.config = executor, executor.config
        self._known: dict[str, Membership] = {}
        self._resting: dict[str, float] = {}

    def step(self) -> bool:
        """Do what is next. True when something moved, so that the caller need not wait before calling again."""
        moved = False
        for digest in self._approved():
            if self._resting.get(digest, 0.0) > time.monotonic():
                continue
            try:
                moved |= self._go(require_approved(self.config, digest))
            except FederationError as error:
                self._resting[digest] = time.monotonic() + REST_SECONDS
                self.executor.report(activity="waiting", reason=str(error))
        return moved

    def _approved(self) -> list[str]:
        with closing(Projects(self.config.storage.catalogue)) as projects:
            records = [one for one in projects.list() if one.state == "approved"]
        return [one.digest for one in records if f'"{ALGORITHM}"'.encode() in one.document and _is_ours(one.document)]

    def _go(self, project: SignedProject) -> bool:
        document, digest = project.document, project.digest
        if is_paused(self.config) or not hours.allowed(self.config):
            return False
        if (home_of(self.config, digest) / "result.json").exists():
            self._keep_giving(project)
            return False
        membership = self._known.get(digest) or self._join(project)
        node = membership.node
        if node.round > document.rounds:
            self._finish(project, membership)
            return True
        if node.close():
            return self._closed(project, membership)
        if not membership.since:
            require_ready(self.config, document)
            trained, samples = self._train(project, node)
            require_approved(self.config, digest)  # it may have been withdrawn meanwhile
            if not node.close():  # the others may have gone on without this node's update
                node.offer(trained, samples)
                membership.since = membership.moved = time.monotonic()
                return True
            return self._closed(project, membership)
        return self._agree(project, membership)

    def _agree(self, project: SignedProject, membership: Membership) -> bool:
        """Wait for all members' updates, or for the deadline and a majority's; then vote, ballot after ballot."""
        node, now = membership.node, time.monotonic()
        node.declare()
        membership.mailbox.spread(node.project, node.round)
        held = len(node.agreed())
        self.executor.report(activity="agreeing", round=node.round, updates=held, members=len(node.members))
        if (
            held < len(node.members)
            and now - membership.since < project.document.deadline_s
            and not node.latest_ballot()
        ):
            return False
        latest = max(1, node.latest_ballot(), membership.ballot)
        if latest > membership.ballot:
            membership.ballot, membership.moved = latest, now
        elif now - membership.moved > BALLOT_SECONDS:
            membership.ballot, membership.moved = latest + 1, now
        return node.turn(membership.ballot) and self._closed(project, membership)

    def _closed(self, project: SignedProject, membership: Membership) -> bool:
        node, entry = membership.node, membership.node.chain[-1]
        self.executor.audit.append(
            "peers.round",
            project=project.digest,
            round=entry.block.round,
            block=entry.block.digest(),
            model=entry.block.model,
            used=[name for name, _ in entry.block.used],
            votes=sorted(entry.votes),
        )
        self.executor.report(event="round agreed", round=entry.block.round, sites=len(entry.block.used))
        node.forget(KEPT_ROUNDS)
        membership.since, membership.ballot, membership.moved = 0.0, 0, time.monotonic()
        return True

    def _keep_giving(self, project: SignedProject) -> None:
        """A node that is done still hands the last round to members that are not."""
        membership = self._known.get(project.digest)
        if membership is not None:
            membership.mailbox.spread(project.digest, project.document.rounds)

    # -- joining and ending -------------------------------------------------------------------------------------------

    def _join(self, project: SignedProject) -> Membership:
        from trainer import networks  # torch takes seconds to import, and most nodes have no such project

        executor, document = self.executor, project.document
        require_known_coordinator(self.config, project)
        members = document.peers.members()
        me = next((one for one in members if one.name == executor.site), None)
        if me is None or me.signing_public != executor.keys.signing_public:
            raise RefusedError(
                f"The project {document.name} names other keys for {executor.site!r} than this node's: ask the coordinator to"
                " sign it again with the keys enrolled now."
            )
        folder = home_of(self.config, project.digest)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        gate = _Leaving(executor, project)
        relays = [relay_of(url, executor.keys.signing) for url in document.peers.relays]
        mailbox = Mailbox(folder / "mailbox", relays, gate.leaving)
        start = networks.initial_weights(document.network.name, document.network.args, document.seed)
        node = Node(
            executor.site, executor.keys, members, mailbox, project.digest, folder / "ledger.jsonl", start
        )  # fmt: skip
        self._known[project.digest] = Membership(node, mailbox)
        return self._known[project.digest]

    def _train(self, project: SignedProject, node: Node) -> tuple[weights.Weights, int]:
        if node.offered():  # before a restart; the same update goes out again
            return {}, 0
        answer = self._job(project, node, "train", node.round)
        return weights.from_bytes(answer.parts["model"]), int(answer.header["samples"])

    def _finish(self, project: SignedProject, membership: Membership) -> None:
        """Measure the last model on this hospital's own held-out patients; the figures stay here."""
        node = membership.node
        last = node.chain[-1].block
        answer = self._job(project, node, "evaluate", project.document.rounds + 1)
        facts = {"rounds": last.round, "model": last.model, "block": last.digest()}
        facts |= {"metrics": answer.header.get("metrics"), "personal": answer.header.get("personal")}
        folder = home_of(self.config, project.digest)
        weights.save(folder / "model.safetensors", node.model)
        write_whole(folder / "result.json", json.dumps(facts, indent=1).encode())
        self.executor.audit.append("peers.finished", project=project.digest, round=last.round, model=last.model)
        self.executor.report(event="peers finished", round=last.round)

    def _job(self, project: SignedProject, node: Node, kind: str, number: int) -> Message:
        document, site = project.document, self.executor.site
        context = Context(project.digest, number, site, site, kind)
        request = Message({"run": RUN}, {"model": weights.to_bytes(node.model)})
        job = LocalJob(self.executor, document, context, RUN, request, document.deadline_s)
        return job.run({"project": project.digest, "round": number, "site": site, "start": weights_digest(node.model)})


@dataclass
class _Leaving:
    """Writes what leaves to the audit log first: an update to the member it is sealed to, a statement to all members."""

    executor: Executor
    project: SignedProject

    def leaving(self, topic: str, data: bytes) -> None:
        _, number, what = topic.split("/", 2)
        kind, _, peer = what.partition("/")
        privacy: Mapping[str, Any] = self.project.document.privacy.model_dump(mode="json") if peer else {}
        EgressGate(self.executor.audit, peer or "all members").release(
            data,
            what=f"peer.{kind}",
            project=self.project.digest,
            round_number=int(number),
            privacy=privacy,
            roster=sorted(self.project.document.peers.sites),
        )


def _is_ours(document: bytes) -> bool:
    try:
        return bool(json.loads(document)["project"]["algorithm"]["name"] == ALGORITHM)
    except (ValueError, KeyError, TypeError):
        return False
