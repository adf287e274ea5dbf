"""`fedpacs node run`: one line when ready, a status file, one node a folder, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from dicom_node.audit import AuditLog
from dicom_node.config import load_config
from dicom_node.daemon import process_specs
from dicom_node.setup import write_default_config
from tests.interop.node_process import ROOT, RUN, RunningNode, alive, wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., RunningNode]]:
    made: list[RunningNode] = []

    def make(name: str = "node", **settings: str) -> RunningNode:
        made.append(RunningNode(tmp_path / name, **settings))
        return made[-1]

    yield make
    for each in made:
        each.kill()


@pytest.fixture(scope="module")
def occupant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that runs while others are refused."""
    one = RunningNode(tmp_path_factory.mktemp("occupant") / "node")
    one.start()
    yield one
    one.kill()


def test_ready_means_ready_and_stop_means_stopped(node: Callable[..., RunningNode]) -> None:
    one = node()
    line = one.start()
    dicom, web = one.config.dicom.port, one.config.web.port
    assert line == f"fedpacs node test ready: AE TESTNODE port {dicom}, console http://127.0.0.1:{web}/"
    with one.client() as client:
        assert client.get("/health").json() == {"status": "ok", "node": "test"}
        wait_for(lambda: client.get("/status").json()["processes"])
        assert client.get("/status").json()["processes"].keys() == {"receiver-1", "worker-1", "web"}
    pids = one.pids()
    assert len(pids) == 3 and all(alive(pid) for pid in pids)
    assert one.stop() == 0
    assert not any(alive(pid) for pid in pids)
    assert one.status()["stopped"] is True and one.status()["ready"] is False
    kinds = [r.kind for r in AuditLog(one.config.storage.audit).records()]
    assert kinds[0] == "node.started" and kinds[-2:] == ["node.stopped", "audit.checkpoint"]


def test_ctrl_c_and_kill_9_leave_no_process(node: Callable[..., RunningNode]) -> None:
    one = node()
    one.start()
    wait_for(lambda: len(one.pids()) == 3)
    pids = one.pids()
    assert one.process is not None
    os.killpg(one.process.pid, signal.SIGINT)  # as a terminal does
    assert one.process.wait(timeout=20) == 0
    assert not any(alive(pid) for pid in pids)
    one.start()
    wait_for(lambda: len(one.pids()) == 3 and set(one.pids()).isdisjoint(pids))
    pids = one.pids()
    one.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids), 5)


def test_a_killed_child_is_started_again(node: Callable[..., RunningNode]) -> None:
    one = node()
    one.start()
    wait_for(lambda: len(one.pids()) == 3)
    victims = one.pids()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(one.pids()) == 3 and set(one.pids()).isdisjoint(victims))
    with one.client() as client:
        wait_for(lambda: _answers(client))
        assert client.get("/status").json()["processes"]["worker-1"]["restarts"] == 1


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status").status_code == 200
    except httpx.TransportError:
        return False


def test_one_folder_has_one_node(occupant: RunningNode) -> None:
    one = occupant
    other = subprocess.run([*RUN, str(one.config.path)], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert other.returncode == 5 and "running already" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.parametrize("group", ["dicom", "web"])
def test_a_port_in_use_is_one_sentence_and_an_exit_code(
    occupant: RunningNode, node: Callable[..., RunningNode], group: str
) -> None:
    one, other = occupant, node("other")
    taken = getattr(one.config, group).port
    text = other.config.path.read_text().replace(f"port = {getattr(other.config, group).port}", f"port = {taken}")
    other.config.path.write_text(text)
    result = subprocess.run([*RUN, str(other.config.path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert f"[{group}] port = {taken}" in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_child_that_cannot_work_ends_the_start_with_its_sentence(node: Callable[..., RunningNode]) -> None:
    one = node()
    (one.config.storage.keys / "vault.key").write_text("not a key")
    result = subprocess.run([*RUN, str(one.config.path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert "vault.key" in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


def test_what_a_configuration_makes_run(tmp_path: Path) -> None:
    path = write_default_config(tmp_path / "node")
    text = path.read_text()
    names = [spec.name for spec in process_specs(load_config(path))]
    assert names == ["receiver-1", "receiver-2", "worker-1", "web"]
    text = text.replace('coordinator = ""', 'coordinator = "https://c.example:9092"')
    path.write_text(text.replace('url = ""', 'url = "http://127.0.0.1:8042"'))
    config = load_config(path)
    specs = process_specs(config)
    assert [s.name for s in specs][-2:] == ["orthanc-reader", "federation"]
    assert specs[-1].argv[1:] == ("-m", "aggregator_client.site", "--config", str(path))
    for spec in specs:
        left = spec.stderr is not None and config.storage.spool in spec.stderr.parents
        assert left is (spec.name != "federation"), "what may quote an identified value stays left of the wall"
