"""Nothing runs without this hospital's own, signed, still standing approval of exactly this document."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aggregator_client import approvals
from aggregator_client.approvals import Decision, decide, require_approved
from aggregator_client.coordinator import settings
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import DocumentError, RefusedError, SignatureError
from aggregator_client.project import ProjectDocument, SignedProject, sign
from dicom_node.audit import AuditLog
from dicom_node.cli import run
from dicom_node.config import NodeConfig, load_config
from dicom_node.setup import write_default_config

PROJECT = {
    "name": "chest",
    "version": "1",
    "purpose": "Tell pneumonia from normal on chest X-rays.",
    "rounds": 3,
    "task": {"classes": ["normal", "viral"], "label": "finding"},
    "cohort": {},
    "network": {"name": "small_resnet", "args": {"in_channels": 1, "classes": 2}},
}


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorConfig:
    return settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)


@pytest.fixture
def node(tmp_path: Path, coordinator: CoordinatorConfig) -> NodeConfig:
    file = write_default_config(tmp_path / "node", name="North")
    coordinator.invite("North").write(tmp_path / "invitation.json")
    assert (
        run(
            [
                "federation",
                "join",
                str(tmp_path / "invitation.json"),
                "--config",
                str(file),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    return load_config(file)


def signed(coordinator: CoordinatorConfig, **changes: Any) -> SignedProject:
    who = {"name": coordinator.name, **coordinator.keys().public_base64()}
    document = ProjectDocument.model_validate({**PROJECT, "coordinator": who, **changes})
    return sign(document, coordinator.keys().signing)


def say(node: NodeConfig, project: SignedProject, state: str = "approved") -> None:
    decide(node, project, Decision(project.digest, state, "Dr A", "data protection officer", "read it"))


def kinds(node: NodeConfig) -> list[str]:
    with closing(AuditLog(node.storage.audit, readonly=True)) as log:
        assert log.verify().ok
        return [record.kind for record in log.records()]


def test_approved_is_usable_and_audited(node: NodeConfig, coordinator: CoordinatorConfig) -> None:
    project = signed(coordinator)
    say(node, project)
    assert require_approved(node, project.digest).document == project.document
    assert kinds(node) == ["federation.joined", "project.offered", "project.approved"]


def test_not_offered_offered_rejected_suspended_and_withdrawn_are_refused(
    node: NodeConfig, coordinator: CoordinatorConfig
) -> None:
    project = signed(coordinator)
    approvals.offer(node, project)
    with pytest.raises(RefusedError, match="is offered here"):
        require_approved(node, project.digest)
    for state in ("rejected", "approved", "suspended", "approved", "withdrawn"):
        say(node, project, state)
        if state == "approved":
            require_approved(node, project.digest)
            continue
        with pytest.raises(RefusedError, match=f"is {state} here") as caught:
            require_approved(node, project.digest)
        assert caught.value.exit_code == 5
    with pytest.raises(RefusedError, match="never approved"):
        require_approved(node, "ab" * 32)


def test_a_changed_project_is_refused_with_a_sentence_that_says_so_until_approved_again(
    node: NodeConfig, coordinator: CoordinatorConfig
) -> None:
    first, second = signed(coordinator), signed(coordinator, rounds=300)
    say(node, first)
    with pytest.raises(RefusedError, match="was changed after this hospital approved it") as caught:
        require_approved(node, second.digest, "chest")
    assert first.digest[:12] in str(caught.value) and second.digest[:12] in str(caught.value)
    assert approvals.differences(node, second) == (first.digest, ["rounds: 3 → 300"])
    say(node, second)
    require_approved(node, second.digest)


def test_another_coordinators_project_is_refused(node: NodeConfig, tmp_path: Path) -> None:
    other = settings.create(tmp_path / "evil", name="University", host="127.0.0.1", port=9443)
    project = signed(other)
    with pytest.raises(RefusedError, match="other keys"):
        say(node, project)
    with pytest.raises(RefusedError):
        require_approved(node, project.digest)
    assert "project.approved" not in kinds(node)


def test_without_a_joined_federation_nothing_is_approved(tmp_path: Path, coordinator: CoordinatorConfig) -> None:
    alone = load_config(write_default_config(tmp_path / "alone"))
    with pytest.raises(RefusedError, match="has not joined"):
        say(alone, signed(coordinator))


def test_an_approval_lapses_when_the_hospital_joins_another_federation(
    node: NodeConfig, coordinator: CoordinatorConfig, tmp_path: Path
) -> None:
    project = signed(coordinator)
    say(node, project)
    other = settings.create(tmp_path / "other", name="Other", host="127.0.0.1", port=9443)
    other.invite("North").write(tmp_path / "i2.json")
    join = ["federation", "join", str(tmp_path / "i2.json"), "--config", str(node.path), "--out", str(tmp_path / "e2")]
    assert run(join) == 5
    require_approved(node, project.digest)
    assert run([*join, "--replace"]) == 0
    with pytest.raises(RefusedError, match="other keys"):
        require_approved(node, project.digest)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE projects SET state = 'approved'",
        "UPDATE projects SET state = 'approved', signature = (SELECT signature FROM projects WHERE version = '1')",
        "UPDATE projects SET state = 'approved', signature = 'x'",
    ],
)
def test_a_row_changed_in_the_database_is_no_approval(
    node: NodeConfig, coordinator: CoordinatorConfig, change: str
) -> None:
    say(node, signed(coordinator))
    second = signed(coordinator, version="2")
    say(node, second, "rejected")
    with closing(sqlite3.connect(node.storage.catalogue)) as db, db:
        db.execute(change)
    with pytest.raises(SignatureError, match="not signed by this node"):
        require_approved(node, second.digest)


def test_a_document_changed_in_the_database_is_refused(node: NodeConfig, coordinator: CoordinatorConfig) -> None:
    first, second = signed(coordinator), signed(coordinator, rounds=300)
    say(node, first)
    with closing(sqlite3.connect(node.storage.catalogue)) as db, db:
        db.execute("UPDATE projects SET document = ?", (second.file_bytes(),))
    with pytest.raises(SignatureError, match="not the one that was approved"):
        require_approved(node, first.digest)


def test_a_decision_needs_a_name(node: NodeConfig, coordinator: CoordinatorConfig) -> None:
    project = signed(coordinator)
    with pytest.raises(DocumentError, match="--by"):
        decide(node, project, Decision(project.digest, "approved", "  ", ""))
    assert kinds(node) == ["federation.joined"]


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_shows_approves_lists_and_withdraws(
    node: NodeConfig, coordinator: CoordinatorConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, project = tmp_path / "project.json", signed(coordinator)
    file.write_bytes(project.file_bytes())
    config = ["--config", str(node.path)]
    assert run(["project", "show", str(file), *config, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["digest"] == project.digest and shown["state"] == "offered" and shown["coordinator_problem"] == ""
    assert shown["cohort"]["patients"] == 0 and shown["cohort"]["faults"]
    assert run(["project", "approve", project.digest[:12], "--by", "Dr A", *config]) == 0
    require_approved(node, project.digest)
    capsys.readouterr()
    assert run(["project", "list", *config, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["projects"]
    assert (listed["digest"], listed["state"], listed["decided_by"]) == (project.digest, "approved", "Dr A")
    file.write_bytes(signed(coordinator, rounds=4).file_bytes())
    assert run(["project", "show", str(file), *config]) == 0
    assert "CHANGED since the version approved here" in capsys.readouterr().out
    assert run(["project", "withdraw", project.digest, "--by", "Dr A", *config]) == 0
    with pytest.raises(RefusedError):
        require_approved(node, project.digest)


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [(None, 4, "does not exist"), (b"{}", 4, "not a signed project"), ("tampered", 8, "not signed by")],
)
def test_bad_files_are_one_sentence_and_a_code(
    node: NodeConfig,
    coordinator: CoordinatorConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    code: int,
    says: str,
) -> None:
    file = tmp_path / "project.json"
    if content == "tampered":
        content = signed(coordinator).file_bytes().replace(b'"rounds": 3', b'"rounds": 4')
    if content is not None:
        file.write_bytes(content)
    capsys.readouterr()
    for verb in (["show"], ["approve", "--by", "Dr A"]):
        assert run(["project", verb[0], str(file), *verb[1:], "--config", str(node.path)]) == code
        told = capsys.readouterr().err
        assert told.startswith("fedpacs: ") and says in told and told.count("\n") == 1


def test_draft_to_signed_file_by_command(
    coordinator: CoordinatorConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, out = tmp_path / "draft.toml", tmp_path / "project.json"
    assert run(["project", "new", str(draft), "--name", "lungs"]) == 0
    assert run(["project", "show", str(draft)]) == 0
    assert "DRAFT" in capsys.readouterr().out
    assert run(["project", "sign", str(draft), "--coordinator", str(coordinator.root), "--out", str(out)]) == 0
    assert SignedProject.read(out).document.name == "lungs"
    draft.write_text(draft.read_text().replace('name = "small_resnet"', 'name = "no_such_network"'))
    assert run(["project", "sign", str(draft), "--coordinator", str(coordinator.root), "--out", str(out)]) == 5
    assert "no_such_network" in capsys.readouterr().err


def test_join_refuses_another_fingerprint_and_fills_in_node_toml(
    coordinator: CoordinatorConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_default_config(tmp_path / "n")
    coordinator.invite("North").write(tmp_path / "i.json")
    join = ["federation", "join", str(tmp_path / "i.json"), "--config", str(file), "--out", str(tmp_path / "e.json")]
    assert run([*join, "--expect", "0000-0000-0000-0000-0000"]) == 5
    assert not (tmp_path / "e.json").exists() and not load_config(file).federation.invitation.exists()
    assert run([*join, "--expect", coordinator.keys().fingerprint]) == 0
    config = load_config(file)
    assert config.federation.coordinator == coordinator.url and config.federation.invitation.exists()
    assert "# " in file.read_text()  # its comments stay
    capsys.readouterr()
    assert run(["federation", "show", "--config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["site"] == "North"
