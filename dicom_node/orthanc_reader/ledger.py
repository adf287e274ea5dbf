"""What the reader knows of an Orthanc, kept in spool/orthanc.db so that a kill at any point repeats or loses no study.

    source      one Orthanc, by URL: the cursor into /changes, the change it stands on (to notice another database),
                and the rules its administrator gave last
    study       (source, orthanc_id): dirty until everything Orthanc had at `fingerprint` is in the spool
    instance    (source, orthanc_id, file_uuid): in the spool with this digest
    handover    (source, orthanc_id, fingerprint): a study was handed over whole; unique

Rules that hold at every commit: the cursor moves in the transaction that marks its studies dirty, never before; an
instance is listed only after the spool has it on disk; a study stops being dirty only after all its instances are
listed. The database is identified (an Orthanc id is a plain hash of the PatientID) and lives left of the wall.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database, Migrations

from .client import OrthancInstance, OrthancStudy

migrations = Migrations("orthanc_ledger")


@migrations(name="0001_ledger")
def _create(db: Database) -> None:
    for statement in (
        """CREATE TABLE source (
            url TEXT PRIMARY KEY, cursor INTEGER NOT NULL DEFAULT 0, anchor TEXT NOT NULL DEFAULT '',
            scanned_at REAL NOT NULL DEFAULT 0, last_error TEXT NOT NULL DEFAULT '') STRICT""",
        """CREATE TABLE study (
            url TEXT NOT NULL, orthanc_id TEXT NOT NULL, dirty INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT 0,
            study_uid TEXT NOT NULL DEFAULT '', patient_id TEXT NOT NULL DEFAULT '',
            seen_update TEXT NOT NULL DEFAULT '', seen_at REAL NOT NULL DEFAULT 0,
            handed_update TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
            retry_at REAL NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (url, orthanc_id)) STRICT""",
        "CREATE INDEX study_dirty ON study (url, retry_at) WHERE dirty",
        """CREATE TABLE instance (
            url TEXT NOT NULL, orthanc_id TEXT NOT NULL, file_uuid TEXT NOT NULL, sha256 TEXT NOT NULL,
            PRIMARY KEY (url, orthanc_id, file_uuid)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE handover (
            url TEXT NOT NULL, orthanc_id TEXT NOT NULL, fingerprint TEXT NOT NULL, instances INTEGER NOT NULL,
            at REAL NOT NULL, PRIMARY KEY (url, orthanc_id, fingerprint)) STRICT, WITHOUT ROWID""",
    ):
        db.execute(statement)


@migrations(name="0002_rules")
def _rules(db: Database) -> None:
    db.execute("ALTER TABLE source ADD COLUMN rules TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE study ADD COLUMN withheld INTEGER NOT NULL DEFAULT 0")


@dataclass(frozen=True)
class LedgerStudy:
    """One row of `study`. States for people: waiting (dirty), withheld (dirty, not offered), handed over, gone."""

    orthanc_id: str
    dirty: bool
    gone: bool
    study_uid: str
    patient_id: str
    seen_update: str
    seen_at: float
    handed_update: str
    attempts: int
    reason: str
    withheld: bool


class Ledger:
    """The ledger of one Orthanc; safe for several processes (SQLite WAL, synchronous=FULL)."""

    def __init__(self, path: Path, url: str) -> None:
        self.url = url
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
            self._db.execute(f"PRAGMA {pragma}")
        migrations.apply(Database(self._db))
        path.chmod(0o600)
        self._db.execute("INSERT OR IGNORE INTO source (url) VALUES (?)", (url,))

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def cursor(self) -> tuple[int, str]:
        """(Seq of the last change taken in, what that change was)."""
        row = self._db.execute("SELECT cursor, anchor FROM source WHERE url = ?", (self.url,)).fetchone()
        return int(row["cursor"]), str(row["anchor"])

    def advance(self, studies: Iterable[str], cursor: int, anchor: str) -> None:
        """Mark studies dirty and move the cursor, both or neither."""
        with self._transaction():
            self._mark(studies)
            self._db.execute("UPDATE source SET cursor = ?, anchor = ? WHERE url = ?", (cursor, anchor, self.url))

    def mark(self, studies: Iterable[str]) -> None:
        """Mark studies dirty (a hint, or a scan's finding)."""
        with self._transaction():
            self._mark(studies)

    def _mark(self, studies: Iterable[str]) -> None:
        self._db.executemany(
            """INSERT INTO study (url, orthanc_id, dirty) VALUES (?, ?, 1)
               ON CONFLICT DO UPDATE SET dirty = 1, gone = 0, attempts = 0, retry_at = 0, reason = '', withheld = 0""",
            [(self.url, study) for study in studies],
        )

    # -- reconciliation -----------------------------------------------------------------------------------------------

    def scanned_at(self) -> float:
        return float(self._db.execute("SELECT scanned_at FROM source WHERE url = ?", (self.url,)).fetchone()[0])

    def reconcile(self, there: Iterable[OrthancStudy], now: float) -> tuple[int, int]:
        """Compare with all that Orthanc has: mark what differs, note what is gone -> (newly dirty, newly gone)."""
        there = list(there)
        with self._transaction():
            rows = self._db.execute(
                "SELECT orthanc_id, handed_update, dirty, gone FROM study WHERE url = ?", (self.url,)
            ).fetchall()
            known = {r["orthanc_id"]: r for r in rows}
            missed = [
                s.orthanc_id
                for s in there
                if s.orthanc_id not in known
                or known[s.orthanc_id]["gone"]
                or (not known[s.orthanc_id]["dirty"] and known[s.orthanc_id]["handed_update"] != s.last_update)
            ]
            self._mark(missed)
            gone = [i for i, r in known.items() if not r["gone"] and i not in {s.orthanc_id for s in there}]
            self._db.executemany(
                "UPDATE study SET gone = 1, dirty = 0 WHERE url = ? AND orthanc_id = ?", [(self.url, i) for i in gone]
            )
            self._db.execute("UPDATE source SET scanned_at = ? WHERE url = ?", (now, self.url))
        return len(missed), len(gone)

    # -- one study ----------------------------------------------------------------------------------------------------

    def due(self, now: float, limit: int = 200) -> list[LedgerStudy]:
        """Dirty studies whose time has come, those tried least first."""
        rows = self._db.execute(
            "SELECT * FROM study WHERE url = ? AND dirty AND retry_at <= ? ORDER BY attempts, retry_at, rowid LIMIT ?",
            (self.url, now, limit),
        )
        return [_row(r) for r in rows]

    def get(self, orthanc_id: str) -> LedgerStudy | None:
        row = self._db.execute(
            "SELECT * FROM study WHERE url = ? AND orthanc_id = ?", (self.url, orthanc_id)
        ).fetchone()
        return _row(row) if row else None

    def seen(self, study: OrthancStudy, now: float) -> float:
        """Note the state Orthanc shows; -> when this state was first seen (seconds since the epoch)."""
        with self._transaction():
            self._db.execute(
                """UPDATE study SET study_uid = ?, patient_id = ?,
                       seen_at = CASE WHEN seen_update = ? THEN seen_at ELSE ? END, seen_update = ?
                   WHERE url = ? AND orthanc_id = ?""",
                (study.study_uid, study.patient_id, study.last_update, now, study.last_update, self.url,
                 study.orthanc_id),
            )  # fmt: skip
        row = self.get(study.orthanc_id)
        return row.seen_at if row else now

    def has(self, instance: OrthancInstance) -> bool:
        return (
            self._db.execute(
                "SELECT 1 FROM instance WHERE url = ? AND orthanc_id = ? AND file_uuid = ?",
                (self.url, instance.orthanc_id, instance.file_uuid),
            ).fetchone()
            is not None
        )

    def add_instances(self, taken: Iterable[tuple[OrthancInstance, str]]) -> None:
        """List instances that the spool has on disk, with their SHA-256."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO instance (url, orthanc_id, file_uuid, sha256) VALUES (?, ?, ?, ?)",
                [(self.url, i.orthanc_id, i.file_uuid, sha256) for i, sha256 in taken],
            )

    def handed_over(self, study: OrthancStudy, instances: int, now: float) -> bool:
        """Close a study at the state that was pulled; -> False when this very state had been handed over before."""
        with self._transaction():
            fresh = self._db.execute(
                "INSERT OR IGNORE INTO handover (url, orthanc_id, fingerprint, instances, at) VALUES (?, ?, ?, ?, ?)",
                (self.url, study.orthanc_id, study.last_update, instances, now),
            ).rowcount
            self._db.execute(
                """UPDATE study SET dirty = 0, handed_update = ?, attempts = 0, reason = '', withheld = 0
                   WHERE url = ? AND orthanc_id = ?""",
                (study.last_update, self.url, study.orthanc_id),
            )
        return bool(fresh)

    def gone(self, orthanc_id: str) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE study SET gone = 1, dirty = 0 WHERE url = ? AND orthanc_id = ?", (self.url, orthanc_id)
            )

    # -- what Orthanc's administrator offers ---------------------------------------------------------------------------

    def rules(self) -> str:
        """What was kept last; "" when this Orthanc never gave any."""
        return str(self._db.execute("SELECT rules FROM source WHERE url = ?", (self.url,)).fetchone()[0])

    def keep_rules(self, text: str) -> None:
        """Keep new rules; what the old ones withheld is looked at again."""
        with self._transaction():
            self._db.execute("UPDATE source SET rules = ? WHERE url = ?", (text, self.url))
            self._db.execute("UPDATE study SET retry_at = 0 WHERE url = ? AND withheld", (self.url,))

    def withhold(self, orthanc_id: str, retry_at: float, reason: str) -> None:
        """Leave a study alone that is not offered; its labels or age may change, so look again at `retry_at`."""
        with self._transaction():
            self._db.execute(
                "UPDATE study SET withheld = 1, retry_at = ?, reason = ? WHERE url = ? AND orthanc_id = ?",
                (retry_at, reason, self.url, orthanc_id),
            )

    def later(self, orthanc_id: str, retry_at: float, reason: str = "", failed: bool = False) -> None:
        """Look at this study again at `retry_at`."""
        with self._transaction():
            self._db.execute(
                "UPDATE study SET retry_at = ?, reason = ?, attempts = attempts + ? WHERE url = ? AND orthanc_id = ?",
                (retry_at, reason, int(failed), self.url, orthanc_id),
            )

    def counts(self) -> dict[str, int]:
        """{waiting, handed_over, withheld, gone, instances} for the status."""
        row = self._db.execute(
            """SELECT coalesce(sum(dirty AND NOT withheld), 0) AS waiting,
                      coalesce(sum(NOT dirty AND NOT gone), 0) AS handed_over,
                      coalesce(sum(dirty AND withheld), 0) AS withheld,
                      coalesce(sum(gone), 0) AS gone FROM study WHERE url = ?""",
            (self.url,),
        ).fetchone()
        instances = self._db.execute("SELECT count(*) FROM instance WHERE url = ?", (self.url,)).fetchone()[0]
        return {**dict(row), "instances": instances}

    def note_error(self, sentence: str) -> None:
        """Keep the last error for the status ("" clears it); never holds an identified value."""
        with self._transaction():
            self._db.execute("UPDATE source SET last_error = ? WHERE url = ?", (sentence, self.url))

    def last_error(self) -> str:
        return str(self._db.execute("SELECT last_error FROM source WHERE url = ?", (self.url,)).fetchone()[0])


def _row(row: sqlite3.Row) -> LedgerStudy:
    return LedgerStudy(
        orthanc_id=row["orthanc_id"],
        dirty=bool(row["dirty"]),
        gone=bool(row["gone"]),
        study_uid=row["study_uid"],
        patient_id=row["patient_id"],
        seen_update=row["seen_update"],
        seen_at=row["seen_at"],
        handed_update=row["handed_update"],
        attempts=row["attempts"],
        reason=row["reason"],
        withheld=bool(row["withheld"]),
    )


def ledger_path(spool: Path) -> Path:
    return spool / "orthanc.db"


def now() -> float:
    return time.time()
