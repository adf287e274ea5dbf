"""Write the backup: databases first in the order that makes them agree, then the files they speak of, while the daemon runs.

The daemon writes in the order segments and files, vault, catalogue, audit, spool state. The backup reads in the opposite
order, so that whatever a database names is in the archive, and what came later is there too: `recover` adopts segment
records without a row at the next start, and a pass of a worker may be repeated. Keys come before the audit log, because the
newest checkpoint of the log stands beside them and must not be newer than the log.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from dicom_node.backup.sealed import SealedWriter
from dicom_node.errors import InputError, RefusedError, StorageError

FORMAT = 1
_WHOLE = 64 << 20  # files up to this size are read at once, so that none changes between its size and its bytes
_SQLITE = b"SQLite format 3\0"
_COPY = ".backup-"
_LEFT_OUT = ("-wal", "-shm", "-journal", ".lock", ".new", ".part")


@dataclass(frozen=True)
class Source:
    """What is kept. `roots` are folders and files outside `home`, by name; `first` the paths to read first, in order."""

    kind: str
    home: Path
    settings_file: str
    first: tuple[Path, ...]
    roots: dict[str, Path] = field(default_factory=dict)
    left_out: tuple[Path, ...] = ()
    kept_anyway: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Report:
    """What went into, or came out of, a backup. `bytes` are those of the files; `sha256` is that of the backup file."""

    file: str
    kind: str
    files: int
    bytes: int
    sha256: str
    made_at: float


def backup(source: Source, out: Path, secret: bytes) -> Report:
    """Write `out`, whole or not at all. Raises RefusedError when it exists or lies in the node, StorageError on a full disk."""
    out = out.expanduser().resolve()
    _check_place(source, out)
    part, made_at = out.with_name(out.name + ".part"), time.time()
    try:
        lock = _only_one(source.home)
    except OSError as error:
        raise StorageError(
            f"The folder {source.home} cannot be read ({error.strerror}): run this as its owner."
        ) from None
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w+b") as file:
            digests = _write(source, file, secret, made_at)
            file.flush()
            os.fsync(descriptor)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        part.replace(out)
        _sync_folder(out.parent)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"The backup {out} cannot be written ({error}): check the disk, then run it again."
        ) from None
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)
    size = sum(one["bytes"] for one in digests.values())
    return Report(str(out), source.kind, len(digests), size, digest, made_at)


def _only_one(home: Path) -> int:
    """A descriptor that holds the lock of a backup; copies of databases that a killed one left behind are removed."""
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RefusedError(f"A backup of {home} is being made already: wait for it.") from None
    return descriptor


def _check_place(source: Source, out: Path) -> None:
    if out.exists():
        raise RefusedError(f"{out} exists already: name another file, backups are never overwritten.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder: name a file in one that exists.")
    for folder in (source.home, *source.roots.values()):
        if out.is_relative_to(folder):
            raise RefusedError(f"{out} lies inside {folder}, which is to be kept: write it to another disk.")


def _write(source: Source, file: BinaryIO, secret: bytes, made_at: float) -> dict[str, dict[str, Any]]:
    sealed = SealedWriter(file, secret)
    try:
        with tarfile.open(fileobj=sealed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            writer = _Members(tar)
            roots = {name: {"path": str(path), "file": path.is_file()} for name, path in source.roots.items()}
            head = {"format": FORMAT, "kind": source.kind, "made_at": made_at, "roots": roots}
            writer.add_bytes("contents.json", json.dumps(head).encode())
            writer.digests.clear()
            for name, path in _paths(source):
                writer.add(name, path)
            found = dict(writer.digests)
            writer.add_bytes("manifest.json", json.dumps(found).encode())
    except BaseException:
        sealed.abandon()
        raise
    sealed.close()
    return found


def _paths(source: Source) -> Iterator[tuple[str, Path]]:
    """(name in the archive, path): what must be read first, then every database, then the files, listed after that."""
    done: set[Path] = set()
    for wanted in source.first:
        for path in _walk(wanted, source):
            if path not in done:
                done.add(path)
                yield _name(source, path), path
    for databases in (True, False):
        for root in (source.home, *source.roots.values()):
            for path in _walk(root, source):
                if path not in done and (not databases or _is_database(path)):
                    done.add(path)
                    yield _name(source, path), path


def _walk(root: Path, source: Source) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for stale in (f for f in folders if f.startswith(_COPY)):
            shutil.rmtree(here / stale, ignore_errors=True)
        folders[:] = sorted(f for f in folders if here / f not in source.left_out and not f.startswith(_COPY))
        for name in sorted(files):
            path = here / name
            if not name.endswith(_LEFT_OUT) and path.is_file() and not path.is_symlink():
                yield path
    for path in source.kept_anyway:
        if path.is_relative_to(root) and path.is_file():
            yield path


def _name(source: Source, path: Path) -> str:
    if path.is_relative_to(source.home):
        return f"home/{path.relative_to(source.home)}"
    name, root = next((n, r) for n, r in source.roots.items() if path.is_relative_to(r))
    return f"{name}/{path.name if path == root else path.relative_to(root)}"


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except FileNotFoundError:
        return False


class _Members:
    """Puts files into the archive one by one, each with its digest."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar = tar
        self.digests: dict[str, dict[str, Any]] = {}

    def add(self, name: str, path: Path) -> None:
        """One file; nothing when it is gone since it was listed (a file that was renamed, purged or handed on)."""
        try:
            if _is_database(path):
                self._add_database(name, path)
                return
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_size <= _WHOLE:
                    self.add_bytes(name, file.read(), state.st_mode, state.st_mtime)
                else:
                    self._add_stream(name, _Exactly(file, state.st_size), state.st_size, state.st_mode, state.st_mtime)
        except FileNotFoundError:
            return

    def add_bytes(self, name: str, data: bytes, mode: int = 0o600, mtime: float = 0) -> None:
        self._add_stream(name, _Exactly(io.BytesIO(data), len(data)), len(data), mode, mtime)

    def _add_stream(self, name: str, stream: _Exactly, size: int, mode: int, mtime: float) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode & 0o777, int(mtime)
        self.tar.addfile(info, stream)
        self.digests[name] = {"bytes": size, "sha256": stream.digest.hexdigest()}

    def _add_database(self, name: str, path: Path) -> None:
        """A consistent copy by SQLite's own backup, which takes what the write-ahead log holds and waits for no writer."""
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=_COPY) as folder:
            copy = Path(folder) / "copy.db"
            with copy.open("xb"):
                copy.chmod(0o600)
            live, kept = sqlite3.connect(path, timeout=30), sqlite3.connect(copy)
            try:
                live.backup(kept)  # in one step: another writer cannot make it begin again
                kept.execute("PRAGMA journal_mode=DELETE")
            finally:
                live.close()
                kept.close()
            with copy.open("rb") as file:
                state = path.stat()
                size = os.fstat(file.fileno()).st_size
                self._add_stream(name, _Exactly(file, size), size, state.st_mode, state.st_mtime)


class _Exactly:
    """Reads exactly `size` bytes and their SHA-256: zeros for the reserve at a segment's end that was given back meanwhile."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.digest = file, size, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        wanted = self.left if count < 0 else min(count, self.left)
        data = self.file.read(wanted)
        data += bytes(wanted - len(data))
        self.left -= wanted
        self.digest.update(data)
        return data


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
