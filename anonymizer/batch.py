"""De-identifies many files: one output and one report line per input, whatever the input is, in one or several processes."""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from anonymizer.engine import Deidentifier
from anonymizer.errors import InputError, KeyFileError, OutputError
from anonymizer.faces.staged import Staged, finish, staging
from anonymizer.model import Action, Outcome
from anonymizer.profile import Profile
from anonymizer.text import warm

CHUNK = 16
SECONDS = 120
SECONDS_PER_GB = 120
GRACE = 30  # seconds after which a process that does not even heed its alarm (in a C library) is ended
MEMORY = 4 << 30  # bytes a worker may hold beside mapped files


@dataclass
class Line:
    """One input's line in the report."""

    source: str
    output: str | None
    status: str
    reason: str
    sop_instance_uid: str = ""
    actions: tuple[Action, ...] = ()
    study_instance_uid: str = ""
    staged: Staged | None = None  # its face must go before it counts

    def json(self) -> str:
        """The line as JSON; ``actions`` is a list of {"tag", "keyword", "action", "rule"}."""
        facts = {k: v for k, v in vars(self).items() if k not in ("actions", "study_instance_uid", "staged")}
        return f'{json.dumps(facts)[:-1]}, "actions": {_actions_json(self.actions)}}}'


@lru_cache(maxsize=256)
def _actions_json(actions: tuple[Action, ...]) -> str:
    """The same for every instance of a series, hence remembered."""
    return json.dumps([a._asdict() for a in actions])


@dataclass(frozen=True)
class Job:
    """Everything a worker process needs."""

    profile: Profile
    key: bytes = field(repr=False)
    uid_root: str = "2.25"
    seconds: float = SECONDS
    memory: int = MEMORY
    staging: Path | None = None  # where heads wait for the rest of their series
    previews: Path | None = None  # where their surfaces are drawn, before and after


def load_key(path: Path | None) -> bytes:
    """The 32-byte key in a file (raw or 64 hex digits), written fresh with mode 0600 when the file does not exist.

    None gives a key for this run alone. Raises KeyFileError.
    """
    if path is None:
        return secrets.token_bytes(32)
    try:
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                handle.write(secrets.token_bytes(32).hex().encode() + b"\n")
        raw = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be used ({error.strerror}); name another with --key.") from None
    if len(raw) == 32:
        return raw
    try:
        key = bytes.fromhex(raw.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        key = b""
    if len(key) != 32:
        raise KeyFileError(f"{path} holds no key: it must be 32 bytes or 64 hex digits; let --key write a new file.")
    return key


def plan_outputs(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """(input, output) pairs: names kept, folders mirrored under ``out``; a name that is taken gets ~2, ~3 before its suffix."""
    pairs: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    resolved = out.resolve()
    for source in sources:
        if not source.is_dir():
            pairs.append((source, _free(out / source.name, taken)))
            continue
        for folder, folders, files in os.walk(source):
            folders[:] = sorted(f for f in folders if (Path(folder) / f).resolve() != resolved)
            for name in sorted(files):
                path = Path(folder) / name
                pairs.append((path, _free(out / path.relative_to(source), taken)))
    return pairs


def _free(path: Path, taken: set[str]) -> Path:
    candidate, number = path, 1
    while str(candidate).casefold() in taken:
        number += 1
        candidate = path.with_name(f"{path.stem}~{number}{path.suffix}")
    taken.add(str(candidate).casefold())
    return candidate


def run(job: Job, pairs: list[tuple[Path, Path]], workers: int, each: Callable[[Line], None]) -> None:
    """De-identify every pair in processes of their own, calling ``each`` with a line as soon as it is known.

    A file that ends its process (a fault in a decoder, too much memory, a hang) gets its line like any other.
    """
    warm()
    with staging([target for _, target in pairs]) as place:
        job = replace(job, staging=place)
        waiting: dict[str, list[Line]] = {}
        for line in _objects(job, pairs, workers):
            if line.staged is None:
                each(line)
            else:
                waiting.setdefault(line.staged.series or line.source, []).append(line)
        for line in _faces(job, list(waiting.values()), workers):
            each(line)


def _objects(job: Job, pairs: list[tuple[Path, Path]], workers: int) -> Iterator[Line]:
    chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
    broken: list[list[tuple[Path, Path]]] = []
    with ProcessPoolExecutor(max(1, workers), initializer=_start, initargs=(job,)) as pool:
        pending = [(chunk, _submit(pool, chunk)) for chunk in chunks]
        for chunk, future in pending:
            try:
                yield from future.result() if future else _raise_broken()
            except BrokenProcessPool:
                broken.append(chunk)
    for chunk in broken:
        yield from _alone(job, chunk)


def _faces(job: Job, series: list[list[Line]], workers: int) -> Iterator[Line]:
    """The lines of the series whose faces had to go; a series that ends its process is quarantined."""
    if not series:
        return
    again = []
    with ProcessPoolExecutor(max(1, workers), initializer=_start, initargs=(job,)) as pool:
        pending = [(lines, _submitted(pool, lines)) for lines in series]
        for lines, future in pending:
            try:
                yield from future.result() if future else _raise_broken()
            except BrokenProcessPool:
                again.append(lines)
    for lines in again:
        try:
            with ProcessPoolExecutor(1, initializer=_start, initargs=(job,)) as pool:
                yield from pool.submit(_series, lines).result()
        except BrokenProcessPool:
            yield from (_withheld(line, "the process that looked for its face died") for line in lines)


def _submitted(pool: ProcessPoolExecutor, lines: list[Line]) -> Future[list[Line]] | None:
    try:
        return pool.submit(_series, lines)
    except BrokenProcessPool:
        return None


def _series(lines: list[Line]) -> list[Line]:
    return _worker.series(lines)


def _withheld(line: Line, reason: str) -> Line:
    return replace(line, output=None, status="quarantined", reason=reason, staged=None)


def _raise_broken() -> list[Line]:
    raise BrokenProcessPool


def _submit(pool: ProcessPoolExecutor, chunk: list[tuple[Path, Path]]) -> Future[list[Line]] | None:
    try:
        return pool.submit(_chunk, chunk)
    except BrokenProcessPool:
        return None


def _alone(job: Job, chunk: list[tuple[Path, Path]]) -> list[Line]:
    """A chunk in a process of its own; when that dies too each file in one, so that the one that kills it is known."""
    try:
        with ProcessPoolExecutor(1, initializer=_start, initargs=(job,)) as pool:
            return pool.submit(_chunk, chunk).result()
    except BrokenProcessPool:
        if len(chunk) == 1:
            return [Line(str(chunk[0][0]), None, "rejected", "the process that read it died on it")]
    return [line for pair in chunk for line in _alone(job, [pair])]


_worker: Worker


def _start(job: Job) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold what was read
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or hard > job.memory:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory, hard))
    warm()  # where a process is not forked
    _worker = Worker(job, guarded=True)


def _chunk(pairs: list[tuple[Path, Path]]) -> list[Line]:
    return [_worker.line(source, target) for source, target in pairs]


class _TimeUp(Exception):
    """The time allowed for one file is over."""


class Worker:
    """One process's share: reads, de-identifies, writes whole files or none. ``guarded``: a hanging process may be ended."""

    def __init__(self, job: Job, guarded: bool = False) -> None:
        self.guarded = guarded
        self.deid = Deidentifier(job.profile, job.key, job.uid_root, series=job.staging is not None)
        self.staging, self.previews, self._staged = job.staging, job.previews, 0
        self.seconds = job.seconds
        self._folders: set[str] = set()

    def line(self, source: Path, target: Path) -> Line:
        """De-identify one file and account for it. Raises OutputError when the output cannot be written."""
        try:
            info = source.stat()
            if not stat.S_ISREG(info.st_mode):
                return Line(str(source), None, "rejected", "it is not a regular file")
            with _time_limit(self.seconds + SECONDS_PER_GB * info.st_size / 1e9, self.guarded):
                outcome = self.deid.deidentify(source)
        except OSError as error:
            return Line(str(source), None, "rejected", f"it cannot be read ({error.strerror})")
        except _TimeUp:
            return Line(str(source), None, "rejected", "it took longer than is allowed for a file of its size")
        except MemoryError:
            return Line(str(source), None, "rejected", "it needs more memory than there is")
        except (ValueError, IndexError, KeyError, AttributeError, TypeError, InputError) as error:
            # whatever a hostile file does to a parser, the other files go on; the text of the error may quote the data
            return Line(str(source), None, "rejected", f"it cannot be followed ({type(error).__name__})")
        return self._account(source, target, outcome)

    def _account(self, source: Path, target: Path, outcome: Outcome) -> Line:
        written = staged = None
        if outcome.status == "ok" and outcome.parts is not None:
            if self.staging is not None and outcome.face:
                self._staged += 1
                place = self.staging / f"{os.getpid()}-{self._staged}.dcm"
                staged = Staged(place, target, str(outcome.facts.get("series_uid") or ""), outcome.face)
            self._write(staged.path if staged else target, outcome.parts)
            written = str(target)
        return Line(
            str(source),
            written,
            outcome.status,
            outcome.reason,
            outcome.sop_instance_uid,
            tuple(outcome.actions),
            outcome.study_instance_uid,
            staged,
        )

    def series(self, lines: list[Line]) -> list[Line]:
        """Take the faces off one series of staged files. Raises OutputError when an output cannot be written."""
        from anonymizer.faces.series import actions

        files = [line.staged for line in lines if line.staged is not None]
        reason = ""
        try:
            with _time_limit(5 * self.seconds + len(lines), self.guarded):
                results = finish(files, self.previews)
        except _TimeUp:
            reason = "looking for its face took longer than is allowed"
        except (MemoryError, OSError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
            reason = f"its face could not be looked for ({type(error).__name__})"
        if reason:
            for file in files:
                file.target.unlink(missing_ok=True)
            return [_withheld(line, reason) for line in lines]
        return [
            replace(line, staged=None, actions=line.actions + tuple(actions(result)))
            if result.status == "ok"
            else _withheld(line, result.reason)
            for line, result in zip(lines, results, strict=True)
        ]

    def _write(self, target: Path, parts: list[bytes | memoryview]) -> None:
        folder, name = os.path.split(target)
        partial = f"{folder}/.fedpacs-{os.getpid()}.part"
        try:
            if folder not in self._folders:
                Path(folder).mkdir(parents=True, exist_ok=True)
                self._folders.add(folder)
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                _write_all(handle, parts)
            except BaseException:
                os.unlink(partial)  # noqa: PTH108
                raise
            finally:
                os.close(handle)
            os.replace(partial, target)  # noqa: PTH105
        except OSError as error:
            raise OutputError(
                f"{name} cannot be written ({error.strerror}); make room or name another --out."
            ) from None


def _write_all(handle: int, parts: list[bytes | memoryview]) -> None:
    """Every part in order with as few system calls as can be."""
    for start in range(0, len(parts), 512):
        batch = [part for part in parts[start : start + 512] if len(part)]
        size = sum(map(len, batch))
        done = os.writev(handle, batch)
        if done < size:  # a signal or the kernel's limit of 2 GiB cut it short
            rest = memoryview(b"".join(batch))[done:] if size < 1 << 26 else None
            for piece in [rest] if rest is not None else _after(batch, done):
                while piece:
                    piece = piece[os.write(handle, piece[: 1 << 30]) :]


def _after(batch: list[bytes | memoryview], done: int) -> Iterator[memoryview]:
    for part in batch:
        if done >= len(part):
            done -= len(part)
            continue
        yield memoryview(part)[done:]
        done = 0


class _time_limit:
    """Raises _TimeUp in the main thread after some seconds (ITIMER_REAL); elsewhere it does nothing.

    A C library that never comes back lets no handler run: ``guarded`` has the kernel end the process some seconds of
    processor time later (ITIMER_PROF, whose signal is not handled).
    """

    def __init__(self, seconds: float, guarded: bool) -> None:
        self.seconds, self.guarded = seconds, guarded

    def __enter__(self) -> None:
        try:
            self.previous: Any = signal.signal(signal.SIGALRM, _time_up)
        except ValueError:  # not the main thread
            self.previous = None
            return
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        if self.guarded:
            signal.setitimer(signal.ITIMER_PROF, self.seconds + GRACE)

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            if self.guarded:
                signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.previous)


def _time_up(number: int, frame: FrameType | None) -> None:
    raise _TimeUp
