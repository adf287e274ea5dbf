"""Child processes that are watched, restarted with back-off, and never outlive the one who started them.

Three nets hold that promise, each for the case the one before cannot see:

    stop()                     SIGTERM to each child's process group, a grace period, SIGKILL to what is left
    PR_SET_PDEATHSIG           the kernel kills a child the moment its supervisor dies, `kill -9` included (prctl(2))
    the reaper                 a tiny process that reads a pipe; when the supervisor's end closes, it kills every
                               process group it was told of, so that grandchildren which know nothing of us die too

Each child leads a session and a process group of its own: a Ctrl-C at the terminal reaches the supervisor alone, which
then stops the children in order. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_STDERR_LIMIT = 4 << 20

# Reads "+PGID" and "-PGID" lines; at end of file the supervisor is gone, so every group still on the list is killed.
_REAPER = """
import os, signal, sys
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(s, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
"""


def die_with_parent(signum: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Ask the kernel to send `signum` to this process when the thread that started it ends.

    Call it first thing in a child; `start_child` does. The flag survives exec, not fork: a grandchild needs its own.
    SIGKILL by default: everything a node must keep is durable before anyone is told so, and only SIGKILL cannot hang.
    """
    parent = os.getppid() if parent is None else parent
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent:  # the parent died before the flag was set
        os.kill(os.getpid(), signum)


def start_child(argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen` for a child that leads its own session and dies with the calling thread."""
    parent = os.getpid()
    return subprocess.Popen(
        list(argv), start_new_session=True, preexec_fn=lambda: die_with_parent(parent=parent), **popen
    )


@dataclass(frozen=True)
class ProcessSpec:
    """One child: how it is started, and where what it says on stderr goes (appended, kept under 4 MiB)."""

    name: str
    argv: tuple[str, ...]
    stderr: Path | None = None
    env: Mapping[str, str] | None = None
    grace_seconds: float = 10.0


@dataclass
class Child:
    """A supervised process, its history, and when it may be started again (`time.monotonic` seconds)."""

    spec: ProcessSpec
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restarts: int = 0
    failures_in_a_row: int = 0
    last_exit: int | None = None
    next_start: float = 0.0

    @property
    def running(self) -> bool:
        return self.process is not None


@dataclass(frozen=True)
class BackOff:
    """Delay before a restart: `first` doubled for each failure in a row, at most `most`; forgiven after `healthy`."""

    first: float = 0.5
    most: float = 30.0
    healthy: float = 60.0

    def delay(self, failures: int) -> float:
        return min(self.most, self.first * 2 ** min(max(failures - 1, 0), 16))


@dataclass
class Supervisor:
    """Starts the children of `specs`, restarts any that ends, and stops them all when told.

    `run(tick)` owns the main thread: it must be the one that starts children, because the kernel's parent-death signal
    follows the starting *thread*.
    """

    specs: Sequence[ProcessSpec]
    backoff: BackOff = field(default_factory=BackOff)
    on_exit: Callable[[Child, int], None] | None = None
    children: dict[str, Child] = field(default_factory=dict)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.children = {spec.name: Child(spec) for spec in self.specs}
        self._reaper: subprocess.Popen[bytes] | None = None
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals = 0

    # -- life ---------------------------------------------------------------------------------------------------------

    def run(self, tick: Callable[[], None], interval: float = 1.0) -> None:
        """Supervise until SIGTERM, SIGINT or `stopping`; `tick` is called about every `interval` seconds."""
        previous = self._catch_signals()
        try:
            while not self.stopping:
                self.step()
                tick()
                self._sleep(interval)
        finally:
            self.stop()
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def step(self) -> None:
        """Reap what has ended and start what is due; never waits."""
        self._watch_reaper()
        for child in self.children.values():
            if child.process is not None:
                self._reap(child)
            if child.process is None and not self.stopping and time.monotonic() >= child.next_start:
                self._start(child)

    def stop(self) -> None:
        """SIGTERM to every group, wait each child's grace (a second signal cuts it short), SIGKILL the rest."""
        self.stopping = True
        signals = self._signals
        for child in self.children.values():
            self._signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + max((s.grace_seconds for s in self.specs), default=0.0)
        while any(c.running for c in self.children.values()):
            for child in self.children.values():
                if child.process is not None:
                    self._reap(child)
            if time.monotonic() >= deadline or self._signals > signals + 1:
                break
            if any(c.running for c in self.children.values()):
                self._sleep(0.05)
        for child in self.children.values():
            self._signal_group(child, signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
                self._reap(child)
        self._close_reaper()

    def status(self) -> dict[str, dict[str, object]]:
        """{name: {pid, running, restarts, last_exit, uptime_s}} for status.json."""
        now = time.monotonic()
        return {
            name: {
                "pid": c.process.pid if c.process else None,
                "running": c.running,
                "state": "running" if c.running else "down",
                "restarts": c.restarts,
                "last_exit": c.last_exit,
                "uptime_s": round(now - c.started_at, 1) if c.running else 0.0,
            }
            for name, c in self.children.items()
        }

    # -- one child ----------------------------------------------------------------------------------------------------

    def _start(self, child: Child) -> None:
        stderr = _open_stderr(child.spec.stderr)
        try:
            child.process = start_child(
                child.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=dict(child.spec.env) if child.spec.env is not None else None,
            )
        except OSError as error:
            child.failures_in_a_row += 1
            child.last_exit = 127
            child.next_start = time.monotonic() + self.backoff.delay(child.failures_in_a_row)
            print(f"fedpacs: cannot start {child.spec.name}: {error.strerror}", file=sys.stderr)
            return
        finally:
            if stderr != subprocess.DEVNULL:
                os.close(stderr)
        child.started_at = time.monotonic()
        self._tell_reaper(f"+{child.process.pid}\n")

    def _reap(self, child: Child) -> None:
        """Collect an ended child, killing first what it left in its group (its zombie still holds the group's id)."""
        process = child.process
        assert process is not None
        ended = process.returncode is not None or os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if not ended:
            return
        self._signal_group(child, signal.SIGKILL)
        code = process.wait()
        self._tell_reaper(f"-{process.pid}\n")
        now = time.monotonic()
        healthy = now - child.started_at >= self.backoff.healthy
        child.failures_in_a_row = 1 if healthy else child.failures_in_a_row + 1
        child.next_start = now + self.backoff.delay(child.failures_in_a_row)
        child.process, child.last_exit = None, code
        if not self.stopping:
            child.restarts += 1
            if self.on_exit:
                self.on_exit(child, code)

    @staticmethod
    def _signal_group(child: Child, signum: int) -> None:
        if child.process is not None and child.process.returncode is None:
            try:
                os.killpg(child.process.pid, signum)
            except ProcessLookupError:
                pass

    # -- the reaper ---------------------------------------------------------------------------------------------------

    def _watch_reaper(self) -> None:
        if self._reaper is not None and self._reaper.poll() is None:
            return
        self._close_reaper()
        # isolated and without site: it must start in milliseconds and depend on nothing
        self._reaper = subprocess.Popen(
            [sys.executable, "-ISc", _REAPER], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        for child in self.children.values():
            if child.process is not None:
                self._tell_reaper(f"+{child.process.pid}\n")

    def _tell_reaper(self, line: str) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            try:
                self._reaper.stdin.write(line.encode())
                self._reaper.stdin.flush()
            except (BrokenPipeError, ValueError):
                pass  # it died; the next step starts another and tells it everything

    def _close_reaper(self) -> None:
        if self._reaper is None:
            return
        if self._reaper.stdin is not None:
            try:
                self._reaper.stdin.close()
            except BrokenPipeError:
                pass
        self._reaper.wait()
        self._reaper = None

    # -- signals and sleep --------------------------------------------------------------------------------------------

    def _catch_signals(self) -> dict[int, Any]:
        def asked(signum: int, frame: FrameType | None) -> None:
            self.stopping = True
            self._signals += 1

        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        previous: dict[int, Any] = {s: signal.signal(s, asked) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it wakes the sleep
        return previous

    def _sleep(self, seconds: float) -> None:
        """Sleep, but wake at once for a signal (a child's end among them) or a restart that is due."""
        due = [c.next_start for c in self.children.values() if not c.running and not self.stopping]
        seconds = max(0.0, min([seconds, *(d - time.monotonic() for d in due)]))
        if select.select([self._wake_r], [], [], seconds)[0]:
            try:
                while os.read(self._wake_r, 4096):
                    pass
            except BlockingIOError:
                pass


def _open_stderr(path: Path | None) -> int:
    if path is None:
        return subprocess.DEVNULL
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _STDERR_LIMIT:
        path.replace(path.with_suffix(path.suffix + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
