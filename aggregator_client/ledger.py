"""What a site has answered: the same request gets the same answer again, another one for the same round gets none.

One table in federation/site.db and one file a kept answer. An answer is kept until a later round of the same run is answered:
so a coordinator that was killed and asks again gets its update without a second training.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from aggregator_client.errors import RefusedError
from dicom_node.database import connect

migrations = Migrations("aggregator_client.site")


@migrations()
def m001_answered(db: Any) -> None:
    db.execute(
        """CREATE TABLE answered(
             project TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
             answer BLOB, at REAL NOT NULL, PRIMARY KEY(project, run, round, kind)) WITHOUT ROWID"""
    )


class Ledger:
    """`request` is the hex SHA-256 of a request's plaintext, `answer` the sealed bytes that left for it."""

    def __init__(self, folder: Path) -> None:
        self._db = connect(folder / "site.db", migrations)

    def close(self) -> None:
        self._db.close()

    def answered(self, project: str, run: str, number: int, kind: str, request: str) -> bytes | None:
        """The kept answer, or None for a new request.

        Raises RefusedError for a round that has been passed, and for a second, different request for the same round.
        """
        row = self._db.execute(
            "SELECT request, answer FROM answered WHERE project = ? AND run = ? AND round = ? AND kind = ?",
            (project, run, number, kind),
        ).fetchone()
        if row is not None and row["request"] != request:
            raise RefusedError(
                f"Round {number} was asked for a second time with another model or other settings: this site answers a round"
                " once, so the coordinator has to start a new run."
            )
        if row is not None and row["answer"] is not None:
            return bytes(row["answer"])
        (latest,) = self._db.execute(
            "SELECT max(round) FROM answered WHERE project = ? AND run = ?", (project, run)
        ).fetchone()
        if latest is not None and number < latest:
            raise RefusedError(
                f"Round {number} has been passed here (round {latest} was answered): it is not done again."
            )
        return None

    def keep(self, project: str, run: str, number: int, kind: str, request: str, answer: bytes) -> None:
        """Remember an answer before it leaves; the answers of earlier rounds are forgotten, their digests stay."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "INSERT OR REPLACE INTO answered VALUES(?, ?, ?, ?, ?, ?, ?)",
            (project, run, number, kind, request, answer, time.time()),
        )
        self._db.execute(
            "UPDATE answered SET answer = NULL WHERE project = ? AND (run != ? OR round < ?)", (project, run, number)
        )
        self._db.execute("COMMIT")
