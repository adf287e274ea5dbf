"""Append-only segment files: one writer each, records that describe themselves, torn tails that are never read.

A record is a 128-byte header and a complete Part 10 file. One `fdatasync` makes any number of appended records durable
(group commit). A process writes only to segments it created and holds an exclusive `flock` on them while it lives; whoever
finds a segment that is not locked may read its tail, knowing that nobody appends to it any more.

    offset 0   magic "FPSEG01\\n"      4 bytes CRC-32 of bytes 12..128     2 bytes offset of the data set in the file
              2 bytes flags           8 bytes length of the file          8 bytes received at (seconds since 1970)
              32 bytes SHA-256 of the data set                            64 bytes source (AE title or other), UTF-8
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

_HEADER = Struct("<8sIHHQd32s64s")
_BODY = Struct("<HHQd32s64s")
MAGIC = b"FPSEG01\n"
HEADER_SIZE = _HEADER.size
SEGMENT_BYTES = 1 << 30
_IOV_MAX = 512

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
    sha256: bytes
    source: str


def pack_header(length: int, data_offset: int, received_at: float, sha256: bytes, source: str) -> bytes:
    body = _BODY.pack(data_offset, 0, length, received_at, sha256, source.encode()[:64])
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def unpack_header(raw: bytes, at: int) -> RecordHeader | None:
    """The header that stands at `at`, or None where there is none that is whole."""
    if (
        len(raw) < HEADER_SIZE
        or raw[:8] != MAGIC
        or zlib.crc32(raw[12:HEADER_SIZE]) != int.from_bytes(raw[8:12], "little")
    ):
        return None
    _, _, data_offset, _, length, received_at, sha256, source = _HEADER.unpack_from(raw)
    text = source.rstrip(b"\0").decode("utf-8", "replace")
    return RecordHeader(at + HEADER_SIZE, length, data_offset, received_at, sha256, text)


class SegmentWriter:
    """One segment being written. Not for threads."""

    def __init__(self, folder: Path, kind: str = "s") -> None:
        """Create a segment in `folder`, lock it, and make its name durable. Raises OSError."""
        self.name = f"{kind}{time.time_ns():016x}-{os.getpid():x}-{secrets.token_hex(4)}.seg"
        self.path = folder / self.name
        # locked before it has its name: whoever lists segments never sees one that looks abandoned but is not
        newborn = self.path.with_suffix(".new")
        self.fd = os.open(newborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        newborn.rename(self.path)
        sync_folder(folder)
        self.end = 0  # what is written and agreed; bytes beyond it are not ours to keep

    @property
    def full(self) -> bool:
        return self.end >= SEGMENT_BYTES

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write `buffers` one after another at the end, through to the page cache. Raises OSError (ENOSPC) having kept none."""
        start = self.end
        try:
            for first in range(0, len(buffers), _IOV_MAX):
                self._write_all(buffers[first : first + _IOV_MAX])
        except OSError:
            self.truncate(start)
            raise

    def _write_all(self, buffers: Sequence[Buffer]) -> None:
        size = sum(len(b) for b in buffers)
        written = os.pwritev(self.fd, buffers, self.end)
        if written != size:  # a full disk or an old kernel's 2 GiB limit: go on byte by byte until the kernel says why
            rest = memoryview(b"".join(buffers))[written:]
            at = self.end + written
            while rest:
                done = os.pwrite(self.fd, rest, at)
                if done == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest, at = rest[done:], at + done
        self.end += size

    def write_at(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)

    def sync(self) -> None:
        """Everything appended so far survives a power cut after this returns."""
        os.fdatasync(self.fd)

    def truncate(self, end: int) -> None:
        """Take back what was appended after `end`."""
        os.ftruncate(self.fd, end)
        self.end = end

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Close and remove the segment: nothing in it was ever promised."""
        self.close()
        self.path.unlink(missing_ok=True)


def read_records(path: Path, start: int = 0) -> Iterator[RecordHeader]:
    """The whole records of a segment from `start` on; stops without a word where the file breaks off."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while start + HEADER_SIZE <= size:
            record = unpack_header(os.pread(file.fileno(), HEADER_SIZE, start), start)
            if record is None or record.offset + record.length > size:
                return
            yield record
            start = record.offset + record.length


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
