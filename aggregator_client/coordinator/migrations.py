"""Tables of a run's state.db as numbered migrations."""

from __future__ import annotations

from typing import Any

from sqlite_utils.migrations import Migrations

migrations = Migrations("aggregator_client.coordinator")


@migrations()
def m001_run(db: Any) -> None:
    for statement in (
        """CREATE TABLE run(
             id TEXT PRIMARY KEY, digest TEXT NOT NULL, project TEXT NOT NULL, algorithm TEXT NOT NULL,
             rounds INTEGER NOT NULL, started_at REAL NOT NULL, ended_at REAL, state TEXT NOT NULL,
             reason TEXT NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE rounds(
             number INTEGER PRIMARY KEY, state TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL,
             sha256 TEXT NOT NULL)""",
        """CREATE TABLE site_rounds(
             round INTEGER NOT NULL, site TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, cases INTEGER NOT NULL,
             seconds REAL NOT NULL, loss REAL, metrics TEXT NOT NULL, bytes_in INTEGER NOT NULL,
             bytes_out INTEGER NOT NULL, attempts INTEGER NOT NULL, at REAL NOT NULL,
             PRIMARY KEY(round, site)) WITHOUT ROWID""",
        "CREATE TABLE sites(site TEXT PRIMARY KEY, online INTEGER NOT NULL, last_seen REAL NOT NULL) WITHOUT ROWID",
    ):
        db.execute(statement)


@migrations()
def m002_votes(db: Any) -> None:
    db.execute(
        """CREATE TABLE candidates(
             round INTEGER PRIMARY KEY, base TEXT NOT NULL, candidate TEXT NOT NULL, voters TEXT NOT NULL,
             outcome TEXT NOT NULL)"""
    )
    db.execute(
        """CREATE TABLE ballots(
             round INTEGER NOT NULL, site TEXT NOT NULL, vote TEXT NOT NULL, reason TEXT NOT NULL, statement BLOB NOT NULL,
             PRIMARY KEY(round, site)) WITHOUT ROWID"""
    )
