"""How many associations all receiver processes of a node hold together: one slot a process in a small shared file."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from struct import Struct

from dicom_node.errors import StorageError

_SLOTS = 128
_COUNT = Struct("<I")


class Occupancy:
    """This process's slot. A slot is held by a byte-range lock, which the kernel drops when its process dies; the next holder
    and every reader then see it as free."""

    def __init__(self, folder: Path) -> None:
        path = folder / "associations"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < _SLOTS * _COUNT.size:
            os.ftruncate(self._fd, _SLOTS * _COUNT.size)
        self._counts = mmap.mmap(self._fd, _SLOTS * _COUNT.size)
        self._slot = self._take()
        self.set(0)

    def _take(self) -> int:
        for slot in range(_SLOTS):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _COUNT.size, slot * _COUNT.size)
                return slot
            except OSError:
                continue
        raise StorageError(f"More than {_SLOTS} receiver processes run; set [dicom] processes lower.")

    def set(self, count: int) -> None:
        """Tell how many associations this process holds."""
        _COUNT.pack_into(self._counts, self._slot * _COUNT.size, count)

    def total(self) -> int:
        """Associations of all living processes."""
        total = 0
        for slot in range(_SLOTS):
            (count,) = _COUNT.unpack_from(self._counts, slot * _COUNT.size)
            if count and (slot == self._slot or self._held(slot)):
                total += count
        return total

    def _held(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _COUNT.size, slot * _COUNT.size)
        except OSError:
            return True
        _COUNT.pack_into(self._counts, slot * _COUNT.size, 0)  # its process died with associations open
        fcntl.lockf(self._fd, fcntl.LOCK_UN, _COUNT.size, slot * _COUNT.size)
        return False

    def close(self) -> None:
        self.set(0)
        self._counts.close()
        os.close(self._fd)
