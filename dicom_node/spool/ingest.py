"""Group commit: many instances, one write, one fdatasync, one transaction; only then may anybody be told "stored".

Order is the promise: bytes into a segment, fdatasync, rows committed, return. A crash before the return leaves at most whole
instances that nobody was promised (they are adopted at the next start) and never half of one.
"""

from __future__ import annotations

import hashlib
import mmap
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from dicom_node.errors import StorageError
from dicom_node.spool import part10
from dicom_node.spool.database import DATABASE_ERRORS, WriteLock, connect, told, transaction
from dicom_node.spool.digest import Digest
from dicom_node.spool.header import Header
from dicom_node.spool.segment import BLOCK, HEADER_SIZE, STAGE_BYTES, Buffer, SegmentWriter, StreamWriter, pack_header
from dicom_node.spool.slab import Slab
from dicom_node.spool.unhashed import PENDING, Place, Unhashed, settle


class Outcome(StrEnum):
    """What became of an instance whose bytes are safe."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the very same bytes were here already
    CONFLICT = "conflict"  # kept beside other bytes with the same SOP Instance UID, and flagged
    QUARANTINED = "quarantined"  # kept, but unfit to become part of a study


@dataclass(slots=True)
class Incoming:
    """An instance whose data set has arrived completely, in memory or already in a segment of its own."""

    header: Header
    transfer_syntax: str
    source: str
    digest: Digest  # of the data set
    length: int = 0  # of the data set
    chunks: Sequence[Buffer] = ()
    reason: str = ""  # why it goes to quarantine, if it does
    received_at: float = 0.0
    placed: LargeObject | None = None
    slab: Slab | None = None  # that the data set lies in, `data_at` bytes from its start: room for the record's head
    data_at: int = 0
    later: bool = False  # its SHA-256 is computed after the answer


def study_key(study_uid: str, patient_id: str) -> str:
    """One study of one patient. The same Study Instance UID under another Patient ID is another study."""
    return hashlib.sha256(f"{study_uid}\0{patient_id}".encode()).hexdigest()[:32]


_INSERT = """INSERT INTO instances(sop_uid, study_key, series_uid, sop_class, transfer_syntax, modality, segment, offset, length,
    data_offset, sha256, calling_ae, received_at, duplicate_of, state, reason) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"""
_STUDY = """INSERT INTO studies(study_key, study_uid, patient_id, accession, first_at, last_at, instances, expected, state,
        generation) VALUES(?,?,?,?,?,?,?,?,'receiving',1)
    ON CONFLICT(study_key) DO UPDATE SET last_at=max(last_at, excluded.last_at), instances=instances + excluded.instances,
        accession=CASE accession WHEN '' THEN excluded.accession ELSE accession END,
        patient_id=CASE patient_id WHEN '' THEN excluded.patient_id ELSE patient_id END,
        expected=coalesce(excluded.expected, expected), generation=generation + (state <> 'receiving'), state='receiving'"""
_COUNT = """INSERT INTO counters(ae, name, value, last_at) VALUES(?,?,?,?)
    ON CONFLICT(ae, name) DO UPDATE SET value=value + excluded.value, last_at=excluded.last_at"""
_FIND = "SELECT id, sha256, transfer_syntax FROM instances WHERE sop_uid=? AND state<>'purged' ORDER BY id"

_CHECKPOINT_PAGES = 8000  # each checkpoint syncs twice: seldom on the hot path, though a long log slows readers
_OVERHEAD = HEADER_SIZE + 1024 + BLOCK  # a record's header, Part 10 prefix and padding, generously


class Ingest:
    """The one way into the spool. One per process; not for threads."""

    def __init__(
        self, root: Path, synchronous: str = "FULL", count_seconds: float = 0.0, hash_later: bool = False
    ) -> None:
        """With `count_seconds`, the per-AE counters are written at most that often (`flush_counts`), not with every group.

        With `hash_later`, the SHA-256 of objects that lie in a slab is left to `catch_up`, which the caller has to call.
        """
        self.root = root
        self._count_seconds = count_seconds
        self._counts: Counter[tuple[str, str]] = Counter()
        self._counted_at = 0.0
        self.segments = root / "segments"
        self.db = connect(root, synchronous)
        if synchronous == "NORMAL":
            self.db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        self.lock = WriteLock(root)
        self._hash_later = hash_later
        self.unhashed = Unhashed(self.segments)
        self._writer: SegmentWriter | None = None
        self._stage = mmap.mmap(-1, STAGE_BYTES)

    def close(self) -> None:
        self.flush_counts()
        if self._writer is not None:
            if self._writer.end == 0:
                self._writer.discard()
            else:
                self._writer.close()
            self._writer = None
        self.db.close()
        self.lock.close()

    def commit(self, batch: Sequence[Incoming]) -> list[Outcome]:
        """Make every instance of `batch` durable and visible, or none. Raises StorageError; nothing is kept then."""
        now = time.time()
        start = None
        try:
            for item in batch:
                item.later = self._may_wait(item)
                if not item.later:
                    item.digest.start()
            known = [self._known(item) for item in batch]
            size = sum(i.length + _OVERHEAD for i, k in zip(batch, known, strict=True) if not k and i.placed is None)
            writer = self._segment(size)
            start = writer.end
            places = self._write(writer, batch, known, now)
            return self._record(batch, places, now)
        except (OSError, *DATABASE_ERRORS) as error:
            if start is not None:
                self._take_back(start)
            raise StorageError(
                f"The spool at {self.root} cannot keep an instance ({told(error)}); free disk space or check it."
            ) from error

    def large(self, source: str) -> LargeObject:
        """Start an instance that is too large to hold in memory. Raises OSError."""
        return LargeObject(StreamWriter(self.segments), source)

    def count(self, ae: str, name: str, value: int = 1) -> None:
        """Add to a per-AE counter; written with the next group or `flush_counts`."""
        self._counts[ae, name] += value

    def flush_counts(self) -> None:
        """Write the counters. Raises StorageError and keeps them for the next time."""
        if not self._counts:
            return
        try:
            with transaction(self.db, self.lock) as db:
                self._write_counts(db, self._counts, time.time())
        except DATABASE_ERRORS as error:
            raise StorageError(
                f"The spool at {self.root} cannot write its counters ({told(error)}); check the disk."
            ) from error
        self._counts.clear()

    def _write_counts(self, db: sqlite3.Connection, counts: Counter[tuple[str, str]], now: float) -> None:
        self._counted_at = now
        db.executemany(_COUNT, [(ae, name, value, now) for (ae, name), value in counts.items()])

    # -- digests ------------------------------------------------------------------------------------------------------

    def catch_up(self, seconds: float) -> None:
        """Compute digests that were left for later, for about `seconds`. Raises StorageError."""
        try:
            self.unhashed.work(self.db, self.lock, seconds)
        except (OSError, *DATABASE_ERRORS) as error:
            raise StorageError(
                f"The spool at {self.root} cannot compute the SHA-256 of what it holds ({told(error)}); check the disk."
            ) from error

    def _may_wait(self, item: Incoming) -> bool:
        return self._hash_later and item.slab is not None and not item.digest.begun and self.unhashed.takes(item.length)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _known(self, item: Incoming) -> bool:
        """True when these very bytes are here already."""
        rows = kept(self.db, self.segments, item.header.sop_uid)
        return bool(rows) and (item.digest.sha256(), item.transfer_syntax) in {(r[1], r[2]) for r in rows}

    def _write(
        self, writer: SegmentWriter, batch: Sequence[Incoming], known: list[bool], now: float
    ) -> list[Place | None]:
        """The place of each instance that was not known, synced."""
        staged: list[Buffer] = []
        alone: list[tuple[int, bytes, Slab]] = []
        places: list[Place | None] = [None] * len(batch)
        at = writer.end
        for number, item in enumerate(batch):
            item.received_at = item.received_at or now
            if known[number]:
                continue
            if item.placed is not None:
                places[number] = item.placed.finish(item)
                continue
            head = part10.prefix(item.header.sop_class, item.header.sop_uid, item.transfer_syntax, item.source)
            length = len(head) + item.length
            places[number] = (writer.name, at + HEADER_SIZE, length, len(head))
            record = pack_header(length, len(head), item.received_at, item.digest.crc, item.source) + head
            if item.slab is not None and item.data_at == len(record):
                alone.append((number, record, item.slab))
                continue
            staged.append(record)
            staged.extend(item.chunks)
            at += HEADER_SIZE + length
        if staged:
            writer.append(staged)
        for number, record, slab in alone:
            places[number] = _place(writer, record, slab, batch[number].length)
        if staged or alone:
            writer.sync()
        return places

    def _segment(self, size: int) -> SegmentWriter:
        """The segment that a group of `size` bytes goes to."""
        if self._writer is not None and not self._writer.takes(size):
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._writer = SegmentWriter(self.segments, self._stage)
        return self._writer

    def _take_back(self, end: int) -> None:
        assert self._writer is not None
        try:
            self._writer.truncate(end)
        except OSError:  # the disk is failing: never append behind bytes of unknown state again
            self._writer.close()
            self._writer = None

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _record(
        self,
        batch: Sequence[Incoming],
        places: Sequence[Place | None],
        now: float,
    ) -> list[Outcome]:
        tally = Tally()
        owed: list[tuple[int, Place]] = []
        with transaction(self.db, self.lock) as db:
            outcomes = [
                record_row(db, self.segments, item, place, tally, owed)
                for item, place in zip(batch, places, strict=True)
            ]
            tally.write(db)
            counts = self._counts + tally.counters
            if now - self._counted_at >= self._count_seconds:
                self._write_counts(db, counts, now)
                counts = Counter()
        self._counts = counts
        for row_id, place in owed:
            self.unhashed.add(row_id, place)
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.placed is not None:
                item.placed.settle(outcome is not Outcome.DUPLICATE)
        return outcomes


def kept(db: sqlite3.Connection, segments: Path, sop_uid: str) -> list[tuple[int, str, str]]:
    """(id, SHA-256, transfer syntax) of whatever is here under a SOP Instance UID; digests still owed are computed now."""
    rows = db.execute(_FIND, (sop_uid,)).fetchall()
    return [
        (row_id, settle(db, segments, row_id) if digest == PENDING else digest, syntax)
        for row_id, digest, syntax in rows
    ]


def record_row(
    db: sqlite3.Connection,
    segments: Path,
    item: Incoming,
    place: Place | None,
    tally: Tally,
    owed: list[tuple[int, Place]] | None = None,
) -> Outcome:
    """Write the row of an instance that lies at `place` (None: it was known). In a transaction; tells in `owed` what it owes."""
    header, original = item.header, None
    if place is None:
        tally.add(item, Outcome.DUPLICATE)
        return Outcome.DUPLICATE
    for row_id, sha256, transfer_syntax in kept(db, segments, header.sop_uid):
        item.later = False
        if sha256 == item.digest.sha256() and transfer_syntax == item.transfer_syntax:
            tally.add(item, Outcome.DUPLICATE)
            return Outcome.DUPLICATE
        original = original or row_id
    outcome = Outcome.QUARANTINED if item.reason else Outcome.CONFLICT if original else Outcome.STORED
    key = study_key(header.study_uid, header.patient_id) if header.study_uid else ""
    state = "received" if outcome is Outcome.STORED else outcome.value
    reason = item.reason or ("other bytes with this SOP Instance UID came first" if original else "")
    digest = PENDING if item.later else item.digest.sha256()
    row = db.execute(
        _INSERT,
        (
            header.sop_uid,
            key,
            header.series_uid,
            header.sop_class,
            item.transfer_syntax,
            header.modality,
            *place,
            digest,
            item.source,
            item.received_at,
            original,
            state,
            reason,
        ),
    )
    if item.later and owed is not None and row.lastrowid is not None:
        owed.append((row.lastrowid, place))
    tally.add(item, outcome, key)
    return outcome


def _place(writer: SegmentWriter, record: bytes, slab: Slab, length: int) -> Place:
    """Write an instance from the memory it was received into; `record` is what stands before its data set."""
    slab.memory[: len(record)] = record
    offset = writer.end + HEADER_SIZE
    writer.place(slab.memory, len(record) + length)
    head = len(record) - HEADER_SIZE
    return writer.name, offset, head + length, head


@dataclass(slots=True)
class Tally:
    """What a group adds to studies and counters, so that each is written once a group."""

    studies: dict[str, list[object]] = field(default_factory=dict)
    counters: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, item: Incoming, outcome: Outcome, key: str = "") -> None:
        self.counters[item.source, outcome.value] += 1
        if outcome is not Outcome.DUPLICATE:
            self.counters[item.source, "bytes"] += item.length
        if outcome is not Outcome.STORED:
            return
        row = self.studies.get(key)
        if row is None:
            h, at = item.header, item.received_at
            self.studies[key] = [key, h.study_uid, h.patient_id, h.accession, at, at, 1, h.study_instances]
        else:
            row[5], row[6] = item.received_at, int(row[6]) + 1  # type: ignore[call-overload]

    def write(self, db: sqlite3.Connection) -> None:
        """The studies; counters are the caller's."""
        if self.studies:
            db.executemany(_STUDY, self.studies.values())


class LargeObject:
    """An instance streamed into a segment of its own: memory stays flat however large it is."""

    SYNC_EVERY = 32 << 20

    def __init__(self, writer: StreamWriter, source: str) -> None:
        self.writer = writer
        self.source = source
        self.data_offset = 0
        self._unsynced = 0

    def begin(self, prefix: bytes) -> None:
        """Reserve the record's header and write the Part 10 prefix. Raises OSError."""
        self.data_offset = len(prefix)
        self.writer.append([bytes(HEADER_SIZE), prefix])

    def write(self, chunks: Sequence[Buffer]) -> None:
        """Append a piece of the data set. Raises OSError (ENOSPC)."""
        self.writer.append(chunks)
        self._unsynced += sum(len(c) for c in chunks)
        if self._unsynced >= self.SYNC_EVERY:  # spread the disk's work, so that the end does not stall everybody
            self.writer.sync()
            self._unsynced = 0

    def finish(self, item: Incoming) -> Place:
        """Make the data durable, then the header that makes it a record."""
        length = self.writer.end - HEADER_SIZE
        self.writer.sync()
        self.writer.write_at(0, pack_header(length, self.data_offset, item.received_at, item.digest.crc, item.source))
        self.writer.sync()
        return self.writer.name, HEADER_SIZE, length, self.data_offset

    @contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """The data set as written so far, for checks; nothing of it is held in memory."""
        with mmap.mmap(self.writer.fd, self.writer.end, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as whole:
            with whole[HEADER_SIZE + self.data_offset :] as view:
                yield view

    def settle(self, keep: bool) -> None:
        if keep:
            self.writer.close()
        else:
            self.writer.discard()

    def abandon(self) -> None:
        """The transfer broke off: leave nothing."""
        self.writer.discard()
