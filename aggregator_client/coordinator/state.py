"""A run's durable state: runs/<digest>/state.db, one checkpoint a round, and the updates of the round under way.

    runs/<digest>/state.db                                   SQLite: run, rounds, site × round
    runs/<digest>/checkpoints/round-0000.safetensors         the global model before the first round, and after each
    runs/<digest>/checkpoints/round-0001.state               what the algorithm keeps beside it (safetensors)
    runs/<digest>/updates/<round>-<site>.update              received and proven, until the round's checkpoint stands

A checkpoint's file is whole or absent, and a round is closed in the database only after its file is on disk: so after a kill
at any moment the files say what is still to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aggregator_client.coordinator.migrations import migrations
from aggregator_client.coordinator.rounds import best_model
from aggregator_client.errors import StateError
from aggregator_client.messages import Message
from dicom_node.database import connect, transaction
from trainer.errors import WeightsError
from trainer.weights import Weights, from_bytes, load, save


@dataclass(frozen=True)
class RunFacts:
    """The run as a whole. `state`: running, stopped (resume goes on), finished. `reason`: why it stopped."""

    id: str
    digest: str
    project: str
    algorithm: str
    rounds: int
    started_at: float
    ended_at: float | None
    state: str
    reason: str


@dataclass(frozen=True)
class RoundFacts:
    """One round. `state`: gather, aggregate, done. `sha256`: of its checkpoint."""

    number: int
    state: str
    started_at: float
    ended_at: float | None
    sha256: str


@dataclass(frozen=True)
class SiteRound:
    """One site in one round; round `rounds + 1` is the final evaluation.

    state: asked, accepted, refused, failed, away. seconds: the site's training. loss, metrics: `loss` of its training;
    metrics of the model it was given (the round before's) on its own held-out patients. bytes_in, bytes_out: as sealed,
    seen from the coordinator.
    """

    round: int
    site: str
    state: str
    reason: str = ""
    cases: int = 0
    seconds: float = 0.0
    loss: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    attempts: int = 0
    at: float = 0.0

    @property
    def metric(self) -> float | None:
        """The AUC, or Dice of a segmentation."""
        value = self.metrics.get("auc", self.metrics.get("dice"))
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class SiteFacts:
    """A member: when it was last seen (seconds since the epoch, 0 = never) and whether it is there now."""

    site: str
    online: bool
    last_seen: float


@dataclass(frozen=True)
class Candidate:
    """A round's model before the vote on it. `base`, `candidate`: hex SHA-256; outcome: "", accepted, rejected."""

    round: int
    base: str
    candidate: str
    voters: tuple[str, ...]
    outcome: str


@dataclass(frozen=True)
class Ballot:
    """A site's vote: accept, reject, abstain; `statement`: as it was signed (aggregator_client.votes)."""

    round: int
    site: str
    vote: str
    reason: str
    statement: bytes


class RunState:
    """The state of one run. Open it read-only to look at a run while it goes on."""

    def __init__(self, folder: Path, readonly: bool = False) -> None:
        self.folder = folder
        if readonly and not (folder / "state.db").exists():
            raise StateError(f"No run is in {folder}: start one with `fedpacs coordinator run PROJECT`.")
        self._db = connect(folder / "state.db", migrations, readonly=readonly)
        if readonly and not self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sites'").fetchone()[0]:
            self._db.close()
            raise StateError(f"The run in {folder} is only just starting: look again in a moment.")

    def close(self) -> None:
        self._db.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def run(self) -> RunFacts | None:
        row = self._db.execute("SELECT * FROM run").fetchone()
        return RunFacts(**dict(row)) if row else None

    def rounds(self) -> list[RoundFacts]:
        return [RoundFacts(**dict(row)) for row in self._db.execute("SELECT * FROM rounds ORDER BY number")]

    def table(self) -> list[SiteRound]:
        """Every site in every round, by round and site: the status table."""
        rows = self._db.execute("SELECT * FROM site_rounds ORDER BY round, site")
        return [SiteRound(**{**dict(row), "metrics": json.loads(row["metrics"])}) for row in rows]

    def sites(self) -> list[SiteFacts]:
        rows = self._db.execute("SELECT * FROM sites ORDER BY site")
        return [SiteFacts(row["site"], bool(row["online"]), row["last_seen"]) for row in rows]

    def site_scores(self) -> dict[int, dict[str, float]]:
        """By closed round and site: the metric of the model it began with, on the site's own held-out patients.

        A round under way is left out: half of its answers must decide nothing, or a resumed run would go another way.
        """
        found: dict[int, dict[str, float]] = {}
        closed = {one.number for one in self.rounds() if one.state in ("done", "evaluated")}
        for cell in self.table():
            if cell.round in closed and cell.state == "accepted" and cell.metric is not None:
                found.setdefault(cell.round, {})[cell.site] = cell.metric
        return found

    def model_scores(self) -> dict[int, float]:
        """By model (the number of the round that made it): the mean over the sites that scored it."""
        last = self.last_checkpoint()  # the final evaluation, whatever its number, is of that model
        return {min(number - 1, last): sum(s.values()) / len(s) for number, s in self.site_scores().items()}

    def kept_model(self, keep: str = "last") -> int:
        """The number of the model that counts: the last one, or the one with the best mean metric."""
        best = best_model(self.model_scores()) if keep == "best" else -1
        return best if best >= 0 else self.last_checkpoint()

    def checkpoint_file(self, number: int) -> Path:
        return self.folder / "checkpoints" / f"round-{number:04d}.safetensors"

    def last_checkpoint(self) -> int:
        """The last round that is closed and whose model is on disk; -1 before the first model."""
        done = [facts.number for facts in self.rounds() if facts.state == "done"]
        return max(done, default=-1)

    def model(self, number: int) -> Weights:
        """The global model after round `number`. Raises StateError when its file is damaged."""
        file = self.checkpoint_file(number)
        (wanted,) = self._db.execute("SELECT sha256 FROM rounds WHERE number = ?", (number,)).fetchone()
        try:
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() != wanted:
                raise WeightsError("another digest")
            return from_bytes(data)
        except (OSError, WeightsError):
            raise StateError(f"The checkpoint {file} is missing or damaged: restore it from a copy.") from None

    def strategy_state(self, number: int) -> Weights:
        file = self.checkpoint_file(number).with_suffix(".state")
        return load(file) if file.exists() else {}

    # -- writing ------------------------------------------------------------------------------------------------------

    def start(self, digest: str, project: str, algorithm: str, rounds: int) -> RunFacts:
        """Begin a run: its id is drawn here once and kept through every resume."""
        facts = RunFacts(uuid.uuid4().hex[:16], digest, project, algorithm, rounds, time.time(), None, "running", "")
        columns = asdict(facts)
        self._db.execute(
            f"INSERT INTO run({', '.join(columns)}) VALUES({', '.join('?' * len(columns))})", tuple(columns.values())
        )
        return facts

    def set_state(self, state: str, reason: str = "") -> None:
        ended = None if state == "running" else time.time()
        self._db.execute("UPDATE run SET state = ?, reason = ?, ended_at = ?", (state, reason, ended))

    def open_round(self, number: int) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO rounds(number, state, started_at, ended_at, sha256) VALUES(?, 'gather', ?, NULL, '')",
            (number, time.time()),
        )

    def close_round(self, number: int, model: Weights, strategy_state: Weights | None = None) -> None:
        """Put the model on disk, then close the round, then forget its updates."""
        file = self.checkpoint_file(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        if strategy_state:
            save(file.with_suffix(".state"), strategy_state)
        digest = save(file, model)
        _sync_folder(file.parent)
        self._db.execute(
            "UPDATE rounds SET state = 'done', ended_at = ?, sha256 = ? WHERE number = ?", (time.time(), digest, number)
        )
        for update in (self.folder / "updates").glob("*.update"):
            update.unlink()

    def end_evaluation(self, number: int) -> None:
        """Close a step that makes no model of its own: the final evaluation and what follows it."""
        self._db.execute("UPDATE rounds SET state = 'evaluated', ended_at = ? WHERE number = ?", (time.time(), number))
        for update in (self.folder / "updates").glob(f"{number:04d}-*.update"):
            update.unlink()

    def put(self, entry: SiteRound) -> None:
        """Write one cell of the table."""
        columns: dict[str, Any] = {**asdict(entry), "metrics": json.dumps(dict(entry.metrics)), "at": time.time()}
        self._db.execute(
            f"INSERT OR REPLACE INTO site_rounds({', '.join(columns)}) VALUES({', '.join('?' * len(columns))})",
            tuple(columns.values()),
        )

    def see(self, sites: list[SiteFacts]) -> None:
        with transaction(self._db) as db:
            db.executemany(
                "INSERT OR REPLACE INTO sites(site, online, last_seen) VALUES(?, ?, ?)",
                [(one.site, int(one.online), one.last_seen) for one in sites],
            )

    def cell(self, number: int, site: str) -> SiteRound:
        """The cell as it stands, or a fresh one."""
        for entry in self.table():
            if (entry.round, entry.site) == (number, site):
                return entry
        return SiteRound(number, site, "asked")

    # -- votes on candidates ------------------------------------------------------------------------------------------

    def open_candidate(self, number: int, base: str, candidate: str, voters: list[str]) -> None:
        """Begin the vote. Raises StateError when another candidate of this round was voted on before."""
        self._db.execute(
            "INSERT OR IGNORE INTO candidates VALUES(?, ?, ?, ?, '')", (number, base, candidate, json.dumps(voters))
        )
        if (found := self.candidate(number)).candidate != candidate or list(found.voters) != voters:
            raise StateError(
                f"The vote of round {number} was begun on another candidate: sign a new version of the project."
            )

    def close_candidate(self, number: int, accepted: bool) -> None:
        outcome = "accepted" if accepted else "rejected"
        self._db.execute("UPDATE candidates SET outcome = ? WHERE round = ?", (outcome, number))

    def put_ballot(self, number: int, site: str, vote: str, reason: str, statement: bytes) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO ballots VALUES(?, ?, ?, ?, ?)", (number, site, vote, reason, statement)
        )

    def candidates(self) -> list[Candidate]:
        if not self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'candidates'").fetchone()[0]:
            return []  # a run of an earlier version, opened to look at it
        rows = self._db.execute("SELECT * FROM candidates ORDER BY round")
        return [Candidate(**{**dict(row), "voters": tuple(json.loads(row["voters"]))}) for row in rows]

    def candidate(self, number: int) -> Candidate:
        return next(one for one in self.candidates() if one.round == number)

    def ballots(self, number: int) -> list[Ballot]:
        rows = self._db.execute("SELECT * FROM ballots WHERE round = ? ORDER BY site", (number,))
        return [Ballot(**dict(row)) for row in rows]

    def bundle(self, number: int) -> bytes:
        """The round's signed ballots, as they travel."""
        return b"\n".join(bytes(one.statement) for one in self.ballots(number))

    def lost_in_a_row(self) -> int:
        """How many of the last candidates were voted down one after the other."""
        lost = 0
        for one in self.candidates():
            lost = lost + 1 if one.outcome == "rejected" else 0 if one.outcome else lost
        return lost

    # -- updates of the round under way -------------------------------------------------------------------------------

    def keep_update(self, number: int, site: str, message: Message) -> None:
        """Put a proven update on disk; whole or absent."""
        file = self._update_file(number, site)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as handle:
            handle.write(message.encode())
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(file)
        _sync_folder(file.parent)

    def update(self, number: int, site: str) -> Message | None:
        file = self._update_file(number, site)
        return Message.decode(file.read_bytes()) if file.exists() else None

    def _update_file(self, number: int, site: str) -> Path:
        """The site's name is hashed: any name is then a safe file name."""
        name = hashlib.sha256(site.encode()).hexdigest()[:16]
        return self.folder / "updates" / f"{number:04d}-{name}.update"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["Ballot", "Candidate", "RoundFacts", "RunFacts", "RunState", "SiteFacts", "SiteRound"]
