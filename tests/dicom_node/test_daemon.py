"""`fedpacs node run`: one line when ready, a status file, one node a folder, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.daemon import process_specs
from dicom_node.setup import write_default_config
from tests.interop.orthanc_process import free_port

ROOT = Path(__file__).resolve().parents[2]
RUN = (sys.executable, "-c", "from dicom_node.cli import main; main()", "node", "run", "--config")


class RunningNode:
    """A node run as its command does, in a process of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        if not (folder / "node.toml").exists():
            write_default_config(folder, ae_title="TESTNODE", port=free_port(), http_port=free_port(), name="test")
            text = (folder / "node.toml").read_text()
            for key, value in {"quiet_seconds": "0.5", "processes": "1", **settings}.items():
                lines = text.splitlines()
                text = "\n".join(f"{key} = {value}" if x.lstrip("# ").startswith(f"{key} =") else x for x in lines)
            (folder / "node.toml").write_text(text)
        self.config: NodeConfig = load_config(folder / "node.toml")
        self.process: subprocess.Popen[str] | None = None

    def start(self, wait: float = 40) -> str:
        """Start and wait for the ready line, which is returned."""
        self.process = subprocess.Popen(
            [*RUN, str(self.config.path)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, error = self.process.communicate(timeout=wait)
            raise AssertionError(f"the node ended: {error} {self.crashes()}")
        return line.strip()

    def crashes(self) -> str:
        files = [*self.config.storage.spool.glob("crash/*.stderr"), *self.config.storage.logs.glob("*.stderr")]
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in files if p.stat().st_size)

    def status(self) -> dict[str, object]:
        return json.loads((self.config.storage.run / "status.json").read_text())  # type: ignore[no-any-return]

    def pids(self) -> list[int]:
        return [p["pid"] for p in self.status()["processes"].values() if p["pid"]]  # type: ignore[attr-defined]

    def client(self) -> httpx.Client:
        token = (self.config.storage.keys / "api.token").read_text().strip()
        url = f"http://127.0.0.1:{self.config.web.port}"
        return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        try:
            return self.process.wait(timeout=20)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
            self.process = None


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., RunningNode]]:
    made: list[RunningNode] = []

    def make(name: str = "node", **settings: str) -> RunningNode:
        made.append(RunningNode(tmp_path / name, **settings))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


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
    assert kinds[0] == "node.started" and kinds[-1] == "node.stopped"


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


def test_one_folder_has_one_node(node: Callable[..., RunningNode]) -> None:
    one = node()
    one.start()
    other = subprocess.run([*RUN, str(one.config.path)], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert other.returncode == 5 and "running already" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.parametrize("group", ["dicom", "web"])
def test_a_port_in_use_is_one_sentence_and_an_exit_code(node: Callable[..., RunningNode], group: str) -> None:
    one, other = node(), node("other")
    one.start()
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
