"""Replaced keys introduce themselves, revoked ones are refused with the reason, and what was signed before still holds."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aggregator_client import messages, rotation, trust
from aggregator_client.approvals import Decision, decide, invitation_of, require_approved
from aggregator_client.coordinator import evidence, receipts, settings
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.coordinator.state import RunState, SiteRound
from aggregator_client.errors import FederationError, RefusedError, SignatureError, StateError
from aggregator_client.executor import Executor
from aggregator_client.invitations import accept
from aggregator_client.keys import RETIRED_DAYS, coordinator_keys, node_keys, tidy
from aggregator_client.ledger import Ledger
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.project import ProjectDocument, SignedProject, sign
from aggregator_client.rotation import Pair
from aggregator_client.sealing import Context
from dicom_node.audit import AuditLog
from dicom_node.cli import run as fedpacs
from dicom_node.config import NodeConfig, load_config
from dicom_node.setup import write_default_config

PROJECT: dict[str, Any] = {
    "name": "chest",
    "version": "1",
    "purpose": "Tell pneumonia from normal on chest X-rays.",
    "rounds": 2,
    "task": {"classes": ["normal", "viral"], "label": "finding"},
    "cohort": {},
    "network": {"name": "small_resnet"},
}


@dataclass
class Federation:
    """One coordinator and one hospital that have exchanged their first keys."""

    coordinator: CoordinatorConfig
    node: NodeConfig
    project: SignedProject
    executor: Executor

    def request(self, number: int = 1) -> bytes:
        keys, member = self.coordinator.keys(), self.coordinator.members.get("North")
        made = Message({"v": 1, "kind": "train", "run": "r", "round": number, "rounds": 2, "deadline_s": 60})
        return messages.wrap(
            made,
            Context(self.project.digest, number, COORDINATOR, "North", "train"),
            recipient_public=member.sealing_public,
            signer=keys.signing,
            introductions=keys.introductions,
        )

    def read(self, blob: bytes) -> str:
        """Why the hospital refused, read as the coordinator reads it."""
        keys = self.coordinator.keys()
        member = self.coordinator.members.introduced("North", messages.introductions(blob))
        _, answer = messages.unwrap(
            blob, private=keys.sealing, sender_public=member.signing_public, retired=keys.retired
        )
        return str(answer.header["reason"])

    def ask(self, blob: bytes | None = None) -> str:
        return self.read(self.executor.handle(blob or self.request()))


@pytest.fixture
def federation(tmp_path: Path) -> Any:
    coordinator = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    node = load_config(write_default_config(tmp_path / "north", name="North"))
    invitation = coordinator.invite("North")
    invitation.write(node.federation.invitation)
    coordinator.members.enrol(accept(invitation, node_keys(node.storage.keys)))
    who = {"name": coordinator.name, **coordinator.keys().public_base64()}
    project = sign(ProjectDocument.model_validate({**PROJECT, "coordinator": who}), coordinator.keys().signing)
    decide(node, project, Decision(project.digest, "approved", "Dr. Test", "pacs-admin"))
    with closing(AuditLog(node.storage.audit)) as audit, closing(Ledger(node.storage.federation)) as ledger:
        keys = node_keys(node.storage.keys)
        executor = Executor(node, invitation_of(node), keys, audit, ledger, lambda **facts: None, None)  # type: ignore[arg-type]
        yield Federation(coordinator, node, project, executor)


def genuine(reason: str) -> bool:
    """The request was proven and its project approved: only the data is missing."""
    return "do not fulfil the project's data contract" in reason


def test_replaced_keys_introduce_themselves_in_both_directions(federation: Federation) -> None:
    assert genuine(federation.ask())
    old_coordinator, old_node = federation.coordinator.keys(), node_keys(federation.node.storage.keys)
    for _ in range(2):  # twice, unseen by the other side in between
        assert fedpacs(["coordinator", "rotate", "--dir", str(federation.coordinator.root), "--json"]) == 0
        assert fedpacs(["federation", "rotate", "--config", str(federation.node.path), "--json"]) == 0
    new = federation.coordinator.keys()
    assert new.generation == 3 and new.fingerprint != old_coordinator.fingerprint
    assert genuine(federation.ask())  # project, approval and both signatures hold under the new keys
    assert trust.trust_of(federation.node, invitation_of(federation.node)).present == Pair(
        new.signing_public, new.sealing_public
    )
    member = federation.coordinator.members.get("North")
    present = node_keys(federation.node.storage.keys)
    assert (member.signing_public, member.fingerprint) == (present.signing_public, present.fingerprint)
    assert member.generations[0].signing == old_node.signing_public
    (learnt,) = federation.executor.audit.records("federation.keys_replaced")
    assert learnt.facts["fingerprint"] == new.fingerprint
    assert not list(federation.node.storage.keys.glob("signing.pem"))  # the replaced signing key is gone


def test_a_request_on_its_way_when_keys_are_replaced_still_opens(federation: Federation) -> None:
    early = federation.request()
    rotation.replace(federation.node.storage.keys, "North")
    assert genuine(federation.ask(early))
    late = time.time() + (RETIRED_DAYS + 1) * 86400
    tidy(federation.node.storage.keys, now=late)
    federation.executor.keys = node_keys(federation.node.storage.keys)
    assert "does not open" in federation.ask(early)


def test_a_replaced_key_signs_nothing_more(federation: Federation) -> None:
    by_the_old_key = federation.request()
    rotation.replace(federation.coordinator.storage.keys, COORDINATOR)
    assert genuine(federation.ask())
    assert "has replaced" in federation.ask(by_the_old_key)
    answer = federation.executor.handle(federation.request())
    before = federation.coordinator.members.get("North")
    rotation.replace(federation.node.storage.keys, "North")
    federation.ask()
    after = federation.coordinator.members.get("North")
    assert before.signing_public != after.signing_public
    keys = federation.coordinator.keys()
    with pytest.raises(SignatureError):
        messages.unwrap(answer, private=keys.sealing, sender_public=after.signing_public)


def test_nobody_else_introduces_keys(federation: Federation, tmp_path: Path) -> None:
    """A stranger's statement, one for another holder, a changed one and one that skips a generation are all refused."""
    stranger = rotation.replace(tmp_path / "stranger", COORDINATOR)
    own = rotation.replace(federation.coordinator.storage.keys, COORDINATOR)
    start = Pair(*[getattr(invitation_of(federation.node), f"{kind}_key") for kind in ("signing", "sealing")])
    assert rotation.extended(start, (), rotation.read(stranger.introductions), COORDINATOR) == []
    (link,) = rotation.read(own.introductions)
    with pytest.raises(SignatureError, match="do not follow"):
        rotation.extended(start, (), [link], "South")
    for name in ("signing_public", "sealing_public", "holder", "number", "at"):
        changed = json.loads(own.introductions[0])
        other = json.loads(stranger.introductions[0])
        changed[name] = other[name] if name.endswith("public") else (changed[name] + 1 if name != "holder" else "x")
        with pytest.raises(SignatureError, match="not signed by the old and the new key"):
            rotation.read([changed])
    third = rotation.replace(federation.coordinator.storage.keys, COORDINATOR)
    with pytest.raises(SignatureError, match="do not follow"):
        rotation.extended(start, (), [link, *rotation.read(stranger.introductions)], COORDINATOR)
    assert len(rotation.extended(start, (), rotation.read(third.introductions), COORDINATOR)) == 2


def test_a_revoked_hospital_is_refused_with_the_reason(federation: Federation) -> None:
    answer = federation.executor.handle(federation.request())
    rotation.replace(federation.node.storage.keys, "North")
    root = str(federation.coordinator.root)
    before, digest = federation.coordinator.members.revision()
    assert fedpacs(["coordinator", "revoke", "North", "--reason", "laptop stolen", "--dir", root, "--json"]) == 0
    revision, roster = federation.coordinator.members.revision()
    assert revision == before + 1 and roster != digest
    for said in (lambda: federation.read(answer), lambda: federation.coordinator.members.get("North")):
        with pytest.raises(RefusedError, match="laptop stolen"):
            said()
    invitation = federation.coordinator.invite("North")
    with pytest.raises(RefusedError, match="laptop stolen"):  # nor by an enrolment with them
        federation.coordinator.members.enrol(accept(invitation, node_keys(federation.node.storage.keys)))
    out = federation.node.root / "enrolment.json"
    argv = ["federation", "rotate", "--compromised", "--out", str(out), "--config", str(federation.node.path)]
    invitation.write(federation.node.federation.invitation)
    assert fedpacs(argv) == 0
    assert fedpacs(["coordinator", "enrol", str(out), "--dir", root]) == 0
    assert "approve the project again" in federation.ask()  # the old key's approvals went with it
    assert not node_keys(federation.node.storage.keys).retired


def test_a_revoked_coordinator_is_refused_with_the_reason(federation: Federation) -> None:
    request = federation.request()
    argv = ["federation", "revoke", "--reason", "server broken into", "--config", str(federation.node.path)]
    assert fedpacs(argv) == 0
    assert "server broken into" in federation.ask(request)
    rotation.replace(federation.coordinator.storage.keys, COORDINATOR)
    assert "server broken into" in federation.ask()  # nor does the revoked key introduce another
    with pytest.raises(RefusedError, match="server broken into"):
        require_approved(federation.node, federation.project.digest)
    rotation.replace(federation.coordinator.storage.keys, COORDINATOR, compromised=True)
    federation.coordinator.invite("North").write(federation.node.federation.invitation)
    federation.executor.invitation = invitation_of(federation.node)
    assert "server broken into" in federation.ask()  # the coordinator is proven again, the old project is not
    who = {"name": "University", **federation.coordinator.keys().public_base64()}
    document = ProjectDocument.model_validate({**PROJECT, "coordinator": who})
    federation.project = sign(document, federation.coordinator.keys().signing)
    decide(federation.node, federation.project, Decision(federation.project.digest, "approved", "Dr. Test", "admin"))
    assert genuine(federation.ask())


def test_old_evidence_and_evidence_across_replacements_verify(federation: Federation, tmp_path: Path) -> None:
    folder = federation.coordinator.run_folder(federation.project.digest)
    folder.mkdir(parents=True)
    (folder / "project.json").write_bytes(federation.project.file_bytes())
    with closing(RunState(folder)) as state:
        state.start(federation.project.digest, "chest", "fedavg", 2)
        for number in (0, 1):
            state.open_round(number)
            state.close_round(number, {})
        state.put(SiteRound(1, "North", "accepted", cases=10))
    receipts.keep(folder, federation.executor.handle(federation.request()))
    before = evidence.export(federation.coordinator, folder, tmp_path / "before.zip")
    rotation.replace(federation.node.storage.keys, "North")
    rotation.replace(federation.coordinator.storage.keys, COORDINATOR)
    receipts.keep(folder, answer := federation.executor.handle(federation.request(2)))
    federation.read(answer)
    across = evidence.export(federation.coordinator, folder, tmp_path / "across.zip")
    federation.coordinator.members.revoke("North", "left")
    gone = evidence.export(federation.coordinator, folder, tmp_path / "gone.zip")
    assert evidence.verify(tmp_path / "before.zip") == before
    assert (before.receipts, across.receipts, gone.receipts) == (1, 2, 2)
    assert before.fingerprint == across.fingerprint  # the keys the project names, which people compare


def _die_at(name: str, count: int) -> None:
    """In a child: the `count`-th call of os.`name` is the last thing it does."""
    real: Callable[..., Any] = getattr(os, name)
    left = [count]

    def deadly(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, deadly)


@pytest.mark.parametrize("moment", ["rename", "unlink", "fsync"])
def test_a_kill_in_the_middle_leaves_working_keys(tmp_path: Path, moment: str) -> None:
    """Killed at each call of one kind in turn: the keys are those before or those after, whole, and the next try works."""
    for count in range(1, 12):
        folder = tmp_path / f"{moment}-{count}"
        before = coordinator_keys(folder)
        child = os.fork()
        if child == 0:
            _die_at(moment, count)
            rotation.replace(folder, "coordinator")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        now = coordinator_keys(folder)
        assert (now.fingerprint == before.fingerprint) == (now.generation == 1)
        if now.generation == 2:
            (link,) = rotation.read(now.introductions)
            assert link.after == Pair(now.signing_public, now.sealing_public)
        again = rotation.replace(folder, "coordinator")
        assert again.generation == now.generation + 1 and len(rotation.lineage(again)) == again.generation
        if code == 0:
            assert count > 1  # it was killed at least once
            break


def test_lost_keys_are_not_made_anew_and_a_copy_brings_them_back(federation: Federation, tmp_path: Path) -> None:
    import shutil

    rotation.replace(federation.coordinator.storage.keys, COORDINATOR)
    keys, copy = federation.coordinator.storage.keys, tmp_path / "copy"
    fingerprint = federation.coordinator.keys().fingerprint
    shutil.copytree(keys, copy)
    (keys / "generations" / "0002" / "signing.pem").unlink()
    with pytest.raises(FederationError, match="missing"):
        federation.coordinator.keys()
    with pytest.raises(StateError, match="restore it from your copy"):
        coordinator_keys(keys)
    shutil.rmtree(keys)
    shutil.copytree(copy, keys)
    assert federation.coordinator.keys().fingerprint == fingerprint and genuine(federation.ask())
    # a hospital that lost its keys is a stranger until it enrols anew
    shutil.rmtree(federation.node.storage.keys)
    invitation = federation.coordinator.invite("North")
    with pytest.raises(RefusedError, match="other keys"):
        federation.coordinator.members.enrol(accept(invitation, node_keys(federation.node.storage.keys)))


def test_every_key_file_is_its_owners_alone(federation: Federation) -> None:
    rotation.replace(federation.node.storage.keys, "North")
    for file in federation.node.storage.keys.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_project_that_names_the_old_key_asks_first(federation: Federation) -> None:
    coordinator, keys = federation.coordinator, node_keys(federation.node.storage.keys)
    sites = {"North": keys.public_base64()["signing_public"]}
    for name in ("South", "East"):
        sites[name] = node_keys(federation.node.root / name).public_base64()["signing_public"]
    values = {**PROJECT, "name": "summed", "min_sites": 3, "privacy": {"mode": "secure_aggregation"}}
    values["privacy"]["secure_aggregation"] = {"sites": sites}
    who = {"name": coordinator.name, **coordinator.keys().public_base64()}
    project = sign(ProjectDocument.model_validate({**values, "coordinator": who}), coordinator.keys().signing)
    decide(federation.node, project, Decision(project.digest, "approved", "Dr. Test", "pacs-admin"))
    argv = ["federation", "rotate", "--config", str(federation.node.path)]
    assert fedpacs(argv) == 5
    assert fedpacs([*argv, "--anyway"]) == 0
