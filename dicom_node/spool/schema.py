"""Tables of spool.db, as numbered migrations (identified values: left of the wall)."""

from __future__ import annotations

import sqlite3
from typing import Any

import sqlite_utils
from sqlite_utils.migrations import Migrations

migrations = Migrations("dicom_node.spool")


@migrations()
def m001_spool(db: Any) -> None:
    for statement in (
        """CREATE TABLE instances(
             id INTEGER PRIMARY KEY, sop_uid TEXT NOT NULL, study_key TEXT NOT NULL, series_uid TEXT NOT NULL,
             sop_class TEXT NOT NULL, transfer_syntax TEXT NOT NULL, modality TEXT NOT NULL,
             segment TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, data_offset INTEGER NOT NULL,
             sha256 TEXT NOT NULL, calling_ae TEXT NOT NULL, received_at REAL NOT NULL,
             duplicate_of INTEGER REFERENCES instances(id), state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '')""",
        "CREATE UNIQUE INDEX instances_sop ON instances(sop_uid, sha256, transfer_syntax) WHERE state<>'purged'",
        "CREATE INDEX instances_study ON instances(study_key)",
        "CREATE UNIQUE INDEX instances_place ON instances(segment, offset)",
        """CREATE TABLE studies(
             study_key TEXT PRIMARY KEY, study_uid TEXT NOT NULL, patient_id TEXT NOT NULL, accession TEXT NOT NULL,
             first_at REAL NOT NULL, last_at REAL NOT NULL, instances INTEGER NOT NULL, expected INTEGER,
             state TEXT NOT NULL, generation INTEGER NOT NULL, reason TEXT NOT NULL DEFAULT '') WITHOUT ROWID""",
        "CREATE INDEX studies_state ON studies(state)",
        "CREATE INDEX studies_uid ON studies(study_uid)",
        "CREATE INDEX studies_accession ON studies(accession)",
        """CREATE TABLE labels(
             accession TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, source TEXT NOT NULL, imported_at REAL NOT NULL,
             PRIMARY KEY(accession, name)) WITHOUT ROWID""",
        """CREATE TABLE counters(
             ae TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL, last_at REAL NOT NULL,
             PRIMARY KEY(ae, name)) WITHOUT ROWID""",
        "CREATE TABLE segments(name TEXT PRIMARY KEY, sealed INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
    ):
        db.execute(statement)


@migrations()
def m002_expectations(db: Any) -> None:
    """How many instances a study will have, as a modality (MPPS) or an archive (IAN) told; it may come before the first one."""
    db.execute(
        """CREATE TABLE expectations(
             study_uid TEXT NOT NULL, source TEXT NOT NULL, instances INTEGER, at REAL NOT NULL,
             PRIMARY KEY(study_uid, source)) WITHOUT ROWID"""
    )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring spool.db to the newest schema; forward only."""
    migrations.apply(sqlite_utils.Database(connection))
