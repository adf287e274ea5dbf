"""A site's end of split learning: its half of the network, and the round under way.

Activations, their gradients and the loss leave, and after each round the site's own layers; images and labels stay. The round
lives in memory: a node that is started anew says so, and the coordinator begins the round again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.messages import Message
from aggregator_client.node import Node
from aggregator_client.project import ProjectDocument
from aggregator_client.schedule import round_lr
from aggregator_client.sealing import Context
from dicom_node.records import Catalogue
from trainer import networks, weights
from trainer.cohort import load_cohort
from trainer.local.split import SplitSite, batches_of, half_of
from trainer.spec import JobSpec

LOST = "the round under way was lost here (the node was started anew): begin it again"


class Turn:
    """One site's way through its data in one round."""

    def __init__(self, site: SplitSite, batches: list[np.ndarray]) -> None:
        self.site, self._left, self._losses = site, batches, list[float]()

    def step(self, what: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(header, arrays) of the answer. Raises MessageError, WeightsError for what is not the next step."""
        if what == "forward":
            self.site.adopt(dict(arrays))
            return {}, self._next()
        if what == "features" and "features" in arrays:
            gradient, loss = self.site.loss(arrays["features"])
            self._losses.append(loss)
            return {"loss": loss}, {"gradient": gradient}
        if what == "backward" and "gradient" in arrays:
            self.site.backward(arrays["gradient"])
            return {}, self._next()
        if what == "collect" and not self._left:
            return {"samples": len(self.site.samples)}, self.site.weights()
        raise MessageError("The step is not split learning's next one: it is not taken.")

    @property
    def loss(self) -> float:
        """The mean over the batches so far."""
        return sum(self._losses) / max(len(self._losses), 1)

    def _next(self) -> dict[str, np.ndarray]:
        return {"activations": self.site.forward(self._left.pop(0))} if self._left else {}


class SplitTurns:
    """What a node answers to split learning's requests; one round at a time."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._turn: Turn | None = None
        self._studies: list[str] = []
        self._answered: tuple[str, Message] = ("", Message({}))
        self._began = 0.0

    def answer(
        self, node: Node, document: ProjectDocument, context: Context, request: Message, head: dict[str, Any]
    ) -> Message:
        """The answer to one step. Raises RefusedError when the round is not under way here, MessageError, TrainerError."""
        digest = request.digest()
        if self._answered[0] == digest:
            return self._answered[1]
        what = context.kind.removeprefix("split.")
        header = request.header
        key = (context.project_digest, header.get("run"), context.round, header.get("attempt"))
        arrays = weights.from_bytes(request.parts["arrays"]) if "arrays" in request.parts else {}
        if what == "forward":
            self._key, self._turn = key, self._begin(node, document, context)
        if self._turn is None or key != self._key:
            raise RefusedError(LOST)
        told, out = self._turn.step(what, arrays)
        made = Message({**head, **told}, {"arrays": weights.to_bytes(out)} if out else {})
        if what == "collect":
            self._record(node, context, int(told["samples"]))
        self._answered = (digest, made)
        return made

    def _begin(self, node: Node, document: ProjectDocument, context: Context) -> Turn:
        """This site's half of the network and its batches; equal for equal round and site."""
        storage, task = node.config.storage, document.task
        self._began = time.monotonic()
        spec = JobSpec(
            kind="train",
            catalogue=storage.catalogue,
            dataset=storage.dataset,
            cache=storage.federation / "cache",
            network=document.network,
            task=task,
            cohort=document.cohort_rule.model_dump(mode="json"),
            contract=document.contract.of_study,
            split_salt=document.split.salt,
            local=document.local,
            out=storage.federation / "work",
        )
        loaded = load_cohort(spec)
        samples, self._studies = loaded.samples["train"], loaded.studies["train"]
        lr = round_lr(document.local.lr, context.round, document.rounds, "split", document.algorithm.args)
        local = document.local.model_copy(update={"lr": lr})
        told = f"{document.seed}/{context.round}/{node.site}".encode()
        seed = int.from_bytes(hashlib.sha256(told).digest()[:4])
        network = networks.build(document.network.name, document.network.args)
        return Turn(half_of(network, samples, local, len(task.classes), seed), batches_of(samples, local, seed))

    def _record(self, node: Node, context: Context, samples: int) -> None:
        catalogue = Catalogue(node.config.storage.catalogue)
        try:
            catalogue.mark_used(context.project_digest, context.round, self._studies)
        finally:
            catalogue.close()
        assert self._turn is not None
        node.audit.append(
            "round.trained",
            project=context.project_digest,
            round=context.round,
            samples=samples,
            studies=len(self._studies),
            seconds=round(time.monotonic() - self._began, 3),
            loss=self._turn.loss,
            auc=None,
        )
