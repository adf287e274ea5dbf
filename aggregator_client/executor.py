"""Answers one request of the coordinator with the installed trainer: proven, approved, trained, recorded, sealed.

Nothing in a request says what code to run or where data lies. It names an approved project by its digest, a round and a kind;
everything else comes from the document this hospital approved and from node.toml.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aggregator_client import hours, messages, trust
from aggregator_client.approvals import require_approved
from aggregator_client.attack import require_resisted
from aggregator_client.contract import require_ready
from aggregator_client.egress import EgressGate
from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.invitations import Invitation
from aggregator_client.keys import NodeKeys, renewed
from aggregator_client.ledger import Ledger
from aggregator_client.local_job import LocalJob
from aggregator_client.messages import (
    ANSWERS,
    COORDINATOR,
    REQUESTS,
    SPLITTING,
    SUMMING,
    VERSION,
    Message,
    roster_hash,
    schema_hash,
)
from aggregator_client.project import ProjectDocument
from aggregator_client.sealing import Context
from aggregator_client.secagg import stages
from aggregator_client.trainer_process import TrainerProcess
from aggregator_client.trust import Trust, trust_of
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.pause import is_paused

Report = Callable[..., None]
ENSEMBLE = ("predict", "deliver")
EAGER_SECONDS = 20.0


@dataclass
class Executor:
    """One site's end of the project. `report(**facts)` is told what is being done (for the status file)."""

    config: NodeConfig
    invitation: Invitation
    keys: NodeKeys
    audit: AuditLog
    ledger: Ledger
    report: Report
    trainer: TrainerProcess
    trust: Trust = field(init=False)
    eager_until: float = 0.0
    """While the next message of a chatty algorithm is near (time.monotonic)."""
    _turns: Any = None

    def __post_init__(self) -> None:
        self.trust = trust_of(self.config, self.invitation)

    @property
    def site(self) -> str:
        return self.invitation.site

    def handle(self, payload: bytes) -> bytes:
        """The sealed answer to a sealed request: an update, metrics, or a refusal with its reason. Never raises for bad input."""
        context, roster = Context("", 0, COORDINATOR, self.site, "train"), list[str]()
        digest = hashlib.sha256(payload).hexdigest()
        try:
            context, request = self._proven(payload)
            digest, roster = request.digest(), roster_of(request)
            answer, privacy = self._answer(context, request, digest)
        except Exception as error:
            reason = (
                str(error) if hasattr(error, "exit_code") else f"this site failed ({type(error).__name__}); see its log"
            )
            if not hasattr(error, "exit_code"):
                self.report(event="failed", error=type(error).__name__)
                if os.environ.get("FEDPACS_TRACE"):
                    raise
            answer = Message({**self._head(context, digest), "kind": "refused", "reason": reason})
            privacy = {}
            self.report(event="refused", round=context.round, reason=reason)
        if isinstance(answer, bytes):
            return answer
        return self._release(context, digest, answer, privacy, roster)

    def _proven(self, payload: bytes) -> tuple[Context, Message]:
        """The request, proven to be the coordinator's and for this site."""
        self.keys = renewed(self.keys)
        self.trust = trust_of(self.config, self.invitation)
        self.trust = trust.learn(self.config, self.trust, messages.introductions(payload), self.audit)
        context, request = trust.unwrap(self.trust, payload, self.keys.sealing, self.keys.retired)
        if context.recipient != self.site or context.sender != COORDINATOR or context.kind not in REQUESTS:
            raise MessageError(f"The message is not a request to this site ({self.site}): it is not used.")
        if request.header.get("kind") != context.kind or request.header.get("round") != context.round:
            raise MessageError("The message's header and seal name different rounds or kinds: it is not used.")
        other_roster = context.roster_hash and context.roster_hash != roster_hash(roster_of(request))
        if other_roster or (context.schema_hash and context.schema_hash != schema_hash(request.parts.get("model"))):
            raise MessageError("The message's seal is for another roster or model than it holds: it is not used.")
        if request.header.get("v") != VERSION:
            raise MessageError("The coordinator runs another version of fedpacs: update both sides.")
        return context, request

    def _answer(self, context: Context, request: Message, digest: str) -> tuple[Message | bytes, Mapping[str, Any]]:
        project = require_approved(self.config, context.project_digest, str(request.header.get("name", "")))
        document, run = project.document, str(request.header.get("run", ""))
        if is_paused(self.config):
            raise RefusedError(f"{self.site} is paused by its administrator: the round goes on without it.")
        if context.kind != "deliver" and not hours.allowed(self.config):  # receiving a result is no work
            raise RefusedError(hours.closed(self.config, self.site))
        last = document.rounds + {"train": 0, "evaluate": 1, "predict": 2, "deliver": 3}.get(context.kind, 0)
        if not 1 <= context.round <= last or (context.kind in ENSEMBLE and document.algorithm.name != "ensemble"):
            raise RefusedError(
                f"Round {context.round} is none of the {document.rounds} rounds this hospital approved: it is not done."
            )
        _fits(document.algorithm.name == "split", context.kind)
        if context.kind in SPLITTING:
            require_resisted(self.config, self.audit, context.project_digest)
            head = {**self._head(context, digest), "run": run, "kind": ANSWERS[context.kind]}
            return self._split(document, context, request, head), document.privacy.model_dump(mode="json")
        require_ready(self.config, document)
        if context.kind in SUMMING:  # it has a journal of its own
            head = {**self._head(context, digest), "run": run, "kind": ANSWERS[context.kind]}
            return stages.answer(self, document, context, request, head), document.privacy.model_dump(mode="json")
        kept = self.ledger.answered(context.project_digest, run, context.round, context.kind, digest)
        if kept is not None:
            self.report(event="repeated", round=context.round)
            return kept, {}
        require_ready(self.config, document)
        deadline = min(float(request.header.get("deadline_s", document.deadline_s)), document.deadline_s)
        job = LocalJob(self, document, context, run, request, deadline)
        answer = job.run({**self._head(context, digest)})
        require_approved(self.config, context.project_digest, document.name)  # it may have been withdrawn meanwhile
        return answer, document.privacy.model_dump(mode="json")

    def _split(self, document: ProjectDocument, context: Context, request: Message, head: dict[str, Any]) -> Message:
        """One step of split learning; torch, which the other algorithms leave to the trainer's process, is imported for it."""
        from aggregator_client.split_site import SplitTurns

        if self._turns is None:
            self._turns = SplitTurns()
        self.eager_until = time.monotonic() + EAGER_SECONDS
        if context.kind == "split.forward":
            require_ready(self.config, document)
            self.report(activity="split learning", round=context.round)
        return self._turns.answer(self, document, context, request, head)

    def _head(self, context: Context, request: str) -> dict[str, Any]:
        return {
            "v": VERSION,
            "project": context.project_digest,
            "round": context.round,
            "site": self.site,
            "request": request,
        }

    def _release(
        self, context: Context, digest: str, answer: Message, privacy: Mapping[str, Any], roster: Sequence[str]
    ) -> bytes:
        kind = str(answer.header["kind"])
        back = replace(context, sender=self.site, recipient=COORDINATOR, kind=kind)
        sealed = messages.wrap(
            answer,
            back,
            recipient_public=self.trust.present.sealing,
            signer=self.keys.signing,
            introductions=self.keys.introductions,
        )
        gate = EgressGate(self.audit, self.invitation.coordinator)
        gate.release(
            sealed,
            what=kind,
            project=context.project_digest,
            round_number=context.round,
            privacy=privacy,
            roster=roster,
        )
        if kind != "refused" and context.kind not in (*SUMMING, *SPLITTING):
            run = str(answer.header["run"])
            self.ledger.keep(context.project_digest, run, context.round, context.kind, digest, sealed)
        return sealed


def _fits(split: bool, kind: str) -> None:
    """Raises RefusedError for a training that is not the approved project's: whole models never leave under split learning."""
    if (split and kind == "train") or (not split and kind in SPLITTING):
        raise RefusedError(f"The project this hospital approved does not train by {kind!r}: the request is refused.")


def roster_of(request: Message) -> list[str]:
    """Who takes part in the round, as the coordinator says. Raises MessageError when that is no list of names."""
    roster = request.header.get("roster", [])
    if (
        not isinstance(roster, list)
        or len(roster) > 1000
        or not all(isinstance(n, str) and len(n) < 200 for n in roster)
    ):
        raise MessageError("The request's roster is no list of site names: it is not used.")
    return sorted(roster)
