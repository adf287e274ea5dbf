"""How spool.db is opened: WAL, migrated once, and one writer at a time without SQLite's sleeping retries."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_node.errors import StorageError
from dicom_node.spool import schema
from dicom_node.spool.segment import sync_folder

BUSY_SECONDS = 20.0
# What a statement on a damaged or locked database raises: SQLite's messages may quote bytes of it that are no text.
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


def prepare_folder(root: Path) -> None:
    """Create the spool's folders, readable by their owner alone (they hold identified values)."""
    for folder in (root, root / "segments"):
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)  # or a power cut may take the folder with every segment that was synced in it
        folder.chmod(0o700)


def connect(root: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    """Open spool.db in `root`, migrating it when needed. Raises StorageError when it is damaged or cannot be opened.

    `synchronous="NORMAL"` is for the receiver alone: its segment files are synced before each commit and describe
    themselves, so a commit that a power cut takes back is replayed from them (`dicom_node.spool.recover`).
    """
    path = root / "spool.db"
    try:
        prepare_folder(root)
        with _open_lock(root), _umask():
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute("PRAGMA foreign_keys=OFF")
            connection.execute("PRAGMA temp_store=MEMORY")
            schema.migrate(connection)
        return connection
    except (*DATABASE_ERRORS, OSError) as error:
        raise StorageError(
            f"The spool's database {path} cannot be opened ({told(error)}); check the disk, "
            "or rebuild it with `fedpacs node reindex`."
        ) from error


def told(error: Exception) -> str:
    """What went wrong, without bytes of the database that a message might quote."""
    return "the database is damaged" if isinstance(error, UnicodeDecodeError) else str(error)


@contextmanager
def _open_lock(root: Path) -> Iterator[None]:
    lock = WriteLock(root, "open.lock")
    try:
        with lock:
            yield
    finally:
        lock.close()


@contextmanager
def _umask() -> Iterator[None]:
    previous = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(previous)


class WriteLock:
    """A lock between processes that wakes its waiters at once (SQLite's own makes them sleep and try again)."""

    def __init__(self, root: Path, name: str = "write.lock") -> None:
        self._fd = os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def transaction(connection: sqlite3.Connection, lock: WriteLock) -> Iterator[sqlite3.Connection]:
    """One write transaction under the lock; rolled back when the body raises."""
    with lock:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
