"""One request's work at a site: the trainer's job from the approved document, and what of its result leaves.

Everything a job does follows from the document this hospital approved, node.toml and the model in the request; what an algorithm
keeps at the site from round to round lies in federation/kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator_client import gpu_queue, hours, private, reference
from aggregator_client.attack import require_resisted
from aggregator_client.compression import compress
from aggregator_client.errors import RefusedError
from aggregator_client.messages import Message
from aggregator_client.node import Node
from aggregator_client.project import ProjectDocument
from aggregator_client.schedule import round_lr
from aggregator_client.sealing import Context
from aggregator_client.secagg.stages import base_of
from aggregator_client.training_log import TrainingLog
from aggregator_client.vote_job import vote
from aggregator_client.votes import require_proven
from dicom_node.pause import is_paused
from dicom_node.records import Catalogue
from dicom_node.records.usage import usage_digest
from trainer import weights
from trainer.spec import JobSpec


@dataclass
class LocalJob:
    """One request's training or evaluation. `node` is the executor it works for."""

    node: Node
    document: ProjectDocument
    context: Context
    run_id: str
    request: Message
    deadline: float

    def run(self, head: dict[str, Any]) -> Message:
        if self.context.kind == "train":
            require_resisted(self.node.config, self.node.audit, self.context.project_digest)
        work = self._folder()
        if self.context.kind == "vote":
            return vote(self, work, head)
        if self.context.kind == "deliver":
            return Message(
                {**head, "run": self.run_id, "kind": "received"}
                | reference.receive(self.node, self.document, self.context, self.request)
            )
        if self.context.kind == "predict":
            facts, parts = reference.answer(
                self.node, self.document, self.context, self.request, self._kept, work, self.deadline
            )
            return Message({**head, "run": self.run_id, "kind": "outputs", **facts}, parts)
        spec, noisy, charged = self.spec(work), self._noisy(), 0
        if noisy is not None:
            spec = spec.model_copy(update={"private": noisy.steps})
            charged = private.charge(
                self.node.config, self.node.audit, self.document, noisy, project=self.context.project_digest,
                run=self.run_id, number=self.context.round, request=self.request.digest(),
            )  # fmt: skip
        started = time.monotonic()
        log = TrainingLog(self.node.config, self.document, self.context)
        try:
            result = self.result(work, spec, log)
            log.finished(result, work / "out")
        finally:
            log.ended()
        loss, metrics = result.get("loss"), result.get("metrics")
        if noisy is not None:
            loss = None  # it is of the training patients, and without noise
            try:
                private.require_charged(noisy, [str(uid) for uid in result.get("studies", [])])
            except RefusedError:
                shutil.rmtree(work / "out")  # or a later stage of secure aggregation would find it
                raise
            private.ended(self.node.config, charged)
        if metrics and result.get("worst_subgroup"):  # of cells large enough to be told
            metrics = {**metrics, "worst_subgroup": result["worst_subgroup"]}
        head |= {
            "run": self.run_id,
            "samples": int(result["samples"]),
            "seconds": round(time.monotonic() - started, 3),
            "steps": int(result.get("steps", 0)),
            "loss": loss,
            "metrics": metrics,
            "evaluated_on": result.get("evaluated_on"),
        }
        studies = [str(uid) for uid in result.get("studies", [])]
        self._record(studies, head)
        if self.context.kind == "evaluate":
            personal = {"personal": self._personal(work)} if self.document.personal.epochs else {}
            return Message({**head, **personal, "kind": "metrics"})
        if self.document.privacy.summed:  # the update stays here until it is masked, and so does the number of samples
            plain = {name: value for name, value in (metrics or {}).items() if name in ("auc", "dice", "loss")}
            return Message({**head, "kind": "update", "samples": 0, "steps": 0, "metrics": plain, "evaluated_on": None})
        return Message({**head, "kind": "update"}, self._parts(work))

    # -- what goes in -------------------------------------------------------------------------------------------------

    @property
    def algorithm(self) -> str:
        return self.document.algorithm.name

    @property
    def _kept(self) -> Path:
        """What an algorithm keeps at the site from round to round (its own layers or model, SCAFFOLD's control variate)."""
        return self.node.config.storage.federation / "kept" / self.context.project_digest[:16] / self.run_id

    def _folder(self) -> Path:
        whole = self.node.config.storage.federation / "work"
        mine = whole / f"{self.context.project_digest[:16]}-{self.run_id}-{self.context.round:04d}-{self.context.kind}"
        beside = mine.with_name(f"{mine.name.removesuffix('-vote')}-train")  # what the candidate is compared with
        for other in whole.glob("*") if whole.exists() else ():
            if other != mine and not (self.context.kind == "vote" and other == beside):
                shutil.rmtree(other, ignore_errors=True)
        mine.mkdir(parents=True, exist_ok=True)
        return mine

    def spec(self, work: Path) -> JobSpec:
        """The trainer's job: training, or an evaluation of the model in the request."""
        document, storage = self.document, self.node.config.storage
        model = weights.from_bytes(self.request.parts["model"]) if "model" in self.request.parts else {}
        weights.save(work / "given.safetensors", {**model, **self._own()})
        state = self._control(work)
        return JobSpec(
            kind="train" if self.context.kind == "train" else "evaluate",
            catalogue=storage.catalogue,
            dataset=storage.dataset,
            cache=storage.federation / "cache",
            network=document.network,
            task=document.task,
            cohort=document.cohort_rule.model_dump(mode="json"),
            contract=document.contract.of_study,
            split_salt=document.split.salt,
            evaluate_on="validation",
            evaluate_first=self.context.kind == "train",
            local=self._local(),
            seed=self._seed(),
            weights_in=work / "given.safetensors",
            initial_seed=self._unproven(model),
            state_in=state,
            reestimate_norm=self.algorithm == "fedbn",
            out=work / "out",
            device=self.node.config.federation.device,
            threads=int(os.environ.get("OMP_NUM_THREADS", "0")),
            processes=self._processes(),
        )

    def _unproven(self, model: weights.Weights) -> int | None:
        """The seed whose initial weights the round's model must be, unless the hospitals' votes carried it; None without votes.

        Raises RefusedError for a model that ballots do not carry.
        """
        document, terms = self.document, self.document.privacy.secure_aggregation
        if self.context.kind != "train" or not document.privacy.summed or not document.vote_share:
            return None
        ballots = self.request.parts.get("votes", b"")
        if not ballots:
            return document.seed
        require_proven(
            ballots, terms.keys, project=self.context.project_digest, run=self.run_id, candidate=base_of(model),
            fewest=document.min_sites, share=document.vote_share,
        )  # fmt: skip
        return None

    def _processes(self) -> int:
        """One for each GPU that this hospital gives a training; noise comes of one process alone."""
        if self.context.kind != "train" or self.document.privacy.dp is not None:
            return 1
        return gpu_queue.of_node(self.node.config).at_once(self.node.config.federation.gpus_per_job)

    def _noisy(self) -> private.Plan | None:
        """The round's noisy training, when the project asks for differential privacy."""
        if self.context.kind != "train" or self.document.privacy.dp is None:
            return None
        return private.plan(self.node.config, self.document)

    def _seed(self) -> int:
        """Another one for each round and site, the same after a restart."""
        seed = f"{self.document.seed}/{self.context.round}/{self.node.site}".encode()
        return int.from_bytes(hashlib.sha256(seed).digest()[:4])

    def _local(self) -> Any:
        local, args = self.document.local, self.document.algorithm.args
        known = self.algorithm if self.algorithm in ("fedprox", "scaffold", "fedbn") else "fedavg"
        lr = round_lr(local.lr, self.context.round, self.document.rounds, self.algorithm, args)
        return local.model_copy(update={"algorithm": known, "mu": float(args.get("mu", local.mu)), "lr": lr})

    def _own_names(self, model: Mapping[str, Any]) -> set[str]:
        """The arrays that never leave this site under the project's algorithm."""
        if self.algorithm == "fedbn":
            whole = self.document.algorithm.args.get("keep", "layers") == "layers"
            return weights.norm_layers(model) if whole else weights.norm_statistics(model)
        if self.algorithm == "fedper":
            heads = tuple(str(part) for part in self.document.algorithm.args.get("head", ("head.",)))
            return {name for name in model if name.startswith(heads)}
        return set(model) if self.algorithm == "ensemble" else set()

    def _own(self) -> weights.Weights:
        file = self._kept / "own.safetensors"
        return weights.load(file) if file.exists() else {}

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

    def result(self, work: Path, spec: JobSpec, log: TrainingLog) -> dict[str, Any]:
        """What the job left; a job that had ended before the site was killed is not done again."""
        self._log, text = log, spec.model_dump_json(indent=1)
        file, out = work / "spec.json", work / "out" / "result.json"
        if not (out.exists() and file.exists() and file.read_text() == text):
            file.write_text(text)
            self._train(file, spec.processes)
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def _train(self, spec: Path, gpus: int = 1) -> None:
        said, end = ["the trainer ended without a word"], time.monotonic() + self.deadline

        def listen(line: bytes) -> None:
            said.append(self._listen(line, said[-1]))

        with gpu_queue.of_node(self.node.config).turn(gpus, lambda: self._may_wait(end)) as env:
            code = self.node.trainer.run(spec, max(0.0, end - time.monotonic()), listen, env)
        if code != 0:
            late = f"it took longer than the {self.deadline:g} s of a round"
            raise RefusedError(f"{self.node.site} could not train: {late if code is None else said[-1]}")

    def _may_wait(self, end: float) -> None:
        """Raises RefusedError when a job that waits for a GPU need wait no longer."""
        self.node.report(activity="waiting for a GPU")
        if is_paused(self.node.config):
            raise RefusedError(f"{self.node.site} is paused by its administrator: the round goes on without it.")
        if not hours.allowed(self.node.config):
            raise RefusedError(hours.closed(self.node.config, self.node.site))
        if time.monotonic() > end:
            raise RefusedError(
                f"{self.node.site} had no GPU free in the {self.deadline:g} s of the round: other jobs hold them."
            )

    def _listen(self, line: bytes, said: str) -> str:
        try:
            facts = json.loads(line)
        except ValueError:
            return said
        self._log.heard(facts)
        drift = facts.get("warning") if facts.get("event") == "drift" else None
        self.node.report(activity=facts.get("event"), step=facts.get("step"), steps=facts.get("steps"), drift=drift)
        return str(facts.get("message", said)) if facts.get("event") == "error" else said

    # -- what comes out -----------------------------------------------------------------------------------------------

    def _parts(self, work: Path) -> dict[str, bytes]:
        """What leaves: the trained arrays but those that stay here, whole or as a compressed change."""
        trained, parts = weights.load(work / "out" / "model.safetensors"), dict[str, bytes]()
        own = self._own_names(trained)
        if own:
            self._keep("own", {name: trained[name] for name in own})
        leaving = {name: value for name, value in trained.items() if name not in own}
        if self.document.transfer.compression != "none" and leaving:
            parts["change"] = self._compressed(leaving)
        elif leaving:
            parts["model"] = weights.to_bytes(leaving)
        if self.algorithm == "scaffold":
            state = weights.load(work / "out" / "state.safetensors")
            self._keep("control", {name: v for name, v in state.items() if name.startswith("local.")})
            parts["extra"] = weights.to_bytes({name: v for name, v in state.items() if name.startswith("delta.")})
        return parts

    def _compressed(self, leaving: weights.Weights) -> bytes:
        """The change as the project wants it. What it leaves out is kept by round, so that a repeated job adds it once."""
        given = weights.from_bytes(self.request.parts["model"])
        earlier = [file for file in sorted(self._kept.glob("left-*.safetensors")) if file.stem < self._left()]
        before = weights.load(earlier[-1]) if earlier else None
        data, left_out = compress(leaving, given, self.document.transfer, self._seed(), before)
        if left_out:
            self._keep(self._left(), left_out)
            for file in earlier[:-1]:
                file.unlink()
        return data

    def _left(self) -> str:
        return f"left-{self.context.round:05d}"

    def _personal(self, work: Path) -> dict[str, Any]:
        """Train the final model further on this site's own patients; it stays in federation/personal, its figures go out."""
        settings, local = self.document.personal, self._local()
        home = self.node.config.storage.federation / "personal" / self.context.project_digest[:16]
        spec = self.spec(work).model_copy(
            update={
                "kind": "train",
                "local": local.model_copy(
                    update={
                        "algorithm": "fedavg",
                        "epochs": settings.epochs,
                        "steps": None,
                        "lr": settings.lr or self.document.local.lr / 10,
                    }
                ),
                "state_in": None,
                "out": home,
            }
        )
        file = work / "personal.json"
        file.write_text(spec.model_dump_json(indent=1))
        self._train(file)
        result = json.loads((home / "result.json").read_text())
        return {"metrics": result.get("metrics"), "loss": result.get("loss"), "samples": int(result["samples"])}

    def _keep(self, what: str, arrays: weights.Weights) -> None:
        self._kept.mkdir(parents=True, exist_ok=True)
        weights.save(self._kept / f"{what}.safetensors", arrays)

    def _record(self, studies: list[str], head: Mapping[str, Any]) -> None:
        context, metrics, commitment = self.context, head.get("metrics") or {}, dict[str, str]()
        if context.kind == "train":
            catalogue = Catalogue(self.node.config.storage.catalogue)
            try:
                catalogue.mark_used(context.project_digest, context.round, studies)
                commitment["used"] = usage_digest(catalogue.used_in(context.project_digest, context.round))
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
            **commitment,
        )
