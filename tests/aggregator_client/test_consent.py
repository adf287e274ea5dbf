"""A hospital answers a request only with its standing approval, and a withdrawal during training stops the update."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aggregator_client import executor, messages
from aggregator_client.approvals import Decision, decide, invitation_of
from aggregator_client.contract import require_ready
from aggregator_client.coordinator import settings
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.executor import Executor
from aggregator_client.keys import node_keys
from aggregator_client.ledger import Ledger
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.project import ProjectDocument, SignedProject, sign
from aggregator_client.sealing import Context
from aggregator_client.trainer_process import TrainerProcess
from dicom_node.audit import AuditLog
from dicom_node.cli import run
from dicom_node.config import NodeConfig, load_config
from dicom_node.setup import write_default_config


@dataclass
class Hospital:
    config: NodeConfig
    coordinator: CoordinatorConfig
    executor: Executor

    def project(self, **changes: Any) -> SignedProject:
        who = {"name": self.coordinator.name, **self.coordinator.keys().public_base64()}
        values = {
            "name": "chest",
            "version": "1",
            "purpose": "Tell pneumonia from normal on chest X-rays.",
            "rounds": 3,
            "task": {"classes": ["normal", "viral"], "label": "finding"},
            "cohort": {},
            "network": {"name": "small_resnet"},
        }
        document = ProjectDocument.model_validate(values | {"coordinator": who} | changes)
        return sign(document, self.coordinator.keys().signing)

    def say(self, project: SignedProject, state: str = "approved") -> None:
        decide(self.config, project, Decision(project.digest, state, "Dr A", ""))

    def ask(self, project: SignedProject, number: int = 1) -> Message:
        """What the hospital answers to a request for a round of training."""
        context = Context(project.digest, number, COORDINATOR, "North", "train")
        header = {"v": messages.VERSION, "kind": "train", "round": number, "run": "r1", "name": project.document.name}
        keys = node_keys(self.config.storage.keys)
        blob = messages.wrap(
            Message(header), context, recipient_public=keys.sealing_public, signer=self.coordinator.keys().signing
        )
        own = self.coordinator.keys()
        _, answer = messages.unwrap(self.executor.handle(blob), private=own.sealing, sender_public=keys.signing_public)
        return answer

    def left(self) -> list[str]:
        with closing(AuditLog(self.config.storage.audit, readonly=True)) as log:
            return [str(record.facts["what"]) for record in log.records("egress")]


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    coordinator = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    file = write_default_config(tmp_path / "node")
    coordinator.invite("North").write(tmp_path / "i.json")
    assert (
        run(["federation", "join", str(tmp_path / "i.json"), "--config", str(file), "--out", str(tmp_path / "e")]) == 0
    )
    config = load_config(file)
    made = Executor(
        config, invitation_of(config), node_keys(config.storage.keys), AuditLog(config.storage.audit),
        Ledger(config.storage.federation), lambda **facts: None, TrainerProcess(config.storage.logs / "trainer.log"),
    )  # fmt: skip
    return Hospital(config, coordinator, made)


def _trains(monkeypatch: pytest.MonkeyPatch, meanwhile: Any = lambda: None) -> None:
    """Stands in for the trainer process, which has its own tests."""

    def train(job: Any, head: dict[str, Any]) -> Message:
        meanwhile()
        return Message({**head, "kind": "update", "run": "r1"}, {"model": b"weights"})

    monkeypatch.setattr(executor.LocalJob, "run", train)
    monkeypatch.setattr(executor, "require_ready", lambda config, draft: None)


def test_an_approved_project_is_trained(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    _trains(monkeypatch)
    project = hospital.project()
    hospital.say(project)
    assert hospital.ask(project).header["kind"] == "update"
    assert hospital.left() == ["update"]


def test_an_unapproved_a_rejected_and_a_changed_project_are_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    _trains(monkeypatch)
    first, changed = hospital.project(), hospital.project(rounds=300)
    assert "never approved" in hospital.ask(first).header["reason"]
    hospital.say(first, "rejected")
    assert "rejected" in hospital.ask(first).header["reason"]
    hospital.say(first)
    assert "was changed after this hospital approved it" in hospital.ask(changed).header["reason"]
    assert hospital.left() == ["refused"] * 3


def test_a_withdrawal_during_training_stops_the_update(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    project = hospital.project()
    hospital.say(project)
    _trains(monkeypatch, lambda: hospital.say(project, "withdrawn"))
    answer = hospital.ask(project)
    assert answer.header["kind"] == "refused" and "withdrawn" in answer.header["reason"] and not answer.parts
    assert hospital.left() == ["refused"]


def test_a_hospital_without_the_data_refuses_and_names_no_figure_of_its_own(hospital: Hospital) -> None:
    project = hospital.project(cohort={"min_patients": 20})
    hospital.say(project)
    assert executor.require_ready is require_ready
    reason = hospital.ask(project).header["reason"]
    assert "data contract" in reason and not any(character.isdigit() for character in reason)


def test_rounds_beyond_the_approved_ones_are_refused(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    _trains(monkeypatch)
    project = hospital.project()
    hospital.say(project)
    assert "none of the 3 rounds" in hospital.ask(project, number=5).header["reason"]
