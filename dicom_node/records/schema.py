"""Tables of catalogue.db as numbered migrations: only de-identified values (right of the wall)."""

from __future__ import annotations

from typing import Any

from sqlite_utils.migrations import Migrations

migrations = Migrations("dicom_node.catalogue")


@migrations()
def m001_studies(db: Any) -> None:
    for statement in (
        """CREATE TABLE studies(
             study_uid TEXT PRIMARY KEY, patient TEXT NOT NULL, modality TEXT NOT NULL, body_part TEXT NOT NULL,
             manufacturer TEXT NOT NULL, sex TEXT NOT NULL, age_years INTEGER, instances INTEGER NOT NULL,
             state TEXT NOT NULL, reason TEXT NOT NULL, content_hash TEXT NOT NULL, added_at REAL NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX studies_patient ON studies(patient)",
        "CREATE INDEX studies_state ON studies(state, added_at)",
        """CREATE TABLE instances(
             sop_uid TEXT PRIMARY KEY, study_uid TEXT NOT NULL REFERENCES studies(study_uid), series_uid TEXT NOT NULL,
             sop_class TEXT NOT NULL, transfer_syntax TEXT NOT NULL, rows INTEGER, columns INTEGER, frames INTEGER NOT NULL,
             path TEXT NOT NULL, sha256 TEXT NOT NULL, pixel_offset INTEGER, pixel_length INTEGER,
             view TEXT NOT NULL DEFAULT '') WITHOUT ROWID""",
        "CREATE INDEX instances_study ON instances(study_uid)",
        """CREATE TABLE labels(
             study_uid TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, source TEXT NOT NULL,
             PRIMARY KEY(study_uid, name)) WITHOUT ROWID""",
        "CREATE TABLE withdrawn(patient TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID",
    ):
        db.execute(statement)


@migrations()
def m002_projects(db: Any) -> None:
    db.execute(
        """CREATE TABLE projects(
             digest TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, document BLOB NOT NULL, state TEXT NOT NULL,
             decided_by TEXT NOT NULL DEFAULT '', role TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
             decided_at REAL, signature TEXT NOT NULL DEFAULT '', offered_at REAL NOT NULL) WITHOUT ROWID"""
    )


@migrations()
def m003_uses(db: Any) -> None:
    """Which studies took part in which round: the answer to "was this patient used?"."""
    db.execute(
        """CREATE TABLE uses(
             project TEXT NOT NULL, round INTEGER NOT NULL, study_uid TEXT NOT NULL, at REAL NOT NULL,
             PRIMARY KEY(project, round, study_uid)) WITHOUT ROWID"""
    )
    db.execute("CREATE INDEX uses_study ON uses(study_uid)")


@migrations()
def m004_optouts(db: Any) -> None:
    """Keyed hashes of the Patient IDs that opted out; worthless without the vault key."""
    db.execute("CREATE TABLE optouts(token TEXT PRIMARY KEY, at REAL NOT NULL, by TEXT NOT NULL) WITHOUT ROWID")


@migrations()
def m005_studies_by_time(db: Any) -> None:
    """So that a page of a hundred thousand studies needs no sorting."""
    db.execute("CREATE INDEX studies_added ON studies(added_at, study_uid)")


@migrations()
def m006_studies_by_modality(db: Any) -> None:
    """So that a search by modality, UID or pseudonym is answered by indices alone."""
    db.execute("CREATE INDEX studies_modality ON studies(modality, added_at)")
