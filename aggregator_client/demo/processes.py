"""The demo's child processes: started in groups of their own, watched, quoted when they fail, and always stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from dicom_node.errors import NodeError, UnreachableError
from dicom_node.supervise import start_child

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""One arithmetic thread a process (several hospitals share this machine's cores), and nothing that phones home."""


class DemoError(NodeError):
    """A step of the demo failed; the message holds what the failing process said last."""


class StalledError(UnreachableError):
    """Something the demo waits for has stopped moving."""


@dataclass
class Child:
    """One long-running process and the file its stdout and stderr go to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    also: tuple[Path, ...] = ()
    """Other logs of the same process family, newest words first when it is quoted."""
    passing: bool = False
    """Whether it is to end by itself, with code 0."""
    trouble: Callable[[], str] = lambda: ""
    """What is known to be wrong inside it, told beside its last words."""

    def last_words(self) -> str:
        """The last non-empty line this process wrote anywhere, and its known trouble, for error messages."""
        trouble = self.trouble()
        return f"{self._last_line()} ({trouble})" if trouble else self._last_line()

    def _last_line(self) -> str:
        files = [file for file in (self.log, *self._also_files()) if file.is_file() and file.stat().st_size]
        for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
            line = last_line(file)
            if line:
                return line
        return "nothing"

    def _also_files(self) -> list[Path]:
        return [file for folder in self.also if folder.is_dir() for file in folder.iterdir() if file.is_file()]


@dataclass
class Children:
    """A context that stops every child on the way out: normal end, exception, Ctrl-C and SIGTERM alike."""

    environment: Mapping[str, str] = field(default_factory=dict)
    running: list[Child] = field(default_factory=list)
    grace_seconds: float = 15.0

    def __enter__(self) -> Children:
        self._stack = ExitStack()
        # kill and a closed terminal take the same way out as Ctrl-C
        for signum in (signal.SIGTERM, signal.SIGHUP):
            previous = signal.signal(signum, _interrupt)
            self._stack.callback(signal.signal, signum, previous)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._stack.close()

    def start(
        self, name: str, argv: Sequence[str], log: Path, also: Sequence[Path] = (), passing: bool = False
    ) -> Child:
        """Start `argv` in a session of its own; it dies with this process even when that is killed with SIGKILL."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = start_child(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=self._environment()
            )
        child = Child(name, process, log, tuple(also), passing)
        self.running.append(child)
        return child

    def run(self, argv: Sequence[str], timeout: float = 120.0) -> str:
        """Run a command to its end and return its stdout; its last words become the error when it fails."""
        try:
            done = subprocess.run(
                list(argv), capture_output=True, text=True, timeout=timeout, check=False, env=self._environment()
            )
        except subprocess.TimeoutExpired:
            raise StalledError(f"`{_shown(argv)}` has not ended within {timeout:.0f} s") from None
        if done.returncode != 0:
            words = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise DemoError(f"`{_shown(argv)}` ended with code {done.returncode}: {words[-1] if words else 'no word'}")
        return done.stdout

    def run_json(self, argv: Sequence[str], timeout: float = 120.0) -> Any:
        """Like `run`, for a command with --json."""
        said = self.run(argv, timeout)
        try:
            return json.loads(said)
        except ValueError:
            raise DemoError(f"`{_shown(argv)}` was to print JSON and printed {said[:80]!r}") from None

    def check(self) -> None:
        """Raise DemoError naming a child that has ended though it should run; a passing one may end with code 0."""
        for child in self.running:
            code = child.process.poll()
            if code is not None and not (child.passing and code == 0):
                raise DemoError(f"{child.name} ended with code {code}; it last said: {child.last_words()}")

    def wait(
        self,
        what: str,
        moved: Callable[[], tuple[bool, object]],
        stall_seconds: float,
        suspects: Sequence[Child] = (),
        every: float = 0.4,
    ) -> None:
        """Poll `moved() -> (done, state)` until done; StalledError when `state` has not changed for `stall_seconds`."""
        last, since = object(), time.monotonic()
        while True:
            done, state = moved()
            if done:
                return
            self.check()
            now = time.monotonic()
            if state != last:
                last, since = state, now
            elif now - since > stall_seconds:
                words = "; ".join(f"{child.name} last said: {child.last_words()}" for child in suspects)
                raise StalledError(f"{what} has not moved for {stall_seconds:.0f} s{'; ' if words else ''}{words}")
            time.sleep(every)

    def finish(self, child: Child, seconds: float) -> None:
        """Wait for a passing child to end with code 0. Errors: StalledError, or DemoError with its last words."""
        self.wait(
            f"{child.name} (limit {seconds:.0f} s)", lambda: (child.process.poll() == 0, None), seconds, [child], 0.1
        )
        if child in self.running:
            self.running.remove(child)

    def end(self, child: Child) -> None:
        """Stop one child now (SIGTERM to its group, SIGKILL after the grace)."""
        if child in self.running:
            self.running.remove(child)
            _stop([child], self.grace_seconds)

    def stop(self) -> None:
        """Stop all, last started first; a second Ctrl-C while waiting kills at once."""
        children, self.running = self.running[::-1], []
        _stop(children, self.grace_seconds)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **QUIET, **self.environment}


def fedpacs(*arguments: object) -> list[str]:
    """The command line that runs `fedpacs ARGUMENTS` with this very installation."""
    beside = Path(sys.executable).with_name("fedpacs")
    head = [str(beside)] if beside.exists() else [sys.executable, "-c", "from dicom_node.cli import main; main()"]
    return [*head, *map(str, arguments)]


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports that are free on loopback at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def last_line(file: Path, limit: int = 300) -> str:
    """The last line of `file` that says something; of a JSON log line only its event and error."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 16_384))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines()]
    said = next((line for line in reversed(lines) if line), "")
    if said.startswith("{"):
        try:
            facts = json.loads(said)
            said = " ".join(str(facts[key]) for key in ("event", "reason", "error") if facts.get(key))
        except ValueError:
            pass
    return said[:limit]


def _shown(argv: Sequence[str]) -> str:
    words = [Path(word).name if index == 0 else word for index, word in enumerate(argv)]
    return " ".join(words if len(words) < 9 else [*words[:8], "…"])


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stop(children: Sequence[Child], grace: float) -> None:
    for child in children:
        _signal_group(child, signal.SIGTERM)
    deadline = time.monotonic() + grace
    try:
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
    except KeyboardInterrupt:
        pass  # asked twice: no more grace
    for child in children:
        _signal_group(child, signal.SIGKILL)
        child.process.wait()


def _signal_group(child: Child, signum: int) -> None:
    # The group outlives its leader while any member runs; its id cannot be reused before we reap the leader.
    if child.process.returncode is None:
        try:
            os.killpg(child.process.pid, signum)
        except ProcessLookupError:
            pass
