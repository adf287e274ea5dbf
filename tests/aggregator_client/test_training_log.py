"""What training writes for the console is what the console, the REST interface and the terminal read."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from aggregator_client.sealing import Context
from aggregator_client.training_log import TrainingLog
from dicom_node.audit import AuditLog
from dicom_node.cli import run as fedpacs
from dicom_node.config import NodeConfig, load_config
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from dicom_node.web import work
from tests.aggregator_client import test_evidence
from tests.aggregator_client.test_evidence import SignedProject

config, signed, folder = test_evidence.config, test_evidence.signed, test_evidence.folder
RESULT = {
    "samples": 27, "seconds": 1.5, "loss": 0.4, "metrics": {"auc": 0.8, "studies": ["2.25.1"]}, "studies": ["2.25.1"],
    "subgroups": {"sex": {"F": {"cases": None, "metric": None}}}, "worst_subgroup": None,
    "drift": {"warning": "The images have moved."},
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    made = load_config(write_default_config(tmp_path / "node", name="North"))
    Spool(made.storage.spool).close()
    return made


def log_of(node: NodeConfig, signed: SignedProject, number: int) -> TrainingLog:
    return TrainingLog(node, signed.document, Context(signed.digest, number, "coordinator", "North", "train"))


def test_a_job_is_seen_while_it_runs_and_its_round_afterwards(
    node: NodeConfig, signed: SignedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(node, signed, 2)
    log.heard({"event": "start", "device": "cpu"})
    for step in (1, 10, 20):
        log._written = -1e9  # a second has gone by
        log.heard({"event": "step", "step": step, "steps": 40, "loss": 1 / step})
    log.heard({"event": "drift", "warning": "The images have moved."})
    job = work.now(node)["job"]
    assert (job["round"], job["step"], job["steps"], job["curve"][-1]) == (2, 20, 40, [20, 0.05])
    assert 0 <= job["left_s"] < 60
    assert work.drift(node) == {signed.digest[:16]: "The images have moved."}, "already while it runs"
    assert fedpacs(["node", "status", "--config", str(node.path)]) == 0
    said = capsys.readouterr().out
    assert (
        "Training chest: round 2" in said
        and "DRIFT: The images have moved." in said
        and "Left this hospital: 0 messages" in said
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"weights")
    (out / "model.json").write_text("{}")
    log.finished(RESULT, out)
    log.ended()
    assert work.now(node)["job"] is None
    (done,) = work.rounds(node, signed.digest)
    assert (done["round"], done["loss"], done["metrics"], done["drift"]) == (
        2,
        0.4,
        {"auc": 0.8},
        "The images have moved.",
    )
    assert done["subgroups"] == RESULT["subgroups"] and "2.25.1" not in json.dumps(done), "no study is named"
    assert (node.storage.federation / "models" / signed.digest[:16] / "model.safetensors").read_bytes() == b"weights"


def test_a_repeated_round_counts_once_and_a_torn_line_is_left_out(
    node: NodeConfig, signed: SignedProject, tmp_path: Path
) -> None:
    for number, loss in ((1, 0.9), (2, 0.5), (2, 0.4)):
        log_of(node, signed, number).finished({**RESULT, "loss": loss, "drift": None}, tmp_path)
    with (node.storage.federation / "training" / f"{signed.digest[:16]}.jsonl").open("a") as file:
        file.write('{"round": 3, "ki')
    assert [(one["round"], one["loss"]) for one in work.rounds(node, signed.digest)] == [(1, 0.9), (2, 0.4)]
    assert work.drift(node) == {}
    assert work.project_left(work.rounds(node, signed.digest), 6) == 4 * 1.5


def test_a_job_of_a_process_that_was_killed_is_not_shown(node: NodeConfig, signed: SignedProject) -> None:
    log = log_of(node, signed, 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    log._facts["pid"] = child.pid
    log.ended()
    log._facts["state"] = "working"
    log._write()
    assert work.now(node)["job"] is None


def test_a_long_curve_keeps_its_ends_and_stays_short(node: NodeConfig, signed: SignedProject) -> None:
    log = log_of(node, signed, 1)
    for step in range(1, 2001):
        log.heard({"event": "step", "step": step, "steps": 2000, "loss": 0.5})
    curve = log._facts["curve"]
    assert curve[0] == [1, 0.5] and curve[-1] == [2000, 0.5] and len(curve) <= 201


@pytest.mark.parametrize(
    ("line", "card"),
    [
        ("NVIDIA H200, 37, 2048, 143771, 41",
         {"name": "NVIDIA H200", "busy": 37, "memory_mb": 2048, "memory_total_mb": 143771, "celsius": 41}),
        ("Card, [N/A], [N/A], [N/A], 50",
         {"name": "Card", "busy": None, "memory_mb": None, "memory_total_mb": None, "celsius": 50}),
        ("NVIDIA-SMI has failed", None),
    ],
)  # fmt: skip
def test_a_graphics_card_is_read_as_nvidia_smi_tells_it(line: str, card: dict[str, object] | None) -> None:
    assert work.parse_card(line) == card


def test_the_terminal_watches_runs_with_the_worst_hospital_and_group(
    config: test_evidence.CoordinatorConfig, folder: Path
) -> None:
    """On a terminal the tables are redrawn in place until Ctrl-C."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", "from dicom_node.cli import main; main()", "coordinator", "status", "--watch"]
    child = subprocess.Popen(
        [*argv, "--dir", str(config.root)], stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"COLUMNS": "200", "LINES": "60", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    said, end = b"", time.monotonic() + 60
    try:
        while not (b"0.6100 sex F" in said and b"0.7000 South" in said):
            assert time.monotonic() < end, said[-2000:]
            said += os.read(ours, 65536)
    finally:
        child.terminate()
        child.wait(30)
        os.close(ours)


def test_what_left_is_told_by_project_and_newest_first(node: NodeConfig) -> None:
    from dicom_node.web.view import NodeView

    with closing(AuditLog(node.storage.audit)) as audit:
        for number, size in ((1, 10), (2, 20), (3, 30)):
            privacy = (
                {"mode": "secure_aggregation", "epsilon": 1.25, "delta": 1e-5} if number == 3 else {"mode": "sealed"}
            )
            audit.append(
                "egress",
                what="update",
                project="ab" * 32 if number < 3 else "cd" * 32,
                round=number,
                bytes=size,
                privacy=privacy,
            )
    view = NodeView(node)
    left, total = view.egress(), view.egress_total()
    view.close()
    assert [one["round"] for one in left] == [3, 2, 1] and [one["round"] for one in view_page(node)] == [2]
    assert (left[0]["spent"], left[1]["spent"]) == ("secure aggregation, ε 1.25 (δ 1e-05)", "sealed")
    assert total == {
        "messages": 3,
        "bytes": 60,
        "projects": {"ab" * 32: {"messages": 2, "bytes": 30}, "cd" * 32: {"messages": 1, "bytes": 30}},
    }


def view_page(node: NodeConfig) -> list[dict[str, object]]:
    from dicom_node.web.view import NodeView

    view = NodeView(node)
    try:
        return view.egress(1, 1)
    finally:
        view.close()


def test_what_left_shows_the_privacy_that_was_spent(node: NodeConfig) -> None:
    from starlette.testclient import TestClient

    from dicom_node.records.budget import Figures, PrivacyBudget, Training
    from dicom_node.web.app import create_app

    project = "ab" * 32
    with closing(PrivacyBudget(node.storage.catalogue)) as budget:
        training = Training(project, "r1", 1, "request", "patient", 1.0, 0.1, 10)
        budget.spend(training, ["P1", "P2"], lambda past: Figures(1.25, 1e-5, 1.5, 1e-5, "prv"))
    with closing(AuditLog(node.storage.audit)) as audit:
        audit.append("round.budget", project=project, round=1, epsilon=1.25, delta=1e-5)
        audit.append("egress", what="update", project=project, round=1, bytes=10, privacy={"mode": "sealed"})
    with TestClient(create_app(node), base_url="http://127.0.0.1:8080") as client:
        token = node.web.token_file.read_text().strip()
        page = client.get("/pages/left", headers={"Authorization": f"Bearer {token}"}).text
    assert "sealed, ε 1.25 so far (δ 1e-05)" in page
    assert "1.250" in page and "1.500" in page and "a patient" in page, "by project, and over all of them"
