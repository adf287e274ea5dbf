"""After a crash: adopt what was written but not yet recorded, drop what was half written; or rebuild every row.

Segments describe themselves (dicom_node.spool.segment), so spool.db can be lost: `reindex` makes it again.
"""

from __future__ import annotations

import mmap
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from isal.isal_zlib import crc32

from dicom_node.errors import StorageError
from dicom_node.spool import part10
from dicom_node.spool.database import DATABASE_ERRORS, WriteLock, connect, prepare_folder, told, transaction
from dicom_node.spool.digest import Digest
from dicom_node.spool.header import DataSetError, Header, scan
from dicom_node.spool.ingest import Incoming, Outcome, Tally, record_row
from dicom_node.spool.segment import RecordHeader, abandoned, ends_empty, read_records
from dicom_node.spool.unhashed import settle_segment

MISSING_STUDY = "the data set names no Study or Series Instance UID"
_LIST = "SELECT name FROM segments WHERE sealed=1"
_END = "SELECT max(offset + length) FROM instances WHERE segment=?"


@dataclass
class RecoveryReport:
    """What a recovery found: segments looked at, instances adopted, records whose bytes are gone or damaged."""

    segments: int = 0
    adopted: int = 0
    erased: int = 0
    removed: int = 0


def recover(root: Path) -> RecoveryReport:
    """Adopt the tails of segments whose writers are gone. Safe while receivers run, and in several processes at once."""
    report = RecoveryReport()
    db, lock = connect(root), WriteLock(root, "recover.lock")
    try:
        with lock:
            sealed = {name for (name,) in db.execute(_LIST)}
            _drop_newborn(root)
            for path in sorted((root / "segments").glob("*.seg")):
                if path.name not in sealed and abandoned(path):
                    _adopt(root, db, path, report)
    except (OSError, *DATABASE_ERRORS) as error:
        raise StorageError(f"The spool at {root} cannot be recovered ({told(error)}); check the disk.") from error
    finally:
        lock.close()
        db.close()
    return report


def reindex(root: Path) -> RecoveryReport:
    """Build spool.db again from the segments; the old one is kept beside it. No receiver or worker may run.

    Study states start over ("receiving"): whatever was de-identified before is recognised downstream by its content.
    Labels are carried over where the old database can still be read. Raises StorageError.
    """
    prepare_folder(root)
    segments = sorted((root / "segments").glob("*.seg"))
    busy = [path.name for path in segments if not abandoned(path)]
    if busy:
        raise StorageError(f"The spool at {root} is in use by a receiver; stop the node before `fedpacs node reindex`.")
    old = root / "spool.db"
    aside = root / f"spool.db.before-reindex-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}"
    if old.exists():
        old.replace(aside)
        for suffix in ("-wal", "-shm"):
            leftover = root / f"spool.db{suffix}"
            if leftover.exists():
                leftover.replace(Path(f"{aside}{suffix}"))
    report = RecoveryReport()
    db = connect(root)
    try:
        for former in sorted(root.glob("spool.db.before-reindex-*")):  # the newest last; several where one was killed
            if not former.name.endswith(("-wal", "-shm")):
                _carry_labels(former, db)
        for path in segments:
            _adopt(root, db, path, report, resync=True)
    finally:
        db.close()
    return report


def _drop_newborn(root: Path) -> None:
    """Segments whose writer died before it could name them; a minute is far more than naming takes."""
    for path in (root / "segments").glob("*.new"):
        if time.time() - path.stat().st_mtime > 60 and abandoned(path):
            path.unlink()


def _carry_labels(aside: Path, db: sqlite3.Connection) -> None:
    """Copy what can still be read; what the damage took is imported again from its CSV."""
    try:
        with closing(sqlite3.connect(aside)) as old:
            rows = old.execute("SELECT accession, name, value, source, imported_at FROM labels").fetchall()
    except DATABASE_ERRORS:
        return
    whole = [row for row in rows if all(isinstance(text, str) for text in row[:4]) and isinstance(row[4], float)]
    db.executemany("INSERT OR REPLACE INTO labels VALUES(?,?,?,?,?)", whole)


def _adopt(root: Path, db: sqlite3.Connection, path: Path, report: RecoveryReport, resync: bool = False) -> None:
    """Record what a segment holds beyond its last row, and seal it."""
    report.segments += 1
    start = db.execute(_END, (path.name,)).fetchone()[0] or 0
    records = list(read_records(path, start, resync))
    if start == 0 and not records and not resync:
        path.unlink()  # nothing whole was ever in it: an abandoned transfer, or a writer that never wrote
        report.removed += 1
        return
    lock = WriteLock(root)
    try:
        settle_segment(db, lock, root / "segments", path.name)
        with transaction(db, lock):
            tally = Tally()
            if records:
                with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    for record in records:
                        _adopt_record(db, root, path.name, mapped, record, tally, report)
            tally.write(db)
            _drop_reserve(path, max([start, *(r.offset + r.length for r in records)]))
            db.execute("INSERT OR REPLACE INTO segments(name, sealed) VALUES(?, 1)", (path.name,))
    finally:
        lock.close()


def _drop_reserve(path: Path, end: int) -> None:
    """Give back the space a writer had reserved but did not come to use; never anything that was written."""
    if not ends_empty(path, end):
        return
    with open(path, "r+b") as file:
        file.truncate(end)


def _adopt_record(
    db: sqlite3.Connection,
    root: Path,
    segment: str,
    mapped: mmap.mmap,
    record: RecordHeader,
    tally: Tally,
    report: RecoveryReport,
) -> None:
    with memoryview(mapped)[record.offset : record.offset + record.length] as file:
        if crc32(file[record.data_offset :]) != record.crc:
            report.erased += 1  # purged on purpose, or torn by the crash before anybody was promised it
            return
        item = _describe(file, record)
    place = (segment, record.offset, record.length, record.data_offset)
    outcome = record_row(db, root / "segments", item, place, tally)
    if outcome is not Outcome.DUPLICATE:
        report.adopted += 1


def _describe(file: memoryview, record: RecordHeader) -> Incoming:
    meta = part10.parse(file)
    reason = ""
    try:
        header = scan(file[record.data_offset :], meta.transfer_syntax, whole=record.length < (256 << 20))
        reason = header.fault
    except DataSetError as error:
        header, reason = Header(), str(error)
    header.sop_class, header.sop_uid = meta.sop_class, meta.sop_uid
    if not reason and not (header.study_uid and header.series_uid):
        reason = MISSING_STUDY
    length = record.length - record.data_offset
    item = Incoming(
        header, meta.transfer_syntax, record.source, Digest([file[record.data_offset :]]), length, (), reason
    )
    item.received_at = record.received_at
    return item
