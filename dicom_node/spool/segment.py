"""Append-only segment files: one writer each, records that describe themselves, torn tails that are never read.

A record is a 128-byte header and a complete Part 10 file; a group of records starts at a multiple of BLOCK. One `fdatasync`
makes a group of any size durable (group commit). A process writes only to segments it created and holds an exclusive `flock`
on them while it lives; whoever finds a segment that is not locked may read its tail, knowing that nobody appends to it any more.

    offset 0   magic "FPSEG01\\n"      4 bytes CRC-32 of bytes 12..128     2 bytes offset of the data set in the file
              2 bytes flags           8 bytes length of the file          8 bytes received at (seconds since 1970)
              4 bytes CRC-32 of the data set     28 bytes reserved        64 bytes source (AE title or other), UTF-8
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from isal.isal_zlib import crc32

_HEADER = Struct("<8sIHHQdI28x64s")
_BODY = Struct("<HHQdI28x64s")
MAGIC = b"FPSEG01\n"
HEADER_SIZE = _HEADER.size
SEGMENT_BYTES = 1 << 30
_TAIL_KEPT = 1 << 20
RESERVE_BYTES = 64 << 20
STAGE_BYTES = 4 << 20
BLOCK = 4096  # of direct I/O, on every device in use

_LIBC = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE, _KEEP_SIZE = 2, 1

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What a record says of itself. `offset` is where its Part 10 file starts in the segment."""

    offset: int
    length: int
    data_offset: int
    received_at: float
    crc: int  # of the data set
    source: str


def pack_header(length: int, data_offset: int, received_at: float, crc: int, source: str) -> bytes:
    body = _BODY.pack(data_offset, 0, length, received_at, crc, source.encode()[:64])
    return MAGIC + crc32(body).to_bytes(4, "little") + body


def unpack_header(raw: bytes, at: int) -> RecordHeader | None:
    """The header that stands at `at`, or None where there is none that is whole."""
    if len(raw) < HEADER_SIZE or raw[:8] != MAGIC or crc32(raw[12:HEADER_SIZE]) != int.from_bytes(raw[8:12], "little"):
        return None
    _, _, data_offset, _, length, received_at, crc, source = _HEADER.unpack_from(raw)
    text = source.rstrip(b"\0").decode("utf-8", "replace")
    return RecordHeader(at + HEADER_SIZE, length, data_offset, received_at, crc, text)


class Segment:
    """A segment file that this process created: locked before it has its name, its name durable."""

    def __init__(self, folder: Path, kind: str, flags: int = 0) -> None:
        self.name = f"{kind}{time.time_ns():016x}-{os.getpid():x}-{secrets.token_hex(4)}.seg"
        self.path = folder / self.name
        # locked before it has its name: whoever lists segments never sees one that looks abandoned but is not
        newborn = self.path.with_suffix(".new")
        self.fd = _create(newborn, flags)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        newborn.rename(self.path)
        sync_folder(folder)
        self.end = 0  # what is written and agreed; bytes beyond it are not ours to keep

    def sync(self) -> None:
        """Everything appended so far survives a power cut after this returns."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Close and remove the segment: nothing in it was ever promised."""
        self.close()
        self.path.unlink(missing_ok=True)


def _create(path: Path, flags: int) -> int:
    flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if not flags & os.O_DIRECT or error.errno != errno.EINVAL:
            raise
    path.unlink(missing_ok=True)  # some file systems create the file before they refuse direct I/O
    return os.open(path, flags & ~os.O_DIRECT, 0o600)


class SegmentWriter(Segment):
    """Groups of records, each written past the page cache. Not for threads.

    Space is reserved ahead and written with direct I/O: a sync then moves neither the file's size nor pages that write-back
    would have had to copy first, and takes a third of the time. Groups start at multiples of BLOCK. (Segments filled with
    zeros beforehand, whose syncs change no metadata at all, were measured and are not faster.)
    """

    def __init__(self, folder: Path, stage: mmap.mmap) -> None:
        """`stage` is STAGE_BYTES of page-aligned memory, as direct I/O wants it, for this writer to use. Raises OSError."""
        super().__init__(folder, "s", os.O_DIRECT)
        self._stage = stage
        self._reserved = 0

    def takes(self, size: int) -> bool:
        """Whether a group of `size` bytes still belongs into this segment."""
        return self.end == 0 or self.end + _up(size) <= SEGMENT_BYTES

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write `buffers` one after another as one group. Raises OSError (ENOSPC) having kept none."""
        start = self.end
        try:
            self._reserve(start + _up(sum(len(b) for b in buffers)))
            self.end = self._write(buffers, start)
        except OSError:
            self.truncate(start)
            raise

    def place(self, memory: mmap.mmap, size: int) -> None:
        """Write one record that fills the first `size` bytes of page-aligned memory, as a group of its own. Raises OSError."""
        start, padded = self.end, _up(size)
        memory[size:padded] = bytes(padded - size)
        try:
            self._reserve(start + padded)
            self.end = self._flush(memory, start, padded)
        except OSError:
            self.truncate(start)
            raise

    def _reserve(self, size: int) -> None:
        if size <= self._reserved:
            return
        try:
            os.posix_fallocate(self.fd, self._reserved, max(size - self._reserved, RESERVE_BYTES))
            self._reserved = max(size, self._reserved + RESERVE_BYTES)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            os.posix_fallocate(self.fd, self._reserved, size - self._reserved)
            self._reserved = size

    def _write(self, buffers: Sequence[Buffer], at: int) -> int:
        stage, fill = self._stage, 0
        for buffer in buffers:
            size = len(buffer)
            if size <= STAGE_BYTES - fill:  # the usual case, without a view
                stage[fill : fill + size] = buffer
                fill += size
                continue
            rest = memoryview(buffer)
            while rest:
                piece = rest[: STAGE_BYTES - fill]
                stage[fill : fill + len(piece)] = piece
                fill, rest = fill + len(piece), rest[len(piece) :]
                if fill == STAGE_BYTES:
                    at, fill = self._flush(stage, at, fill), 0
        padded = _up(fill)
        stage[fill:padded] = bytes(padded - fill)
        return self._flush(stage, at, padded)

    def _flush(self, memory: mmap.mmap, at: int, size: int) -> int:
        with memoryview(memory) as stage:
            done = 0
            while done < size:
                with stage[done:size] as rest:
                    written = os.pwrite(self.fd, rest, at + done)
                if written <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += written
        return at + size

    def truncate(self, end: int) -> None:
        """Take back what was appended after `end`."""
        os.ftruncate(self.fd, end)
        self.end = self._reserved = end

    def close(self) -> None:
        """Close; a tail worth having is given back to the disk."""
        if self.fd >= 0 and self._reserved - self.end > _TAIL_KEPT:
            os.ftruncate(self.fd, self.end)
        super().close()


class StreamWriter(Segment):
    """One record too large to hold, appended piece by piece through the page cache."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        super().__init__(folder, "b")

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write `buffers` at the end. Raises OSError (ENOSPC); the segment is then good for `discard` only."""
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                written = os.pwrite(self.fd, rest, self.end)
                if written <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.end, rest = self.end + written, rest[written:]

    def write_at(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)


def _up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def read_records(path: Path, start: int = 0, resync: bool = False) -> Iterator[RecordHeader]:
    """The whole records of a segment from `start` on; stops without a word where the file breaks off.

    With `resync`, goes on behind a damaged record at the next group that can be read.
    """
    with open(path, "rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        while start + HEADER_SIZE <= size:
            record = unpack_header(os.pread(fd, HEADER_SIZE, start), start)
            if record is not None and record.offset + record.length <= size:
                yield record
                start = record.offset + record.length
            elif start % BLOCK:  # the padding between two groups
                start = _up(start)
            elif resync:
                start = _next_data(fd, start + BLOCK, size)
            else:
                return


def _next_data(fd: int, start: int, size: int) -> int:
    """The next block that was ever written to; space that is only reserved is skipped."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA) // BLOCK * BLOCK
    except OSError:  # ENXIO: nothing but holes
        return size


def ends_empty(path: Path, end: int) -> bool:
    """Whether a segment holds nothing but zeros from `end` on."""
    with open(path, "rb") as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        while end < size:
            chunk = os.pread(fd, min(1 << 20, _up(end + 1) - end if end % BLOCK else 1 << 20), end)
            if any(chunk):
                return False
            end = max(_next_data(fd, end + len(chunk), size), end + len(chunk))
    return True


def abandoned(path: Path) -> bool:
    """True when no living process writes to the segment."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make names created in or removed from `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def erase(path: Path, offset: int, length: int) -> None:
    """Give the bytes of a record back to the disk; they read as zeros afterwards. Overwrites where holes are not supported."""
    with open(path, "r+b") as file:
        fd = file.fileno()
        arguments = (
            ctypes.c_int(fd),
            ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE),
            ctypes.c_int64(offset),
            ctypes.c_int64(length),
        )
        if _LIBC.fallocate(*arguments) != 0:
            zeros = bytes(min(length, 1 << 20))
            for at in range(offset, offset + length, len(zeros) or 1):
                os.pwrite(fd, zeros[: offset + length - at], at)
        os.fdatasync(fd)
