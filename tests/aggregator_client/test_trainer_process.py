"""A job forked from the warm host gives what a fresh process gives, ends on time, and never outlives its site."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator_client.trainer_process import TrainerProcess
from tests.trainer.side import build, spec, write_spec

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerProcess]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = TrainerProcess(tmp_path / "logs" / "trainer.log")
    yield made
    made.close()


def until(truth: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def endless(folder: Path) -> Path:
    """A job that waits for ever: its spec is a pipe nobody writes to."""
    os.mkfifo(folder / "spec.json")
    return folder / "spec.json"


def test_a_forked_job_gives_what_a_fresh_process_gives(trainer: TrainerProcess, tmp_path: Path) -> None:
    side = build(tmp_path / "side")
    fresh = write_spec(tmp_path / "fresh.json", spec(side, tmp_path / "fresh"))
    done = subprocess.run([sys.executable, "-m", "trainer.job", str(fresh)], env=ENV, capture_output=True, check=True)
    host = None
    for name in ("first", "second"):
        said: list[bytes] = []
        forked = write_spec(tmp_path / f"{name}.json", spec(side, tmp_path / name))
        assert trainer.run(forked, 120, said.append) == 0
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            tmp_path / "fresh/model.safetensors"
        ).read_bytes()
        events = [json.loads(line)["event"] for line in said]
        assert events[0] == "start" and events[-1] == "done" and done.stdout.count(b"\n") >= 4
        assert trainer._host is not None and host in (None, trainer._host.pid), "the host serves job after job"
        host = trainer._host.pid


def test_a_job_that_fails_tells_why_and_the_next_one_runs(trainer: TrainerProcess, tmp_path: Path) -> None:
    for _ in range(2):
        said: list[bytes] = []
        assert trainer.run(tmp_path / "none.json", 60, said.append) not in (0, None)
        assert json.loads(said[-1])["event"] == "error"
    assert "trainer:" in (tmp_path / "logs" / "trainer.log").read_text()


def test_a_job_that_takes_too_long_is_ended(trainer: TrainerProcess, tmp_path: Path) -> None:
    began = time.monotonic()
    assert trainer.run(endless(tmp_path), 0.5, lambda line: None) is None
    assert time.monotonic() - began < 60
    assert trainer._host is not None and not children(trainer._host.pid)
    assert trainer.run(tmp_path / "none.json", 60, lambda line: None) not in (0, None), "the host goes on"


def test_a_killed_job_is_told_as_one(trainer: TrainerProcess, tmp_path: Path) -> None:
    trainer.warm()
    assert trainer._host is not None
    host = trainer._host.pid
    killer = subprocess.Popen([sys.executable, "-c", _KILL_CHILD_OF, str(host)])
    assert trainer.run(endless(tmp_path), 120, lambda line: None) == -signal.SIGKILL
    assert killer.wait(30) == 0 and alive(host)


def test_a_killed_host_takes_its_job_along_and_is_replaced(trainer: TrainerProcess, tmp_path: Path) -> None:
    trainer.warm()
    assert trainer._host is not None
    host = trainer._host.pid
    killer = subprocess.Popen([sys.executable, "-c", _KILL_CHILD_OF, str(host), "parent"], stdout=subprocess.PIPE)
    assert trainer.run(endless(tmp_path), 120, lambda line: None) == -9
    job = int(killer.communicate(timeout=30)[0])
    until(lambda: not alive(job))
    assert trainer.run(tmp_path / "none.json", 60, lambda line: None) not in (0, None)


def test_nothing_outlives_a_killed_site(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from aggregator_client.trainer_process import TrainerProcess
        TrainerProcess(Path(sys.argv[1]) / "trainer.log").run(Path(sys.argv[1]) / "spec.json", 300, print)
    """
    endless(tmp_path)
    site = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], env=ENV)
    try:
        until(lambda: bool(children(site.pid)) and bool(children(children(site.pid)[0])))
        host = children(site.pid)[0]
        job = children(host)[0]
    finally:
        site.kill()
        site.wait()
    until(lambda: not alive(host) and not alive(job))


_KILL_CHILD_OF = """
import os, signal, sys, time
from pathlib import Path
host = sys.argv[1]
while not (found := Path(f"/proc/{host}/task/{host}/children").read_text().split()):
    time.sleep(0.05)
print(found[0], flush=True)
os.kill(int(host) if len(sys.argv) > 2 else int(found[0]), signal.SIGKILL)
"""
