"""A small federation for tests: real keys, seals and signatures, sites that compute a known update instead of training."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator_client import messages
from aggregator_client.errors import UnreachableError
from aggregator_client.invitations import Enrolment
from aggregator_client.keys import CoordinatorKeys, NodeKeys, coordinator_keys, node_keys
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.project import ProjectDocument, SignedProject, sign
from aggregator_client.roster import Member
from aggregator_client.sealing import Context
from trainer import weights

NETWORK = {"name": "small_resnet", "args": {"in_channels": 1, "classes": 2, "widths": [2, 2], "norm": "batch"}}


def project(keys: CoordinatorKeys, **changes: Any) -> SignedProject:
    """A signed project of two classes; `changes` replace its settings."""
    values: dict[str, Any] = {
        "name": "test",
        "version": "1",
        "purpose": "A project that only tests ever see.",
        "rounds": 3,
        "min_sites": 2,
        "deadline_s": 30.0,
        "task": {"name": "classification", "classes": ["a", "b"], "label": "finding", "size": 16},
        "cohort": {"label": "finding", "classes": ["a", "b"]},
        "network": NETWORK,
        "coordinator": {
            "name": "coordinator under test",
            "signing_public": base64.b64encode(keys.signing_public).decode(),
            "sealing_public": base64.b64encode(keys.sealing_public).decode(),
        },
    }
    return sign(ProjectDocument.model_validate(values | changes), keys.signing)


def member(name: str, keys: NodeKeys) -> Member:
    enrolment = Enrolment(
        site=name,
        token="t" * 24,
        signing_public=base64.b64encode(keys.signing_public).decode(),
        sealing_public=base64.b64encode(keys.sealing_public).decode(),
        flower_public=keys.flower_public.decode(),
    )
    return Member(enrolment=enrolment.signed(keys.signing), enrolled_at=0.0)


def shift(site: str, number: int) -> float:
    """What the stand-in training adds to every weight: known, and another for each site and round."""
    return round(0.001 * number * (1 + sum(site.encode()) % 7), 6)


def samples(site: str) -> int:
    return 10 + sum(site.encode()) % 13


@dataclass
class Site:
    """A stand-in for a hospital. `answer(site, context, request) -> Message | None` replaces its usual update."""

    name: str
    keys: NodeKeys
    coordinator: CoordinatorKeys
    link: Any
    answer: Callable[..., Message | None] | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> Site:
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def end(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join(timeout=20)
        self.link.close()

    def _serve(self) -> None:
        while not self.stop.is_set():
            try:
                delivery = self.link.next(0.05)
                if delivery is not None and (reply := self.handle(delivery.payload)) is not None:
                    self.link.reply(delivery, reply)
            except UnreachableError:
                self.stop.wait(0.2)

    def handle(self, payload: bytes) -> bytes | None:
        context, request = messages.unwrap(
            payload, private=self.keys.sealing, sender_public=self.coordinator.signing_public
        )
        self.asked.append((context.kind, context.round))
        made = self.answer(self, context, request) if self.answer else self.usual(context, request)
        return None if made is None else self.seal(context, made)

    def seal(self, context: Context, made: Message, number: int | None = None) -> bytes:
        kind = made.header["kind"]
        back = replace(context, round=number or context.round, sender=self.name, recipient=COORDINATOR, kind=kind)
        return messages.wrap(made, back, recipient_public=self.coordinator.sealing_public, signer=self.keys.signing)

    def usual(self, context: Context, request: Message, **changes: Any) -> Message:
        header = {
            "v": messages.VERSION,
            "kind": "update" if context.kind == "train" else "metrics",
            "request": request.digest(),
            "run": request.header["run"],
            "samples": samples(self.name),
            "seconds": 0.1,
            "loss": 0.5,
            "metrics": {"auc": 0.75},
        }
        if context.kind != "train":
            return Message(header | changes)
        model = weights.from_bytes(request.parts["model"])
        trained = {
            name: value + np.asarray(shift(self.name, context.round) if value.dtype.kind == "f" else 1, value.dtype)
            for name, value in model.items()
        }
        return Message(header | changes, {"model": weights.to_bytes(trained)})


def expected_model(start: dict[str, np.ndarray], rounds: int, sites: list[str]) -> dict[str, np.ndarray]:
    """What FedAvg must make of those sites: the definition, computed in one line a round."""
    model = start
    for number in range(1, rounds + 1):
        total = sum(samples(site) for site in sites)
        step = sum(shift(site, number) * samples(site) / total for site in sites)
        model = {n: v + np.asarray(step if v.dtype.kind == "f" else 1, v.dtype) for n, v in model.items()}
    return model


def keys_of(root: Path, *sites: str) -> tuple[CoordinatorKeys, dict[str, NodeKeys]]:
    return coordinator_keys(root / "coordinator-keys"), {site: node_keys(root / f"keys-{site}") for site in sites}
