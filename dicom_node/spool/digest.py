"""SHA-256 and CRC-32 of a data set as it arrives; the SHA-256 of large ones on a thread of its own.

The CRC goes into the record (it tells a torn record from a whole one), the SHA-256 into the index (it tells whether two objects
are the same). The second costs forty times the first and is not needed before the bytes are on the disk: let both happen at once,
or leave it for later (`dicom_node.spool.unhashed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from isal.isal_zlib import crc32

from dicom_node.spool.segment import Buffer

_WORTH_A_THREAD = 96 << 10
_AT_MOST = 4 << 20  # held back before the thread is given work

_thread = ThreadPoolExecutor(1, "sha256")


class Digest:
    """Feed it with `update` in order, then `start`; `crc` is ready at once, `sha256()` waits where it must."""

    __slots__ = ("_hash", "_held", "_pending", "_size", "begun", "crc")

    def __init__(self, pieces: Iterable[Buffer] = ()) -> None:
        self.crc = 0
        self.begun = False  # whether anything was hashed yet
        self._hash = hashlib.sha256()
        self._held: list[Buffer] = []
        self._size = 0
        self._pending: Future[None] | None = None
        for piece in pieces:
            self.update(piece)

    def update(self, piece: Buffer) -> None:
        """`piece` must not change until `settle` or `sha256` has returned."""
        self.crc = crc32(piece, self.crc)
        self._held.append(piece)
        self._size += len(piece)
        if self._size >= _AT_MOST:
            self.start()

    def start(self) -> None:
        """Hash what is held: a large piece of work on the thread, while the caller writes the bytes to the disk."""
        held, size = self._held, self._size
        self._held, self._size, self.begun = [], 0, True
        if self._pending is not None:
            self._pending.result()  # never more than one piece of work in waiting: memory stays bounded
            self._pending = None
        if size >= _WORTH_A_THREAD:
            self._pending = _thread.submit(self._absorb, held)
        else:
            self._absorb(held)

    def _absorb(self, pieces: list[Buffer]) -> None:
        for piece in pieces:
            self._hash.update(piece)

    def settle(self) -> None:
        """Wait until nothing of what was given is needed any more."""
        if self._held:
            self.start()
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def sha256(self) -> str:
        """Hexadecimal, of everything so far."""
        self.settle()
        return self._hash.hexdigest()
