"""The supervisor: restarts with back-off, stops cleanly, and leaves no process behind even when it is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node.supervise import BackOff, ProcessSpec, Supervisor

ROOT = Path(__file__).resolve().parents[2]
FAST = BackOff(first=0.05, most=0.4, healthy=60)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def python(code: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-Sc", textwrap.dedent(code), *args)


@pytest.fixture
def supervised() -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*specs: ProcessSpec, **kwargs: object) -> Supervisor:
        made.append(Supervisor(specs, backoff=FAST, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def test_a_child_that_ends_is_started_again_later_and_later(supervised: Callable[..., Supervisor]) -> None:
    exits: list[int] = []
    code = "raise SystemExit(4)"
    supervisor = supervised(ProcessSpec("short", python(code)), on_exit=lambda child, code: exits.append(code))
    starts: list[float] = []  # by the supervisor's own clock: how long an interpreter takes to start is not its pause
    deadline = time.monotonic() + 60.0
    while len(starts) < 5 and time.monotonic() < deadline:
        supervisor.step()
        child = supervisor.children["short"]
        if child.process is not None and child.started_at not in starts:
            starts.append(child.started_at)
        time.sleep(0.005)
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    pauses = [supervisor.backoff.delay(failures) for failures in range(1, 5)]
    assert len(starts) == 5 and all(gap >= pause for gap, pause in zip(gaps, pauses, strict=True))
    assert pauses == sorted(pauses) and pauses[0] < pauses[-1], "the pause grows"
    assert supervisor.backoff.delay(1000) < 1.0, "but stays bounded"
    assert set(exits) == {4}
    assert supervisor.status()["short"]["restarts"] == len(exits)


def test_stop_gives_a_child_time_to_end_by_itself_and_kills_one_that_will_not(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    tidy = tmp_path / "tidy"
    polite = f"""
        import signal, sys, time
        def end(*_):
            open({str(tidy)!r}, "w").write("done"); sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        open({str(tidy)!r} + ".up", "w")
        time.sleep(60)"""
    deaf = f"""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(tidy)!r} + ".deaf", "w")
        time.sleep(60)"""
    supervisor = supervised(
        ProcessSpec("polite", python(polite), grace_seconds=0.5), ProcessSpec("deaf", python(deaf), grace_seconds=0.5)
    )
    supervisor.step()
    wait_for(lambda: Path(f"{tidy}.up").exists() and Path(f"{tidy}.deaf").exists())
    pids = [c.process.pid for c in supervisor.children.values() if c.process]
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 3
    assert tidy.read_text() == "done"
    assert not any(alive(pid) for pid in pids)


FAMILY = """
    import subprocess, sys, time
    # a grandchild that knows nothing of parent-death signals and ignores SIGTERM
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    g = subprocess.Popen([sys.executable, "-Sc", deaf])
    open(sys.argv[1], "w").write(str(g.pid))
    time.sleep(60)"""

SUPERVISOR = """
    import sys
    from dicom_node.supervise import ProcessSpec, Supervisor
    argv = (sys.executable, "-Sc", sys.argv[1], sys.argv[2])
    s = Supervisor([ProcessSpec("family", argv, grace_seconds=1.0)])
    def tick():
        p = s.children["family"].process
        if p: open(sys.argv[2] + ".child", "w").write(str(p.pid))
    s.run(tick, 0.05)"""


def pid_in(file: Path) -> int:
    """The process id in a file that may be about to be written."""
    found: list[int] = []
    wait_for(lambda: file.exists() and (text := file.read_text()) and (found.append(int(text)) or True))
    return found[0]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_supervisor_however_it_ends(tmp_path: Path, signum: int) -> None:
    pidfile = tmp_path / "pid"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR), textwrap.dedent(FAMILY), str(pidfile)], cwd=ROOT
    )
    try:
        family = [pid_in(pidfile), pid_in(Path(f"{pidfile}.child"))]
        assert all(alive(pid) for pid in family)
        os.kill(supervisor.pid, signum)
        supervisor.wait(timeout=60)
        wait_for(lambda: not any(alive(pid) for pid in family))
    finally:
        supervisor.kill()
        supervisor.wait()


def test_what_a_dead_child_leaves_in_its_group_is_killed_before_the_next_start(
    supervised: Callable[..., Supervisor], tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    supervisor = supervised(ProcessSpec("family", python(FAMILY, str(pidfile))))
    supervisor.step()
    wait_for(lambda: pidfile.exists() and pidfile.read_text())
    grandchild = int(pidfile.read_text())
    child = supervisor.children["family"].process
    assert child is not None
    child.kill()
    wait_for(lambda: (supervisor.step(), supervisor.children["family"].restarts)[1])
    wait_for(lambda: not alive(grandchild))


def test_a_killed_reaper_is_replaced_and_told_everything(supervised: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = supervised(ProcessSpec("sleep", python("import time; time.sleep(60)")))
    supervisor.step()
    first = supervisor._reaper
    assert first is not None
    first.kill()
    first.wait()
    supervisor.step()
    assert supervisor._reaper is not None and supervisor._reaper.pid != first.pid
    assert supervisor.children["sleep"].running


def test_a_program_that_cannot_be_started_is_told_and_tried_again(
    supervised: Callable[..., Supervisor], capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor = supervised(ProcessSpec("ghost", ("/nonexistent/program",)))
    supervisor.step()
    assert "cannot start ghost" in capfd.readouterr().err
    assert supervisor.status()["ghost"]["last_exit"] == 127


def test_what_a_child_says_on_stderr_is_kept(supervised: Callable[..., Supervisor], tmp_path: Path) -> None:
    said = tmp_path / "crash" / "noisy.stderr"
    supervisor = supervised(ProcessSpec("noisy", python("import sys; sys.stderr.write('broken'); sys.exit(1)"), said))
    wait_for(lambda: (supervisor.step(), supervisor.children["noisy"].restarts)[1])
    assert "broken" in said.read_text()
    assert said.stat().st_mode & 0o077 == 0
