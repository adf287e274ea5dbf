"""Answers one request of the coordinator with the installed trainer: proven, approved, trained, recorded, sealed.

Nothing in a request says what code to run or where data lies. It names an approved project by its digest, a round and a kind;
everything else comes from the document this hospital approved and from node.toml.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator_client import messages
from aggregator_client.approvals import require_approved
from aggregator_client.contract import require_ready
from aggregator_client.egress import EgressGate
from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.invitations import Invitation
from aggregator_client.keys import NodeKeys
from aggregator_client.ledger import Ledger
from aggregator_client.messages import COORDINATOR, REQUESTS, VERSION, Message
from aggregator_client.project import ProjectDocument
from aggregator_client.sealing import Context
from aggregator_client.trainer_process import TrainerProcess
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.pause import is_paused
from dicom_node.records import Catalogue
from trainer import weights
from trainer.spec import JobSpec, lr_at_round

Report = Callable[..., None]


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

    @property
    def site(self) -> str:
        return self.invitation.site

    def handle(self, payload: bytes) -> bytes:
        """The sealed answer to a sealed request: an update, metrics, or a refusal with its reason. Never raises for bad input."""
        context = Context("", 0, COORDINATOR, self.site, "train")
        digest = hashlib.sha256(payload).hexdigest()
        try:
            context, request = self._proven(payload)
            digest = request.digest()
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
        return self._release(context, digest, answer, privacy)

    def _proven(self, payload: bytes) -> tuple[Context, Message]:
        """The request, proven to be the coordinator's and for this site."""
        context, request = messages.unwrap(
            payload, private=self.keys.sealing, sender_public=self.invitation.signing_key
        )
        if context.recipient != self.site or context.sender != COORDINATOR or context.kind not in REQUESTS:
            raise MessageError(f"The message is not a request to this site ({self.site}): it is not used.")
        if request.header.get("kind") != context.kind or request.header.get("round") != context.round:
            raise MessageError("The message's header and seal name different rounds or kinds: it is not used.")
        if request.header.get("v") != VERSION:
            raise MessageError("The coordinator runs another version of fedpacs: update both sides.")
        return context, request

    def _answer(self, context: Context, request: Message, digest: str) -> tuple[Message | bytes, Mapping[str, Any]]:
        project = require_approved(self.config, context.project_digest, str(request.header.get("name", "")))
        document, run = project.document, str(request.header.get("run", ""))
        if is_paused(self.config):
            raise RefusedError(f"{self.site} is paused by its administrator: the round goes on without it.")
        if not 1 <= context.round <= document.rounds + 1:
            raise RefusedError(
                f"Round {context.round} is none of the {document.rounds} rounds this hospital approved: it is not done."
            )
        require_ready(self.config, document)
        kept = self.ledger.answered(context.project_digest, run, context.round, context.kind, digest)
        if kept is not None:
            self.report(event="repeated", round=context.round)
            return kept, {}
        require_ready(self.config, document)
        deadline = min(float(request.header.get("deadline_s", document.deadline_s)), document.deadline_s)
        job = _Job(self, document, context, run, request, deadline)
        answer = job.run({**self._head(context, digest)})
        require_approved(self.config, context.project_digest, document.name)  # it may have been withdrawn meanwhile
        return answer, document.privacy.model_dump(mode="json")

    def _head(self, context: Context, request: str) -> dict[str, Any]:
        return {
            "v": VERSION,
            "project": context.project_digest,
            "round": context.round,
            "site": self.site,
            "request": request,
        }

    def _release(self, context: Context, digest: str, answer: Message, privacy: Mapping[str, Any]) -> bytes:
        kind = str(answer.header["kind"])
        back = Context(context.project_digest, context.round, self.site, COORDINATOR, kind)
        sealed = messages.wrap(answer, back, recipient_public=self.invitation.sealing_key, signer=self.keys.signing)
        gate = EgressGate(self.audit, self.invitation.coordinator)
        gate.release(sealed, what=kind, project=context.project_digest, round_number=context.round, privacy=privacy)
        if kind != "refused":
            run = str(answer.header["run"])
            self.ledger.keep(context.project_digest, run, context.round, context.kind, digest, sealed)
        return sealed


@dataclass
class _Job:
    """One trainer process for one request."""

    node: Executor
    document: ProjectDocument
    context: Context
    run_id: str
    request: Message
    deadline: float

    def run(self, head: dict[str, Any]) -> Message:
        work = self._folder()
        spec = self._spec(work)
        started = time.monotonic()
        result = self._result(work, spec)
        loss, metrics = result.get("loss"), result.get("metrics")
        head |= {
            "run": self.run_id,
            "samples": int(result["samples"]),
            "seconds": round(time.monotonic() - started, 3),
            "loss": loss,
            "metrics": metrics,
            "evaluated_on": result.get("evaluated_on"),
        }
        studies = [str(uid) for uid in result.get("studies", [])]
        self._record(studies, head)
        if self.context.kind == "evaluate":
            return Message({**head, "kind": "metrics"})
        return Message({**head, "kind": "update"}, self._parts(work))

    # -- what goes in -------------------------------------------------------------------------------------------------

    @property
    def algorithm(self) -> str:
        return self.document.algorithm.name

    @property
    def _kept(self) -> Path:
        """What an algorithm keeps at the site from round to round (FedBN's layers, SCAFFOLD's control variate)."""
        return self.node.config.storage.federation / "kept" / self.context.project_digest[:16] / self.run_id

    def _folder(self) -> Path:
        whole = self.node.config.storage.federation / "work"
        mine = whole / f"{self.context.project_digest[:16]}-{self.run_id}-{self.context.round:04d}-{self.context.kind}"
        for other in whole.glob("*") if whole.exists() else ():
            if other != mine:
                shutil.rmtree(other, ignore_errors=True)
        mine.mkdir(parents=True, exist_ok=True)
        return mine

    def _spec(self, work: Path) -> JobSpec:
        document, storage = self.document, self.node.config.storage
        model = weights.from_bytes(self.request.parts.get("model", b""))
        weights.save(work / "given.safetensors", self._own_layers(model))
        state = self._control(work)
        seed = f"{document.seed}/{self.context.round}/{self.node.site}".encode()
        return JobSpec(
            kind="train" if self.context.kind == "train" else "evaluate",
            catalogue=storage.catalogue,
            dataset=storage.dataset,
            cache=storage.federation / "cache",
            network=document.network,
            task=document.task,
            cohort=document.cohort_rule.model_dump(mode="json"),
            split_salt=document.split.salt,
            evaluate_on="validation",
            evaluate_first=self.context.kind == "train",
            local=self._local(),
            seed=int.from_bytes(hashlib.sha256(seed).digest()[:4]),
            weights_in=work / "given.safetensors",
            state_in=state,
            out=work / "out",
            device=self.node.config.federation.device,
            threads=int(os.environ.get("OMP_NUM_THREADS", "0")),
        )

    def _local(self) -> Any:
        local, args = self.document.local, self.document.algorithm.args
        known = self.algorithm if self.algorithm in ("fedprox", "scaffold", "fedbn") else "fedavg"
        lr = lr_at_round(local.lr, min(self.context.round, self.document.rounds) - 1, self.document.rounds)
        return local.model_copy(update={"algorithm": known, "mu": float(args.get("mu", local.mu)), "lr": lr})

    def _own_layers(self, model: weights.Weights) -> weights.Weights:
        file = self._kept / "norm.safetensors"
        return {**model, **weights.load(file)} if self.algorithm == "fedbn" and file.exists() else model

    def _control(self, work: Path) -> Path | None:
        if self.algorithm != "scaffold" or self.context.kind != "train":
            return None
        sent = self.request.parts.get("extra")
        control = weights.from_bytes(sent) if sent else {}
        file = self._kept / "control.safetensors"
        if file.exists():
            control |= weights.load(file)
        weights.save(work / "control.safetensors", control)
        return work / "control.safetensors"

    # -- the trainer process ------------------------------------------------------------------------------------------

    def _result(self, work: Path, spec: JobSpec) -> dict[str, Any]:
        """What the job left; a job that had ended before the site was killed is not done again."""
        text = spec.model_dump_json(indent=1)
        file, out = work / "spec.json", work / "out" / "result.json"
        if not (out.exists() and file.exists() and file.read_text() == text):
            file.write_text(text)
            self._train(file)
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def _train(self, spec: Path) -> None:
        said = ["the trainer ended without a word"]
        code = self.node.trainer.run(spec, self.deadline, lambda line: said.append(self._listen(line, said[-1])))
        if code != 0:
            late = f"it took longer than the {self.deadline:g} s of a round"
            raise RefusedError(f"{self.node.site} could not train: {late if code is None else said[-1]}")

    def _listen(self, line: bytes, said: str) -> str:
        try:
            facts = json.loads(line)
        except ValueError:
            return said
        self.node.report(activity=facts.get("event"), step=facts.get("step"), steps=facts.get("steps"))
        return str(facts.get("message", said)) if facts.get("event") == "error" else said

    # -- what comes out -----------------------------------------------------------------------------------------------

    def _parts(self, work: Path) -> dict[str, bytes]:
        trained = weights.load(work / "out" / "model.safetensors")
        parts: dict[str, weights.Weights] = {"model": trained}
        if self.algorithm == "fedbn":
            own = weights.norm_layers(trained)
            self._keep("norm", {name: trained[name] for name in own})
            parts["model"] = {name: value for name, value in trained.items() if name not in own}
        if self.algorithm == "scaffold":
            state = weights.load(work / "out" / "state.safetensors")
            self._keep("control", {name: v for name, v in state.items() if name.startswith("local.")})
            parts["extra"] = {name: v for name, v in state.items() if name.startswith("delta.")}
        return {name: weights.to_bytes(arrays) for name, arrays in parts.items()}

    def _keep(self, what: str, arrays: weights.Weights) -> None:
        self._kept.mkdir(parents=True, exist_ok=True)
        weights.save(self._kept / f"{what}.safetensors", arrays)

    def _record(self, studies: list[str], head: Mapping[str, Any]) -> None:
        context, metrics = self.context, head.get("metrics") or {}
        if context.kind == "train":
            catalogue = Catalogue(self.node.config.storage.catalogue)
            try:
                catalogue.mark_used(context.project_digest, context.round, studies)
            finally:
                catalogue.close()
        self.node.audit.append(
            "round.trained" if context.kind == "train" else "round.evaluated",
            project=context.project_digest,
            round=context.round,
            samples=head["samples"],
            studies=len(studies),
            seconds=head["seconds"],
            loss=head["loss"],
            auc=metrics.get("auc"),
        )
