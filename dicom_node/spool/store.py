"""Reading the spool and moving its studies along: what workers, the daemon, and the command line use.

    spool = Spool(config.storage.spool)
    for key in spool.complete_studies(time.time(), quiet_seconds=30):
        study = spool.study(key)
        for instance in spool.instances(key):
            part10 = spool.read(instance)
        spool.finish_study(key, study.generation, "deidentified")

States of a study: receiving → complete → deidentified | excluded | quarantined; an instance that arrives late takes it back
to receiving with a new generation, so that a worker that finished the old one cannot close the new one.
States of an instance: received; conflict (kept beside other bytes of its SOP Instance UID) and quarantined are never part of a
study; purged has no bytes any more.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import InputError, StorageError
from dicom_node.spool import part10, segment
from dicom_node.spool.database import DATABASE_ERRORS, WriteLock, told, transaction
from dicom_node.spool.digest import Digest
from dicom_node.spool.header import DataSetError, scan, valid_uid
from dicom_node.spool.ingest import Incoming, Ingest
from dicom_node.spool.unhashed import digest_at

# What the archive told (IAN), or else the modality's steps in sum; NULL, and so never reached, while a step is open.
_TOLD = (
    "SELECT coalesce(max(CASE WHEN e.source='IAN' THEN e.instances END),"
    " CASE WHEN count(*) = count(e.instances) THEN sum(e.instances) END) FROM expectations e"
    " WHERE e.study_uid=studies.study_uid"
)
STUDY_STATES = ("receiving", "complete", "deidentified", "excluded", "quarantined")


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """A row of `instances`. `sha256` is of the data set, which starts `data_offset` bytes into the Part 10 file; it is ''
    until the receiver has time to compute it (`dicom_node.spool.unhashed`)."""

    id: int
    sop_uid: str
    study_key: str
    series_uid: str
    sop_class: str
    transfer_syntax: str
    modality: str
    segment: str
    offset: int
    length: int
    data_offset: int
    sha256: str
    calling_ae: str
    received_at: float
    duplicate_of: int | None
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A row of `studies` (identified)."""

    study_key: str
    study_uid: str
    patient_id: str
    accession: str
    first_at: float
    last_at: float
    instances: int
    expected: int | None
    state: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """What `fedpacs node status` shows; holds no identified value."""

    studies: dict[str, int]
    instances: dict[str, int]
    bytes: int
    oldest_waiting_s: float | None
    peers: dict[str, dict[str, int]]
    free_mb: int


class Spool:
    """A spool folder. Opens and migrates spool.db; raises StorageError where that fails. One per thread."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._ingest = Ingest(self.root)
        self.db: sqlite3.Connection = self._ingest.db
        self._lock: WriteLock = self._ingest.lock

    def close(self) -> None:
        self._ingest.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- instances ----------------------------------------------------------------------------------------------------

    def instance(self, instance_id: int) -> StoredInstance:
        row = self.db.execute("SELECT * FROM instances WHERE id=?", (instance_id,)).fetchone()
        if row is None:
            raise InputError(f"The spool has no instance {instance_id}; list them with `fedpacs node status`.")
        return StoredInstance(*row)

    def instances(self, study_key: str, state: str = "received") -> list[StoredInstance]:
        """The instances of a study in one state, in the order in which they came."""
        query = "SELECT * FROM instances WHERE study_key=? AND state=? ORDER BY id"
        return [StoredInstance(*row) for row in self.db.execute(query, (study_key, state))]

    def find(self, sop_uid: str) -> list[StoredInstance]:
        """Every instance kept under a SOP Instance UID: one, unless senders disagreed about its bytes."""
        query = "SELECT * FROM instances WHERE sop_uid=? AND state<>'purged' ORDER BY id"
        return [StoredInstance(*row) for row in self.db.execute(query, (sop_uid,))]

    def set_aside(self, state: str = "quarantined") -> list[StoredInstance]:
        """Instances kept but not part of any study: `quarantined` or `conflict`."""
        return [
            StoredInstance(*r) for r in self.db.execute("SELECT * FROM instances WHERE state=? ORDER BY id", (state,))
        ]

    def read(self, instance: StoredInstance | int) -> bytes:
        """The complete Part 10 file. Raises StorageError when its bytes are gone or are not the ones received."""
        row = self.instance(instance) if isinstance(instance, int) else instance
        try:
            with open(self._segment(row), "rb") as file:
                data = os.pread(file.fileno(), row.length, row.offset)
                while 0 < len(data) < row.length:  # one pread gives at most 2 GiB
                    more = os.pread(file.fileno(), row.length - len(data), row.offset + len(data))
                    if not more:
                        break
                    data += more
        except OSError as error:
            raise StorageError(
                f"Instance {row.id} cannot be read from {row.segment} ({error.strerror}); check the disk."
            ) from error
        wanted = row.sha256 or digest_at(self.root / "segments", (row.segment, row.offset, row.length, row.data_offset))
        if hashlib.sha256(memoryview(data)[row.data_offset :]).hexdigest() != wanted:
            raise StorageError(f"Instance {row.id} in {row.segment} is damaged; receive it again, and check the disk.")
        return data

    @contextmanager
    def open(self, instance: StoredInstance | int) -> Iterator[memoryview]:
        """The Part 10 file mapped into memory, unchecked: for objects too large to read."""
        row = self.instance(instance) if isinstance(instance, int) else instance
        start = row.offset - row.offset % mmap.ALLOCATIONGRANULARITY
        skip = row.offset - start
        try:
            with open(self._segment(row), "rb") as file:
                mapped = mmap.mmap(file.fileno(), skip + row.length, prot=mmap.PROT_READ, offset=start)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"Instance {row.id} cannot be read from {row.segment} ({error}); check the disk."
            ) from error
        with mapped, memoryview(mapped) as whole, whole[skip:] as view:
            yield view

    def _segment(self, row: StoredInstance) -> Path:
        if row.state == "purged":
            raise StorageError(f"Instance {row.id} was purged; receive it again if it is needed.")
        return self.root / "segments" / row.segment

    def add_file(self, data: bytes | Path, *, source: str) -> StoredInstance:
        """Keep a Part 10 file as the receiver would; durable on return. Identical bytes return the instance kept first.

        Raises InputError when it is not a DICOM file with its identifying UIDs, StorageError when it cannot be kept.
        """
        raw = data.read_bytes() if isinstance(data, Path) else data
        item = _from_file(raw, source)
        self._ingest.commit([item])
        digest = item.digest.sha256()
        return next(i for i in self.find(item.header.sop_uid) if i.sha256 == digest)

    def add_files(self, files: Iterable[bytes], *, source: str) -> list[StoredInstance]:
        """`add_file` for several at the cost of one commit."""
        items = [_from_file(raw, source) for raw in files]
        self._ingest.commit(items)
        return [next(i for i in self.find(m.header.sop_uid) if i.sha256 == m.digest.sha256()) for m in items]

    # -- studies ------------------------------------------------------------------------------------------------------

    def study(self, study_key: str) -> StudyRow:
        row = self.db.execute("SELECT * FROM studies WHERE study_key=?", (study_key,)).fetchone()
        if row is None:
            raise InputError(f"The spool has no study with key {study_key}; list them with `fedpacs node status`.")
        return StudyRow(*row)

    def studies(self, state: str | None = None) -> list[StudyRow]:
        where, args = ("", ()) if state is None else (" WHERE state=?", (state,))
        return [StudyRow(*row) for row in self.db.execute(f"SELECT * FROM studies{where} ORDER BY first_at", args)]

    def complete_studies(self, now: float, quiet_seconds: float) -> list[str]:
        """Mark as complete what is whole or has been quiet for long enough; returns their study keys."""
        with self._transaction() as db:
            rows = db.execute(
                "UPDATE studies SET state='complete' WHERE state='receiving' AND (last_at<=? OR instances>=expected"
                f" OR instances>=({_TOLD})) RETURNING study_key",
                (now - quiet_seconds,),
            ).fetchall()
        return [key for (key,) in rows]

    def expect(self, study_key: str, instances: int) -> None:
        """How many instances the study will have (from MPPS, IAN or a query): it is complete once they are here."""
        with self._transaction() as db:
            db.execute("UPDATE studies SET expected=? WHERE study_key=?", (instances, study_key))

    def finish_study(self, study_key: str, generation: int, state: str, reason: str = "") -> bool:
        """Move a complete study on; False when instances arrived since `generation` was read, so it must be done again."""
        if state not in STUDY_STATES:
            raise ValueError(f"unknown study state {state!r}")
        with self._transaction() as db:
            done = db.execute(
                "UPDATE studies SET state=?, reason=? WHERE study_key=? AND generation=? AND state<>'receiving'",
                (state, reason, study_key, generation),
            )
            return done.rowcount == 1

    def reopen(self, study_key: str) -> None:
        """Send a study through the workers once more (a released quarantine, a new policy, labels that came late)."""
        with self._transaction() as db:
            db.execute(
                "UPDATE studies SET state='complete', generation=generation+1, reason='' WHERE study_key=?",
                (study_key,),
            )

    def purge(self, study_key: str, generation: int | None = None) -> int:
        """Erase the identified bytes of a study and forget who it was of; returns how many instances were erased.

        With `generation`, nothing is erased when an instance arrived since that generation was read, or work is going on.
        """
        with self._transaction() as db:
            if generation is not None:
                current = db.execute("SELECT generation, state FROM studies WHERE study_key=?", (study_key,)).fetchone()
                if current is None or current[0] != generation or current[1] in ("receiving", "complete"):
                    return 0
            rows = db.execute(
                "UPDATE instances SET state='purged' WHERE study_key=? AND state<>'purged' RETURNING segment, offset, length",
                (study_key,),
            ).fetchall()
            db.execute("UPDATE studies SET patient_id='', accession='' WHERE study_key=?", (study_key,))
        for name, offset, length in rows:
            path = self.root / "segments" / name
            if path.exists():
                segment.erase(path, offset, length)
        self._drop_empty({name for name, _, _ in rows})
        return len(rows)

    def _drop_empty(self, names: Iterable[str]) -> None:
        query = "SELECT count(*) FROM instances WHERE segment=? AND state<>'purged'"
        for name in names:
            path = self.root / "segments" / name
            if path.exists() and segment.abandoned(path) and self.db.execute(query, (name,)).fetchone()[0] == 0:
                path.unlink()

    # -- labels -------------------------------------------------------------------------------------------------------

    def put_labels(self, rows: Iterable[tuple[str, str, str]], source: str) -> int:
        """Keep labels (accession number, name, value) until, or because, their study is here. Returns how many."""
        now = time.time()
        values = [(accession, name, value, source, now) for accession, name, value in rows]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO labels VALUES(?,?,?,?,?)", values)
        return len(values)

    def labels(self, accession: str) -> dict[str, str]:
        """{name: value} of a study, by its accession number."""
        return dict(self.db.execute("SELECT name, value FROM labels WHERE accession=?", (accession,)).fetchall())

    def studies_of(self, accession: str) -> list[StudyRow]:
        return [StudyRow(*r) for r in self.db.execute("SELECT * FROM studies WHERE accession=?", (accession,))]

    # -- counters -----------------------------------------------------------------------------------------------------

    def stats(self, now: float | None = None) -> SpoolStats:
        now = time.time() if now is None else now
        oldest = self.db.execute(
            "SELECT min(first_at) FROM studies WHERE state IN ('receiving', 'complete')"
        ).fetchone()[0]
        peers: dict[str, dict[str, int]] = defaultdict(dict)
        for ae, name, value in self.db.execute("SELECT ae, name, value FROM counters"):
            peers[ae][name] = value
        disk = os.statvfs(self.root)
        held = self.db.execute(
            "SELECT state, count(*), coalesce(sum(length), 0) FROM instances GROUP BY state"
        ).fetchall()
        return SpoolStats(
            studies=dict(self.db.execute("SELECT state, count(*) FROM studies GROUP BY state").fetchall()),
            instances={state: count for state, count, _ in held},
            bytes=sum(size for state, _, size in held if state != "purged"),
            oldest_waiting_s=None if oldest is None else max(0.0, now - oldest),
            peers=dict(peers),
            free_mb=disk.f_bavail * disk.f_frsize >> 20,
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with transaction(self.db, self._lock) as db:
                yield db
        except DATABASE_ERRORS as error:
            raise StorageError(
                f"The spool's database in {self.root} cannot be written ({told(error)}); check the disk."
            ) from error


def _from_file(raw: bytes, source: str) -> Incoming:
    try:
        meta = part10.parse(raw)
        data = memoryview(raw)[meta.data_offset :]
        header = scan(data, meta.transfer_syntax)
    except (part10.Part10Error, DataSetError) as error:
        raise InputError(f"A file from {source} cannot be kept: {error}; send it again from its source.") from error
    if not (valid_uid(header.sop_uid) and valid_uid(header.sop_class)):
        raise InputError(
            f"A file from {source} has no valid SOP Class and Instance UID; send it again from its source."
        )
    reason = header.fault
    if not reason and not (valid_uid(header.study_uid) and valid_uid(header.series_uid)):
        reason = "the data set names no valid Study and Series Instance UID"
    digest = Digest([data])
    chunks: Sequence[memoryview] = [data]
    return Incoming(header, meta.transfer_syntax, source, digest, len(data), chunks, reason)
