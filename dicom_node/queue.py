"""A durable work queue in any of the node's SQLite files: claim, lease, retry with back-off, dead letter."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from dicom_node.database import connect, transaction

migrations = Migrations("dicom_node.queue")

LEASE_SECONDS = 600.0
MAX_ATTEMPTS = 6
FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 3600.0


@migrations()
def m001_jobs(db: Any) -> None:
    db.execute(
        """CREATE TABLE jobs(
             queue TEXT NOT NULL, key TEXT NOT NULL, payload TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL,
             due REAL NOT NULL, lease_until REAL NOT NULL, worker TEXT NOT NULL, token INTEGER NOT NULL,
             reason TEXT NOT NULL, version INTEGER NOT NULL, added_at REAL NOT NULL,
             PRIMARY KEY(queue, key)) WITHOUT ROWID"""
    )
    db.execute("CREATE INDEX jobs_due ON jobs(queue, state, due)")


@dataclass(frozen=True)
class Job:
    """A claimed piece of work; ``token`` proves the claim, so that a worker whose lease ran out changes nothing."""

    key: str
    payload: Any
    attempts: int
    token: int
    version: int


class WorkQueue:
    """One named queue. States: waiting → claimed → (gone | waiting again | dead). Keys are unique: putting one twice is
    one job; putting one that is being worked on makes it wait again afterwards, so no late news is lost."""

    def __init__(
        self,
        database: Path | sqlite3.Connection,
        name: str,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = database if isinstance(database, sqlite3.Connection) else connect(database, migrations)
        if isinstance(database, sqlite3.Connection):
            from dicom_node.database import migrate

            self._db.row_factory = sqlite3.Row
            migrate(self._db, migrations)
        self.name, self.max_attempts, self._now = name, max_attempts, clock

    def put(self, key: str, payload: Any = None, delay: float = 0.0) -> bool:
        """Ask for work; True when it was not waiting already. A dead job comes back to life."""
        text = json.dumps(payload)
        now = self._now()
        with transaction(self._db) as db:
            row = db.execute("SELECT state FROM jobs WHERE queue = ? AND key = ?", (self.name, key)).fetchone()
            if row is None:
                db.execute(
                    "INSERT INTO jobs VALUES(?, ?, ?, 'waiting', 0, ?, 0, '', 0, '', 1, ?)",
                    (self.name, key, text, now + delay, now),
                )
                return True
            if row["state"] == "dead":
                self._update(key, "state = 'waiting', attempts = 0, due = ?", now + delay)
            self._update(key, "payload = ?, version = version + 1", text)
            return row["state"] != "waiting"

    def claim(self, worker: str, lease_seconds: float = LEASE_SECONDS) -> Job | None:
        """The oldest due job, or one whose lease ran out; None when there is nothing to do."""
        now = self._now()
        with transaction(self._db) as db:
            row = db.execute(
                "SELECT * FROM jobs WHERE queue = ?1 AND ((state = 'waiting' AND due <= ?2)"
                " OR (state = 'claimed' AND lease_until <= ?2)) ORDER BY due, added_at LIMIT 1",
                (self.name, now),
            ).fetchone()
            if row is None:
                return None
            attempts = row["attempts"] + 1
            if attempts > self.max_attempts:  # its workers died every time: set it aside, go on with the next
                self._update(
                    row["key"], "state = 'dead', reason = ?", row["reason"] or "every worker that took it died"
                )
            else:
                self._update(
                    row["key"],
                    "state = 'claimed', attempts = ?, worker = ?, lease_until = ?, token = token + 1",
                    attempts,
                    worker,
                    now + lease_seconds,
                )
                return Job(row["key"], json.loads(row["payload"]), attempts, row["token"] + 1, row["version"])
        return self.claim(worker, lease_seconds)

    def release(self, worker: str) -> int:
        """Give back what a worker of this name held when it died, without waiting for its leases; returns how many."""
        with transaction(self._db) as db:
            return db.execute(
                "UPDATE jobs SET state = 'waiting', due = ? WHERE queue = ? AND worker = ? AND state = 'claimed'",
                (self._now(), self.name, worker),
            ).rowcount

    def renew(self, job: Job, lease_seconds: float = LEASE_SECONDS) -> bool:
        """Prolong the lease; False when the job is no longer this worker's."""
        with transaction(self._db):
            if not self._mine(job):
                return False
            self._update(job.key, "lease_until = ?", self._now() + lease_seconds)
            return True

    def done(self, job: Job) -> bool:
        """The work is finished; False when the job is no longer this worker's. Put again meanwhile, it waits again."""
        with transaction(self._db) as db:
            row = self._mine(job)
            if not row:
                return False
            if row["version"] != job.version:
                self._update(job.key, "state = 'waiting', attempts = 0, due = ?, reason = ''", self._now())
            else:
                db.execute("DELETE FROM jobs WHERE queue = ? AND key = ?", (self.name, job.key))
            return True

    def fail(self, job: Job, reason: str, retry_in: float | None = None) -> str:
        """The work failed: wait longer each time (doubling, with jitter), dead after `max_attempts`. Returns the new state.

        `reason` must hold no identified value.
        """
        with transaction(self._db):
            if not self._mine(job):
                return "lost"
            if job.attempts >= self.max_attempts:
                self._update(job.key, "state = 'dead', reason = ?", reason)
                return "dead"
            backoff = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (job.attempts - 1)) * random.uniform(
                0.8, 1.2
            )
            due = self._now() + (backoff if retry_in is None else retry_in)
            self._update(job.key, "state = 'waiting', reason = ?, due = ?", reason, due)
            return "waiting"

    def dead(self) -> list[tuple[str, str]]:
        """(key, reason) of every dead job."""
        rows = self._db.execute(
            "SELECT key, reason FROM jobs WHERE queue = ? AND state = 'dead' ORDER BY key", (self.name,)
        )
        return [(row["key"], row["reason"]) for row in rows]

    def known(self, key: str) -> bool:
        """Whether a job by that key is there, in any state."""
        query = "SELECT 1 FROM jobs WHERE queue = ? AND key = ?"
        return self._db.execute(query, (self.name, key)).fetchone() is not None

    def drop(self, key: str) -> None:
        """Forget a dead job (what it was for was dealt with otherwise)."""
        self._db.execute("DELETE FROM jobs WHERE queue = ? AND key = ? AND state = 'dead'", (self.name, key))

    def cancel(self, key: str) -> bool:
        """Forget a job that nobody works on (what it was for has happened otherwise); False when it is not waiting."""
        with transaction(self._db) as db:
            query = "DELETE FROM jobs WHERE queue = ? AND key = ? AND state = 'waiting'"
            return bool(db.execute(query, (self.name, key)).rowcount > 0)

    def requeue(self, key: str) -> bool:
        """Give a dead job a new life; False when there is none by that key."""
        with transaction(self._db) as db:
            row = db.execute(
                "SELECT 1 FROM jobs WHERE queue = ? AND key = ? AND state = 'dead'", (self.name, key)
            ).fetchone()
            if row is None:
                return False
            self._update(key, "state = 'waiting', attempts = 0, due = ?", self._now())
            return True

    def counts(self) -> dict[str, int]:
        rows = self._db.execute("SELECT state, count(*) FROM jobs WHERE queue = ? GROUP BY state", (self.name,))
        return {"waiting": 0, "claimed": 0, "dead": 0} | {row[0]: row[1] for row in rows}

    def _mine(self, job: Job) -> Any:
        return self._db.execute(
            "SELECT version FROM jobs WHERE queue = ? AND key = ? AND token = ? AND state = 'claimed'",
            (self.name, job.key, job.token),
        ).fetchone()

    def _update(self, key: str, assignments: str, *values: Any) -> None:
        self._db.execute(f"UPDATE jobs SET {assignments} WHERE queue = ? AND key = ?", (*values, self.name, key))
