"""The durable plan of a pull in spool/retrieve.db: which studies, how many instances, what is done, what is tried again when.

Identified (Study Instance UIDs, Patient IDs), so it lives left of the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from dicom_node.database import connect, transaction

MAX_ATTEMPTS = 5
FIRST_RETRY_SECONDS = 10.0
migrations = Migrations("dicom_node.retrieve")


@migrations()
def m001_plan(db: Any) -> None:
    db.execute(
        """CREATE TABLE studies(
             plan TEXT NOT NULL, study_uid TEXT NOT NULL, patient_id TEXT NOT NULL, modalities TEXT NOT NULL,
             instances INTEGER NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL,
             held INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY(plan, study_uid)) WITHOUT ROWID"""
    )


@dataclass(frozen=True)
class Found:
    """A study as the PACS tells it. `instances` is 0 where it does not tell how many there are."""

    study_uid: str
    patient_id: str
    modalities: tuple[str, ...]
    instances: int


@dataclass(frozen=True)
class Planned(Found):
    """One study of a plan. state: waiting, done, failed, opted out."""

    state: str
    attempts: int
    held: int
    reason: str


class Plan:
    """The plan of one selection at one PACS."""

    def __init__(self, folder: Path, digest: str, clock: Callable[[], float] = time.time) -> None:
        self.digest, self._now = digest, clock
        path = folder / "retrieve.db"
        self._db = connect(path, migrations)
        path.chmod(0o600)

    def close(self) -> None:
        self._db.close()

    def add(self, found: Found, opted_out: bool) -> None:
        """Take a study in; one that is there already keeps its state, unless the PACS has more of it now."""
        with transaction(self._db) as db:
            row = db.execute(
                "SELECT instances FROM studies WHERE plan=? AND study_uid=?", (self.digest, found.study_uid)
            ).fetchone()
            if row is not None and row["instances"] == found.instances:
                return
            db.execute(
                "INSERT OR REPLACE INTO studies VALUES(?,?,?,?,?,?,0,0,0,'')",
                (
                    self.digest,
                    found.study_uid,
                    found.patient_id,
                    "\\".join(found.modalities),
                    found.instances,
                    "opted out" if opted_out else "waiting",
                ),
            )

    def studies(self, state: str | None = None) -> list[Planned]:
        rows = self._db.execute(
            "SELECT * FROM studies WHERE plan=?1 AND (?2 IS NULL OR state=?2) ORDER BY study_uid", (self.digest, state)
        )
        return [
            Planned(
                r["study_uid"],
                r["patient_id"],
                tuple(r["modalities"].split("\\")),
                r["instances"],
                r["state"],
                r["attempts"],
                r["held"],
                r["reason"],
            )
            for r in rows
        ]

    def due(self) -> Planned | None:
        """The next study to retrieve now."""
        waiting = {
            row["study_uid"]
            for row in self._db.execute(
                "SELECT study_uid FROM studies WHERE plan=? AND state='waiting' AND due<=?", (self.digest, self._now())
            )
        }
        return next((study for study in self.studies("waiting") if study.study_uid in waiting), None)

    def done(self, study: Planned, held: int) -> None:
        self._set(study, "state='done', held=?, reason=''", held)

    def failed(self, study: Planned, held: int, reason: str) -> str:
        """Try again later, ever later; after MAX_ATTEMPTS it stays failed. `reason` holds nothing identified."""
        attempts = study.attempts + 1
        state = "failed" if attempts >= MAX_ATTEMPTS else "waiting"
        due = self._now() + FIRST_RETRY_SECONDS * 2 ** (attempts - 1)
        self._set(study, "state=?, attempts=?, due=?, held=?, reason=?", state, attempts, due, held, reason)
        return state

    def retry_failed(self) -> None:
        """Give what failed another life."""
        self._db.execute(
            "UPDATE studies SET state='waiting', attempts=0, due=0 WHERE plan=? AND state='failed'", (self.digest,)
        )

    def _set(self, study: Planned, assignments: str, *values: Any) -> None:
        self._db.execute(
            f"UPDATE studies SET {assignments} WHERE plan=? AND study_uid=?", (*values, self.digest, study.study_uid)
        )
