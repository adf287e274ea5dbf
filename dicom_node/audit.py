"""The audit log: append-only, hash-chained, from the first C-STORE to the last update that left the hospital."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from dicom_node.database import connect, transaction
from dicom_node.errors import IntegrityError

GENESIS = "0" * 64
migrations = Migrations("dicom_node.audit")


@migrations()
def m001_records(db: Any) -> None:
    db.execute(
        "CREATE TABLE records(seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, facts TEXT NOT NULL,"
        " prev TEXT NOT NULL, hash TEXT NOT NULL)"
    )
    db.execute("CREATE INDEX records_kind ON records(kind, seq)")
    # What a program of ours cannot do by mistake; a person with the file can, which is what the chain is for.
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER records_no_{verb.lower()} BEFORE {verb} ON records"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


@migrations()
def m002_head(db: Any) -> None:
    """The length and last hash, kept beside the records so that a cut-off end shows."""
    db.execute("CREATE TABLE head(id INTEGER PRIMARY KEY CHECK(id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL)")
    row = db.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
    db.execute("INSERT INTO head VALUES(1, ?, ?)", tuple(row) if row else (0, GENESIS))


@dataclass(frozen=True)
class AuditRecord:
    """One link: ``hash`` = SHA-256 of ``prev`` and the canonical JSON of [seq, at, kind, facts]."""

    seq: int
    at: float
    kind: str
    facts: dict[str, Any]
    prev: str
    hash: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """Whether the chain is whole; when not, the number of the first record that does not fit, and why."""

    ok: bool
    records: int
    head: str
    first_broken: int | None = None
    reason: str = ""


def link(prev: str, seq: int, at: float, kind: str, facts: dict[str, Any]) -> str:
    """The hash of one record."""
    body = json.dumps(
        [seq, at, kind, facts], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(prev.encode() + body.encode()).hexdigest()


class AuditLog:
    """audit.db. Facts hold pseudonyms, counts and digests: never an identified value.

    Any number of processes may append; each append is one synchronous transaction, so the chain never forks.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        self.path = Path(path)
        self._db = connect(self.path, migrations, readonly=readonly)

    def close(self) -> None:
        self._db.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """For watching whether others append (PRAGMA data_version)."""
        return self._db

    def append(self, kind: str, **facts: Any) -> AuditRecord:
        """Append one record and return it once it is on disk. Facts must be JSON values (no NaN)."""
        facts = json.loads(json.dumps(facts, allow_nan=False))
        with transaction(self._db) as db:
            seq, prev = db.execute("SELECT seq, hash FROM head").fetchone()
            at = round(time.time(), 6)
            record = AuditRecord(seq + 1, at, kind, facts, prev, link(prev, seq + 1, at, kind, facts))
            text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
            db.execute("INSERT INTO records VALUES(?, ?, ?, ?, ?, ?)", (record.seq, at, kind, text, prev, record.hash))
            db.execute("UPDATE head SET seq = ?, hash = ?", (record.seq, record.hash))
        return record

    def records(self, kind: str | None = None, since: int = 0) -> Iterator[AuditRecord]:
        """Records after number `since`, all or those of one kind, oldest first."""
        rows = self._db.execute(
            "SELECT * FROM records WHERE seq > ?1 AND (?2 IS NULL OR kind = ?2) ORDER BY seq", (since, kind)
        )
        for row in rows:
            yield AuditRecord(row["seq"], row["at"], row["kind"], json.loads(row["facts"]), row["prev"], row["hash"])

    def newest(self, kind: str, limit: int, offset: int = 0) -> list[AuditRecord]:
        """The newest records of one kind, newest first."""
        rows = self._db.execute(
            "SELECT * FROM records WHERE kind = ? ORDER BY seq DESC LIMIT ? OFFSET ?", (kind, limit, offset)
        )
        return [
            AuditRecord(row["seq"], row["at"], row["kind"], json.loads(row["facts"]), row["prev"], row["hash"])
            for row in rows
        ]

    def sums(self, kind: str, fact: str, by: str) -> dict[str, tuple[int, int]]:
        """{value of the fact `by`: (how many records of the kind, the sum of `fact` over them)}."""
        rows = self._db.execute(
            "SELECT json_extract(facts, ?2), count(*), coalesce(sum(json_extract(facts, ?3)), 0) FROM records"
            " WHERE kind = ?1 GROUP BY 1",
            (kind, f"$.{by}", f"$.{fact}"),
        )
        return {str(row[0] or ""): (int(row[1]), int(row[2])) for row in rows}

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest record: note it elsewhere to prove later that nothing was taken off the end."""
        seq, digest = self._db.execute("SELECT seq, hash FROM head").fetchone()
        return seq, digest

    def verify(self) -> Verdict:
        """Walk the whole chain."""
        seq_head, hash_head = self.head()
        prev, count = GENESIS, 0
        for row in self._db.execute("SELECT * FROM records ORDER BY seq"):
            reason = _fault(row, count + 1, prev)
            if reason:
                return Verdict(False, count, prev, count + 1, reason)
            prev, count = row["hash"], count + 1
        if (count, prev) != (seq_head, hash_head):
            return Verdict(False, count, prev, count + 1, "records are missing from the end")
        return Verdict(True, count, prev)

    def require_whole(self) -> Verdict:
        """The verdict when the chain is whole; IntegrityError naming the first broken link when not."""
        return require_whole(self.verify(), self.path)


def require_whole(verdict: Verdict, path: Path) -> Verdict:
    """A verdict on the log at `path` when it is good. Raises IntegrityError naming the first broken record."""
    if not verdict.ok:
        raise IntegrityError(
            f"The audit log {path} is broken at record {verdict.first_broken}: {verdict.reason};"
            " restore it from a backup and find out who changed it."
        )
    return verdict


def _fault(row: Any, seq: int, prev: str) -> str:
    if row["seq"] != seq:
        return f"record {seq} is missing"
    if row["prev"] != prev:
        return "it does not follow the record before it"
    try:
        facts = json.loads(row["facts"])
    except ValueError:
        return "its facts are not JSON"
    if row["hash"] != link(prev, seq, row["at"], row["kind"], facts):
        return "its content was changed"
    return ""
