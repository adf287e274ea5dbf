"""What noisy trainings spent of each patient's privacy: kept in catalogue.db, written before a training starts.

One row a training that was allowed, with everything an accountant needs, and one row a patient in it. What that adds up to in
epsilon is for the caller to say (trainer.privacy.accountant): here are durable facts, and the figures it gave at the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from dicom_node.database import connect, transaction

migrations = Migrations("dicom_node.privacy_budget")
Step = tuple[float, float, int]
"""(noise multiplier, sampling rate, steps)"""


@migrations()
def m001_spending(db: Any) -> None:
    db.execute(
        """CREATE TABLE privacy_trainings(
             id INTEGER PRIMARY KEY AUTOINCREMENT, project TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
             request TEXT NOT NULL, unit TEXT NOT NULL, noise_multiplier REAL NOT NULL, rate REAL NOT NULL,
             steps INTEGER NOT NULL, patients INTEGER NOT NULL, epsilon REAL NOT NULL, delta REAL NOT NULL,
             site_epsilon REAL NOT NULL, site_delta REAL NOT NULL,
             accountant TEXT NOT NULL, ended INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL)"""
    )
    db.execute(
        """CREATE TABLE privacy_patients(
             patient TEXT NOT NULL, training INTEGER NOT NULL REFERENCES privacy_trainings(id),
             PRIMARY KEY(patient, training)) WITHOUT ROWID"""
    )


@dataclass(frozen=True)
class Training:
    """One noisy training of one round; `request` is the digest of the coordinator's request."""

    project: str
    run: str
    round: int
    request: str
    unit: str
    noise_multiplier: float
    rate: float
    steps: int


@dataclass(frozen=True)
class Figures:
    """The worst patient's loss after a training: in the project at `delta`, over all projects at `site_delta`."""

    epsilon: float
    delta: float
    site_epsilon: float
    site_delta: float
    accountant: str


History = tuple[tuple[Step, ...], tuple[Step, ...]]
"""What a patient has spent in the project and over all projects before the training that is asked for."""
Judge = Callable[[set[History]], Figures]


class PrivacyBudget:
    """The two tables in catalogue.db. Raises StorageError when the database cannot be opened."""

    def __init__(self, catalogue: Path, readonly: bool = False) -> None:
        self._db = connect(Path(catalogue), migrations, readonly=readonly)

    def close(self) -> None:
        self._db.close()

    def spend(self, training: Training, patients: Iterable[str], judge: Judge) -> tuple[int, Figures | None]:
        """Write the training down for these patients, durably; returns its number and its figures.

        `judge` is told every different history and raises to refuse; then nothing is written. A training that was written down
        for the same request and did not end, because the node was killed, is taken up again: (number, None).
        """
        named = sorted(set(patients))
        while True:
            latest = self._latest()
            if (begun := self._begun(training, named)) is not None:
                return begun, None
            figures = judge(self._histories(training, named))  # takes seconds: no lock is held meanwhile
            with transaction(self._db) as db:
                if self._latest() != latest:
                    continue
                values = asdict(training) | asdict(figures) | {"patients": len(named), "at": time.time()}
                names, slots = ", ".join(values), ", ".join(f":{name}" for name in values)
                number = db.execute(f"INSERT INTO privacy_trainings({names}) VALUES({slots})", values).lastrowid
                assert number is not None
                db.executemany("INSERT INTO privacy_patients VALUES(?, ?)", [(one, number) for one in named])
            return number, figures

    def ended(self, number: int) -> None:
        """Its result may leave now: the same request again would be another training."""
        self._db.execute("UPDATE privacy_trainings SET ended = 1 WHERE id = ?", (number,))

    def projects(self) -> list[dict[str, Any]]:
        """By project digest: trainings, patients, and the worst patient's figures at its last training."""
        rows = self._db.execute(
            """SELECT project, unit, count(*) AS trainings, max(patients) AS patients, max(epsilon) AS epsilon, delta,
                      accountant, max(at) AS at FROM privacy_trainings GROUP BY project ORDER BY min(id)"""
        )
        return [dict(row) for row in rows]

    def site_epsilon(self) -> float:
        """The worst patient's loss over all projects; 0 before the first noisy training."""
        return float(self._db.execute("SELECT coalesce(max(site_epsilon), 0) FROM privacy_trainings").fetchone()[0])

    def _latest(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM privacy_trainings").fetchone()[0])

    def _begun(self, training: Training, patients: list[str]) -> int | None:
        names = [field.name for field in fields(Training)]
        where = " AND ".join(f"{name} = :{name}" for name in names)
        query = f"SELECT id FROM privacy_trainings WHERE NOT ended AND {where} ORDER BY id DESC LIMIT 1"
        row = self._db.execute(query, asdict(training)).fetchone()
        if row is None:
            return None
        listed = self._db.execute("SELECT patient FROM privacy_patients WHERE training = ?", (row["id"],))
        return int(row["id"]) if {one["patient"] for one in listed} >= set(patients) else None

    def _histories(self, training: Training, patients: list[str]) -> set[History]:
        here: dict[str, list[Step]] = {one: [] for one in patients}
        everywhere: dict[str, list[Step]] = {one: [] for one in patients}
        rows = self._db.execute(
            """SELECT patient, project, noise_multiplier, rate, sum(steps) AS steps FROM privacy_patients
               JOIN privacy_trainings ON id = training GROUP BY patient, project, noise_multiplier, rate"""
        )
        for row in rows:
            if row["patient"] not in here:
                continue
            step = (row["noise_multiplier"], row["rate"], row["steps"])
            everywhere[row["patient"]].append(step)
            if row["project"] == training.project:
                here[row["patient"]].append(step)
        return {(tuple(sorted(here[one])), tuple(sorted(everywhere[one]))) for one in patients}
