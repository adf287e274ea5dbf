"""The demo leaves no process behind and quotes the one that failed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aggregator_client.demo.processes import Children, DemoError, StalledError, free_ports, last_line
from aggregator_client.demo.progress import PlainBoard, SiteLine, human_bytes

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
# A child that starts a grandchild in its own group and ignores SIGTERM.
IGNORES_SIGTERM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(grandchild.pid, flush=True)
time.sleep(600)
"""
STUBBORN = [sys.executable, "-c", IGNORES_SIGTERM]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(path: Path) -> str:
    for _ in range(100):
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{path} stayed empty")


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_no_child_or_grandchild_outlives_the_context(tmp_path: Path, error: type[BaseException] | None) -> None:
    pids: list[int] = []

    def work() -> None:
        with Children(grace_seconds=1.0) as children:
            quick = children.start("quick", SLEEP, tmp_path / "quick.log")
            stubborn = children.start("stubborn", STUBBORN, tmp_path / "stubborn.log")
            pids.extend([quick.process.pid, stubborn.process.pid, int(wait_for(tmp_path / "stubborn.log"))])
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    time.sleep(0.2)
    assert len(pids) == 3 and not [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_children_die_with_the_demo_whatever_ends_it(tmp_path: Path, signum: int) -> None:
    script = (
        "import sys, time; from pathlib import Path; from aggregator_client.demo.processes import Children\n"
        "with Children() as children:\n"
        f"    child = children.start('one', {SLEEP!r}, Path({str(tmp_path / 'one.log')!r}))\n"
        "    print(child.process.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(tmp_path / "one.log")
    os.kill(parent.pid, signum)
    parent.wait(timeout=20)
    for _ in range(50):
        if not alive(child):
            return
        time.sleep(0.1)
    raise AssertionError(f"child {child} outlived the demo ended with {signum}")


def test_a_child_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Children() as children:
        children.start(
            "the node", [sys.executable, "-c", "print('cannot bind'); raise SystemExit(7)"], tmp_path / "n.log"
        )
        with pytest.raises(DemoError, match="the node ended with code 7; it last said: cannot bind"):
            children.wait("the start", lambda: (False, time.monotonic()), stall_seconds=30)


def test_a_stall_is_named_with_what_the_suspect_said(tmp_path: Path) -> None:
    with Children(grace_seconds=1.0) as children:
        child = children.start("worker", SLEEP, tmp_path / "w.log")
        wait_for(tmp_path / "w.log")
        with pytest.raises(StalledError, match="de-identification has not moved for 1 s; worker last said: ready"):
            children.wait("de-identification", lambda: (False, 12), stall_seconds=1, suspects=[child], every=0.1)


def test_a_failing_command_becomes_one_sentence() -> None:
    argv = [sys.executable, "-c", "import sys; print('fedpacs: no such folder', file=sys.stderr); sys.exit(4)"]
    with Children() as children, pytest.raises(DemoError, match=r"ended with code 4: fedpacs: no such folder"):
        children.run(argv)


def test_json_log_lines_are_quoted_by_their_event(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text('{"event": "start"}\n{"event": "refused", "reason": "digest differs", "at": 1}\n\n')
    assert last_line(log) == "refused digest differs"


def test_plain_progress_says_what_changed_and_no_more_often_than_asked() -> None:
    out = io.StringIO()
    board = PlainBoard([SiteLine("Lindenau", total=10), SiteLine("Aozora", total=5)], out, every=60)
    board.refresh(force=True)
    assert out.getvalue() == ""
    board.lines[0].received = 3
    board.refresh()
    board.lines[0].received = 9
    board.refresh()
    board.phase("next")
    said = [line.split(" s  ")[1] for line in out.getvalue().splitlines()]
    assert said == [
        "Lindenau: received 3/10, de-identified 0",
        "Lindenau: received 9/10, de-identified 0",
        "next",
    ]


def test_ports_differ_and_bytes_are_readable() -> None:
    assert len(set(free_ports(20))) == 20
    assert [human_bytes(n) for n in (0, 999, 1536, 5_700_000)] == ["0 B", "999 B", "1.5 kB", "5.7 MB"]
