"""A site's journal of secure aggregation: what it drew and what it answered, on disk before it is sent.

    federation/secagg.db
      attempts(project, run, round, nonce, base, master, state)        state: open, agreed, ended, erased
      stages(attempt, stage, request, answer)
      votes(project, run, round, base)                                 on the candidate that a round from this base led to

An attempt at a round may be followed by another one as long as this site has agreed to no set of survivors in it: a site agrees
once for one model (and once more, in a later round, after each vote it cast on what came of it, as often as the project
allows). An opened sum has the agreement of more than two thirds of its sites, so those who agreed in one have agreed
in no other, and no combination of such sums leaves one site's update alone (the count is in docs/secure-aggregation.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from aggregator_client.errors import FederationError, RefusedError
from aggregator_client.secagg.transcript import Plan
from dicom_node.database import connect, transaction

migrations = Migrations("aggregator_client.secagg")
STAGES = ("advert", "shares", "masked", "agree", "unmask")


@migrations()
def m001_attempts(db: Any) -> None:
    db.execute(
        """CREATE TABLE attempts(
             id INTEGER PRIMARY KEY, project TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, nonce TEXT NOT NULL,
             base TEXT NOT NULL, master BLOB, state TEXT NOT NULL, UNIQUE(project, run, round, nonce))"""
    )
    db.execute(
        """CREATE TABLE stages(
             attempt INTEGER NOT NULL, stage TEXT NOT NULL, request BLOB NOT NULL, answer BLOB NOT NULL,
             PRIMARY KEY(attempt, stage)) WITHOUT ROWID"""
    )


@migrations()
def m002_votes(db: Any) -> None:
    db.execute(
        """CREATE TABLE votes(
             project TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, base TEXT NOT NULL,
             PRIMARY KEY(project, run, round)) WITHOUT ROWID"""
    )


class Journal:
    """The journal of all rounds of a site. `attempt` opens one; raises StorageError of dicom_node when the disk fails."""

    def __init__(self, folder: Path) -> None:
        self._db = connect(folder / "secagg.db", migrations)
        self._db.execute("PRAGMA secure_delete = ON")

    def close(self) -> None:
        self._db.close()

    def voted(self, project: str, run: str, number: int, base: str) -> None:
        """This site cast its vote on what the round made of `base`."""
        self._db.execute("INSERT OR REPLACE INTO votes VALUES(?, ?, ?, ?)", (project, run, number, base))

    def attempt(self, plan: Plan, again: int = 0) -> Attempt:
        """This plan's attempt, begun now or earlier. Raises RefusedError for a round passed or a base already used.

        again: so many earlier rounds of the run may have used the base, if this site voted on what each of them led to.
        """
        key = (plan.project, plan.run, plan.round, plan.nonce)
        with transaction(self._db) as db:
            found = db.execute(
                "SELECT id FROM attempts WHERE project = ? AND run = ? AND round = ? AND nonce = ?", key
            ).fetchone()
            if found is None:
                self._may_begin(db, plan, again)
                self._forget(db, "state IN ('open', 'agreed') AND project = ?", (plan.project,))
                db.execute(
                    "INSERT INTO attempts(project, run, round, nonce, base, master, state) VALUES(?, ?, ?, ?, ?, ?, 'open')",
                    (*key, plan.base, os.urandom(32)),
                )
                found = db.execute("SELECT last_insert_rowid() AS id").fetchone()
        return Attempt(self._db, int(found["id"]), self._forget)

    def _may_begin(self, db: Any, plan: Plan, again: int) -> None:
        agreed = "state IN ('agreed', 'ended') OR (state = 'erased' AND id IN (SELECT attempt FROM stages WHERE stage = 'agree'))"
        passed = db.execute(
            f"SELECT 1 FROM attempts WHERE project = ? AND run = ? AND round >= ? AND ({agreed})",
            (plan.project, plan.run, plan.round),
        ).fetchone()
        before = db.execute(
            f"SELECT DISTINCT run, round FROM attempts WHERE project = ? AND base = ? AND ({agreed})",
            (plan.project, plan.base),
        ).fetchall()
        voted = db.execute(
            "SELECT run, round FROM votes WHERE project = ? AND run = ? AND base = ?",
            (plan.project, plan.run, plan.base),
        ).fetchall()
        used = len(before) > again or not {tuple(row) for row in before} <= {tuple(row) for row in voted}
        if passed or used:
            what = (
                f"round {plan.round} has been passed here"
                if passed
                else "an update of this very model was summed before"
            )
            raise RefusedError(
                f"The plan is not followed, since {what}: two sums could be told apart by their difference."
            )

    @staticmethod
    def _forget(db: Any, where: str, values: tuple[Any, ...], state: str = "erased") -> None:
        """Erase the secrets; that the site agreed, and its last answer, stay."""
        keep = "('agree', 'unmask')" if state == "ended" else "('agree')"
        db.execute(
            f"DELETE FROM stages WHERE stage NOT IN {keep} AND attempt IN (SELECT id FROM attempts WHERE {where})",
            values,
        )
        db.execute(f"UPDATE attempts SET master = NULL, state = '{state}' WHERE {where}", values)


class Attempt:
    """One attempt at one round."""

    def __init__(self, db: Any, number: int, forget: Callable[..., None]) -> None:
        self._db, self._id, self._forget = db, number, forget

    @property
    def master(self) -> bytes:
        """Raises RefusedError when the attempt was given up or has ended."""
        (master,) = self._db.execute("SELECT master FROM attempts WHERE id = ?", (self._id,)).fetchone()
        if master is None:
            raise RefusedError("This attempt at the round has ended or was given up here: its secrets are erased.")
        return bytes(master)

    def kept(self, stage: str) -> tuple[bytes, bytes]:
        """(request, answer) of an earlier stage. Raises RefusedError when that stage was not done."""
        row = self._row(stage)
        if row is None:
            raise RefusedError(f"Secure aggregation skipped the stage {stage!r} here: the request is refused.")
        return bytes(row["request"]), bytes(row["answer"])

    def answer(self, stage: str, request: bytes, make: Callable[[], bytes]) -> bytes:
        """The kept answer to the same request, or a new one, durable before it is returned.

        Raises RefusedError for a second, different request, and whatever `make` raises, after erasing the round's secrets.
        """
        row = self._row(stage)
        if row is not None:
            if bytes(row["request"]) != request:
                raise RefusedError(
                    f"The stage {stage!r} was asked for twice in different words: answered is only the first."
                )
            return bytes(row["answer"])
        later = STAGES[STAGES.index(stage) + 1 :]
        if any(self._row(one) is not None for one in later):
            raise RefusedError(f"The stage {stage!r} of this round has been passed here: the request is refused.")
        try:
            made = make()
        except FederationError:
            self.give_up()
            raise
        with transaction(self._db) as db:
            db.execute("INSERT INTO stages VALUES(?, ?, ?, ?)", (self._id, stage, request, made))
            if stage == "agree":
                db.execute("UPDATE attempts SET state = 'agreed' WHERE id = ?", (self._id,))
            if stage == "unmask":
                self._forget(db, "id = ?", (self._id,), "ended")
        if stage == "unmask":
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the secrets stood in the write-ahead log too
        return made

    def give_up(self) -> None:
        """Erase the round's secrets."""
        with transaction(self._db) as db:
            self._forget(db, "id = ? AND state != 'ended'", (self._id,))
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _row(self, stage: str) -> Any:
        return self._db.execute(
            "SELECT request, answer FROM stages WHERE attempt = ? AND stage = ?", (self._id, stage)
        ).fetchone()
