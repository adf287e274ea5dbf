"""The SHA-256 of instances that were answered before it was known: computed from the disk once the receiver has nothing to do.

Half of what receiving an image costs the processor is its SHA-256, which nobody waits for: the record's CRC-32 tells a whole one
from a torn one, and only a second object with the same SOP Instance UID has to be compared. Its row holds '' meanwhile. What is
read back is held against the CRC first, so the digest is that of the bytes received or the damage is found at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from collections import deque
from pathlib import Path

import structlog
from isal.isal_zlib import crc32

from dicom_node.spool.database import WriteLock, transaction
from dicom_node.spool.segment import HEADER_SIZE, unpack_header

PENDING = ""  # in place of the digest, until it is known
DAMAGED = "damaged"  # no digest: equals that of no object, so a good copy is kept when it is sent again
MOST_BYTES = 1 << 30  # beyond this much the digest is computed before the answer
_LONGEST = 256 << 20  # far more than any object that is left for later
_NAME = re.compile(r"[a-z0-9-]+\.seg\Z")
_GROUP = 32

log = structlog.get_logger("dicom_node.spool")

Place = tuple[str, int, int, int]  # segment, offset, length of the file, offset of the data set in it
_SET = "UPDATE instances SET sha256=? WHERE id=? AND sha256='' AND state<>'purged'"
_OF_SEGMENT = (
    "SELECT id, segment, offset, length, data_offset FROM instances WHERE segment=? AND sha256='' AND state<>'purged'"
)


def digest_at(segments: Path, place: Place) -> str:
    """SHA-256 of the data set of a record, read back; DAMAGED where it is not what was received. Raises OSError."""
    if not _possible(place):
        log.error("spool.damaged", segment=str(place[0])[:80])
        return DAMAGED
    name, offset, length, data_offset = place
    start = offset - HEADER_SIZE
    try:
        with open(segments / name, "rb") as file:
            raw = os.pread(file.fileno(), HEADER_SIZE + length, start)
    except FileNotFoundError:
        raw = b""
    header = unpack_header(raw[:HEADER_SIZE], start)
    with memoryview(raw)[HEADER_SIZE + data_offset :] as data:
        if header is None or len(raw) != HEADER_SIZE + length or crc32(data) != header.crc:
            log.error("spool.damaged", segment=name, offset=offset)
            return DAMAGED
        return hashlib.sha256(data).hexdigest()


def _possible(place: Place) -> bool:
    """Whether a row's place can be one at all: a damaged index may say anything."""
    name, *numbers = place
    if not (isinstance(name, str) and _NAME.match(name) and all(isinstance(number, int) for number in numbers)):
        return False
    offset, length, data_offset = numbers
    return HEADER_SIZE <= offset < 1 << 62 and 0 <= data_offset <= length <= _LONGEST


def settle(db: sqlite3.Connection, segments: Path, row_id: int) -> str:
    """The digest of one row, computed and written now when it is still owed. Raises OSError or a database error."""
    row = db.execute(
        "SELECT sha256, segment, offset, length, data_offset FROM instances WHERE id=?", (row_id,)
    ).fetchone()
    if row is None:  # found by an index, yet not there
        raise sqlite3.DatabaseError("database disk image is malformed")
    if row[0] != PENDING:
        return str(row[0])
    digest = digest_at(segments, row[1:])
    db.execute(_SET, (digest, row_id))
    return digest


def settle_segment(db: sqlite3.Connection, lock: WriteLock, segments: Path, name: str) -> int:
    """Every digest that a segment's writer left owing; returns how many. Raises OSError or a database error."""
    owed = db.execute(_OF_SEGMENT, (name,)).fetchall()
    for at in range(0, len(owed), _GROUP):
        found = [(digest_at(segments, place), row_id) for row_id, *place in owed[at : at + _GROUP]]
        with transaction(db, lock):
            db.executemany(_SET, found)
    return len(owed)


class Unhashed:
    """What this process still owes a digest. Not for threads."""

    def __init__(self, segments: Path) -> None:
        self._segments = segments
        self._owed: deque[tuple[int, Place]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._owed)

    def takes(self, size: int) -> bool:
        """Whether an object of `size` bytes may be left for later."""
        return self._bytes + size <= MOST_BYTES

    def add(self, row_id: int, place: Place) -> None:
        self._owed.append((row_id, place))
        self._bytes += place[2]

    def work(self, db: sqlite3.Connection, lock: WriteLock, seconds: float) -> None:
        """Settle what is owed for about that long, one object at least. Raises OSError or a database error."""
        until = time.monotonic() + seconds
        found: list[tuple[str, int]] = []
        while self._owed and len(found) < _GROUP:
            row_id, place = self._owed.popleft()
            self._bytes -= place[2]
            found.append((digest_at(self._segments, place), row_id))
            if time.monotonic() >= until:
                break
        with transaction(db, lock):
            db.executemany(_SET, found)
