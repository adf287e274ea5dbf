"""How a node's SQLite files are opened: WAL, full sync, a patient busy time-out, migrated forward once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlite_utils
from sqlite_utils.migrations import Migrations

from dicom_node.errors import StorageError

BUSY_SECONDS = 30.0


def connect(path: Path, migrations: Migrations | None = None, *, readonly: bool = False) -> sqlite3.Connection:
    """Open `path` in autocommit mode; writers get WAL, synchronous=FULL and the pending migrations.

    Raises StorageError when the file is missing (read-only), damaged, locked for longer than 30 s or cannot be made.
    """
    try:
        if readonly:
            connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
            connection.execute("SELECT count(*) FROM sqlite_master")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            if migrations is not None:
                migrate(connection, migrations)
    except sqlite3.Error as error:
        raise StorageError(
            f"The database {path} cannot be opened ({error}): check the disk and the file's permissions."
        ) from None
    connection.row_factory = sqlite3.Row
    return connection


def migrate(connection: sqlite3.Connection, migrations: Migrations, stop_before: str | None = None) -> None:
    """Bring the schema forward; two processes starting at once do it one after the other."""
    database: Any = sqlite_utils.Database(connection)
    if not migrations.pending(database):
        return
    with transaction(connection):
        for migration in migrations.pending(database):
            if migration.name == stop_before:
                return
            migrations.ensure_migrations_table(database)
            migration.fn(database)
            migrations._record_applied(database, migration.name)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One write transaction (BEGIN IMMEDIATE), rolled back when the block raises. May be nested: the outermost commits."""
    if connection.in_transaction:
        yield connection
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
