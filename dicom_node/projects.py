"""Projects offered to this hospital and what it decided about each, keyed by the document's digest."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path

from dicom_node.database import connect, transaction
from dicom_node.errors import InputError, RefusedError
from dicom_node.records.schema import migrations

STATES = ("offered", "approved", "rejected", "suspended", "withdrawn")


@dataclass(frozen=True)
class ProjectRecord:
    """One project document as offered; ``document`` are its exact bytes, ``digest`` the SHA-256 of its canonical JSON."""

    digest: str
    name: str
    version: str
    document: bytes
    state: str
    decided_by: str
    role: str
    reason: str
    decided_at: float | None
    signature: str
    offered_at: float


class Projects:
    """The projects table of catalogue.db. What a document means belongs to aggregator_client.project."""

    def __init__(self, catalogue: Path, readonly: bool = False) -> None:
        self._db = connect(Path(catalogue), migrations, readonly=readonly)

    def close(self) -> None:
        self._db.close()

    def offer(self, digest: str, name: str, version: str, document: bytes) -> bool:
        """Remember an offered document; False when this digest is known already (its decision stands)."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO projects(digest, name, version, document, state, offered_at)"
            " VALUES(?, ?, ?, ?, 'offered', ?)",
            (digest, name, version, document, time.time()),
        ).rowcount
        return added > 0

    def get(self, digest: str) -> ProjectRecord | None:
        row = self._db.execute("SELECT * FROM projects WHERE digest = ?", (digest,)).fetchone()
        return ProjectRecord(**{field.name: row[field.name] for field in fields(ProjectRecord)}) if row else None

    def find(self, prefix: str) -> ProjectRecord:
        """The project whose digest starts with `prefix`. Raises InputError when none or several do."""
        found = [project for project in self.list() if project.digest.startswith(prefix)]
        if len(found) != 1:
            what = "No project" if not found else f"{len(found)} projects"
            raise InputError(f"{what} here with a digest that starts with {prefix!r}: see `fedpacs project list`.")
        return found[0]

    def list(self) -> list[ProjectRecord]:
        rows = self._db.execute("SELECT * FROM projects ORDER BY offered_at")
        return [ProjectRecord(**{field.name: row[field.name] for field in fields(ProjectRecord)}) for row in rows]

    def decide(
        self, digest: str, state: str, by: str, role: str, reason: str = "", signature: str = ""
    ) -> ProjectRecord:
        """Record the decision of a named person. Raises InputError for an unknown digest or state, or without a name."""
        if state not in STATES[1:]:
            raise InputError(f"{state!r} is no decision: choose one of {', '.join(STATES[1:])}.")
        if not by.strip():
            raise InputError("A decision needs the name of the person who takes it: give --by NAME.")
        with transaction(self._db) as db:
            changed = db.execute(
                "UPDATE projects SET state = ?, decided_by = ?, role = ?, reason = ?, decided_at = ?, signature = ?"
                " WHERE digest = ?",
                (state, by, role, reason, time.time(), signature, digest),
            ).rowcount
        record = self.get(digest)
        if not changed or record is None:
            raise InputError(f"No project with digest {digest[:12]} is known here: offer its file first.")
        return record

    def require_approved(self, digest: str) -> ProjectRecord:
        """The project when it stands approved; RefusedError naming its state when not."""
        record = self.get(digest)
        if record is None:
            raise RefusedError(
                f"The project with digest {digest[:12]} was never approved here (was the file changed?):"
                " read it with `fedpacs project show FILE` and approve it."
            )
        if record.state != "approved":
            raise RefusedError(
                f"The project {record.name} (digest {digest[:12]}) is {record.state} here:"
                " approve it with `fedpacs project approve` to take part."
            )
        return record
