"""Reads and writes catalogue.db, the list of de-identified studies that everything right of the wall works from."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dicom_node.database import connect, transaction
from dicom_node.records.cohort import select
from dicom_node.records.model import Cohort, CohortRule, InstanceRecord, LabelRecord, StudyRecord
from dicom_node.records.schema import migrations


class Catalogue:
    """catalogue.db with its dataset folder. Every write is one transaction; readers never block the writer (WAL).

    Raises StorageError when the database cannot be opened.
    """

    def __init__(self, path: Path, dataset: Path | None = None, readonly: bool = False) -> None:
        self.path, self.dataset = Path(path), dataset
        self._db = connect(self.path, migrations, readonly=readonly)

    def close(self) -> None:
        self._db.close()

    def add_study(self, study: StudyRecord, instances: Iterable[InstanceRecord]) -> bool:
        """Insert or replace a study with its instances; False when the same content is there already.

        A study of a withdrawn patient is taken in as withdrawn. Labels stay.
        """
        rows = list(instances)
        with transaction(self._db) as db:
            known = db.execute(
                "SELECT content_hash, state, reason FROM studies WHERE study_uid = ?", (study.study_uid,)
            ).fetchone()
            if db.execute("SELECT 1 FROM withdrawn WHERE patient = ?", (study.patient,)).fetchone():
                study = _with_state(study, "withdrawn", "the patient opted out")
            if known and tuple(known) == (study.content_hash, study.state, study.reason):
                return False
            values = asdict(study) | {"instances": len(rows), "added_at": study.added_at or time.time()}
            _replace(db, "studies", values)
            db.execute("DELETE FROM instances WHERE study_uid = ?", (study.study_uid,))
            for row in rows:
                _replace(db, "instances", asdict(row))
        return True

    def set_labels(self, labels: Iterable[LabelRecord]) -> int:
        """Insert or update labels; returns how many changed."""
        changed = 0
        with transaction(self._db) as db:
            for label in labels:
                changed += db.execute(
                    "INSERT INTO labels(study_uid, name, value, source) VALUES(:study_uid, :name, :value, :source)"
                    " ON CONFLICT(study_uid, name) DO UPDATE SET value = excluded.value, source = excluded.source"
                    " WHERE value <> excluded.value",
                    asdict(label),
                ).rowcount
        return changed

    def set_state(self, study_uid: str, state: str, reason: str = "") -> bool:
        """Move one study to `state`; False when there is no such study."""
        statement = "UPDATE studies SET state = ?, reason = ? WHERE study_uid = ?"
        return self._db.execute(statement, (state, reason, study_uid)).rowcount > 0

    def withdraw_patient(self, patient: str) -> int:
        """Exclude a patient (pseudonym) now and for all future studies; returns how many studies were withdrawn."""
        with transaction(self._db) as db:
            db.execute("INSERT OR IGNORE INTO withdrawn(patient, at) VALUES(?, ?)", (patient, time.time()))
            return db.execute(
                "UPDATE studies SET state = 'withdrawn', reason = 'the patient opted out'"
                " WHERE patient = ? AND state <> 'withdrawn'",
                (patient,),
            ).rowcount

    def readmit_patient(self, patient: str) -> int:
        """Take a withdrawal back; returns how many studies became eligible again."""
        with transaction(self._db) as db:
            db.execute("DELETE FROM withdrawn WHERE patient = ?", (patient,))
            return db.execute(
                "UPDATE studies SET state = 'eligible', reason = '' WHERE patient = ? AND state = 'withdrawn'",
                (patient,),
            ).rowcount

    def withdrawn(self) -> list[tuple[str, float]]:
        """Withdrawn patients' pseudonyms with the time (seconds since the epoch)."""
        return [
            (row["patient"], row["at"]) for row in self._db.execute("SELECT patient, at FROM withdrawn ORDER BY at")
        ]

    def study(self, study_uid: str) -> StudyRecord | None:
        row = self._db.execute("SELECT * FROM studies WHERE study_uid = ?", (study_uid,)).fetchone()
        return _record(StudyRecord, row) if row else None

    def studies(self, state: str | None = None, limit: int | None = None, offset: int = 0) -> list[StudyRecord]:
        """Studies by the time they were added (then UID), all or those in one state."""
        rows = self._db.execute(
            "SELECT * FROM studies WHERE ?1 IS NULL OR state = ?1 ORDER BY added_at, study_uid LIMIT ?2 OFFSET ?3",
            (state, -1 if limit is None else limit, offset),
        )
        return [_record(StudyRecord, row) for row in rows]

    def search(self, state: str | None, text: str, limit: int, offset: int) -> tuple[list[StudyRecord], int]:
        """Studies by the time they were added, one page of them, and how many there are.

        `text` is a modality, or the beginning of a Study Instance UID or of a patient's pseudonym.
        """
        parts, values = list[str](), list[str]()
        if state:
            parts, values = ["state = ?"], [state]
        if text:
            clauses = [one for one in _meanings(text) if self._any(*one)]
            if not clauses:
                return [], 0
            parts.append(f"({' OR '.join(clause for clause, _ in clauses)})")
            values += [value for _, those in clauses for value in those]
        where = f" WHERE {' AND '.join(parts)}" if parts else ""
        total = self._db.execute(f"SELECT count(*) FROM studies{where}", values).fetchone()[0]
        rows = self._db.execute(
            f"SELECT * FROM studies{where} ORDER BY added_at, study_uid LIMIT {int(limit)} OFFSET {int(offset)}", values
        )
        return [_record(StudyRecord, row) for row in rows], total

    def _any(self, clause: str, values: list[str]) -> bool:
        return self._db.execute(f"SELECT 1 FROM studies WHERE {clause} LIMIT 1", values).fetchone() is not None

    def instances(self, study_uid: str) -> list[InstanceRecord]:
        rows = self._db.execute(
            "SELECT * FROM instances WHERE study_uid = ? ORDER BY series_uid, sop_uid", (study_uid,)
        )
        return [_record(InstanceRecord, row) for row in rows]

    def labels(self, study_uid: str) -> list[LabelRecord]:
        rows = self._db.execute("SELECT * FROM labels WHERE study_uid = ? ORDER BY name", (study_uid,))
        return [_record(LabelRecord, row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many studies stand in each state, and patients, instances and labelled studies in all."""
        counts = {row[0]: row[1] for row in self._db.execute("SELECT state, count(*) FROM studies GROUP BY state")}
        counts["studies"] = sum(counts.values())
        for name, query in (
            ("patients", "SELECT count(DISTINCT patient) FROM studies"),
            ("instances", "SELECT count(*) FROM instances"),
            ("labelled", "SELECT count(DISTINCT study_uid) FROM labels"),
        ):
            counts[name] = self._db.execute(query).fetchone()[0]
        return counts

    def cohort(self, rule: CohortRule) -> Cohort:
        """The studies that satisfy `rule`, sorted by study UID so that every run sees the same order."""
        instances: dict[str, list[InstanceRecord]] = {}
        for row in self._db.execute("SELECT * FROM instances ORDER BY series_uid, sop_uid"):
            instances.setdefault(row["study_uid"], []).append(_record(InstanceRecord, row))
        labels: dict[str, dict[str, str]] = {}
        for row in self._db.execute("SELECT study_uid, name, value FROM labels"):
            labels.setdefault(row["study_uid"], {})[row["name"]] = row["value"]
        studies = [_record(StudyRecord, row) for row in self._db.execute("SELECT * FROM studies ORDER BY study_uid")]
        return select(studies, instances, labels, rule)

    def mark_used(self, project_digest: str, round_number: int, study_uids: Iterable[str]) -> None:
        """Remember that these studies took part in a round."""
        now = time.time()
        rows = [(project_digest, round_number, uid, now) for uid in study_uids]
        with transaction(self._db) as db:
            db.executemany("INSERT OR IGNORE INTO uses(project, round, study_uid, at) VALUES(?, ?, ?, ?)", rows)

    @property
    def connection(self) -> sqlite3.Connection:
        """For watching whether others write (PRAGMA data_version)."""
        return self._db

    def used(self) -> int:
        """How many studies took part in a round."""
        return int(self._db.execute("SELECT count(DISTINCT study_uid) FROM uses").fetchone()[0])

    def used_in(self, project_digest: str, round_number: int) -> list[str]:
        """The studies that took part in a round."""
        rows = self._db.execute(
            "SELECT study_uid FROM uses WHERE project = ? AND round = ? ORDER BY study_uid",
            (project_digest, round_number),
        )
        return [row["study_uid"] for row in rows]

    def rounds_of(self, study_uid: str) -> list[tuple[str, int]]:
        """(project digest, round) of every round that used a study."""
        rows = self._db.execute("SELECT project, round FROM uses WHERE study_uid = ? ORDER BY at, round", (study_uid,))
        return [(row["project"], row["round"]) for row in rows]


def _meanings(text: str) -> list[tuple[str, list[str]]]:
    """What a text searched for may mean: as ranges, which the indices answer, where LIKE would read every row."""
    end = text + "\uffff"
    return [
        ("modality = ?", [text]),
        ("study_uid BETWEEN ? AND ?", [text, end]),
        ("patient BETWEEN ? AND ?", [text, end]),
    ]


def _with_state(study: StudyRecord, state: str, reason: str) -> StudyRecord:
    return StudyRecord(**asdict(study) | {"state": state, "reason": reason})


def _replace(db: sqlite3.Connection, table: str, values: Mapping[str, Any]) -> None:
    names = ", ".join(values)
    slots = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT OR REPLACE INTO {table}({names}) VALUES({slots})", dict(values))


def _record(kind: type[Any], row: sqlite3.Row) -> Any:
    return kind(**{field.name: row[field.name] for field in fields(kind)})
