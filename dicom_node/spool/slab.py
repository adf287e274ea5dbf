"""Memory that objects are received into and written from: page-aligned, contiguous, used again.

A received data set lies behind room for its record's head, so that one direct write moves it to the disk without another copy.
Address space is reserved for the largest object that is held at all; only pages that were touched cost memory, and what a large
object touched is given back when it is released.
"""

from __future__ import annotations

import mmap

_KEPT_RESIDENT = 1 << 20  # of a slab that waits to be used again
_KEPT_SLABS = 8


class Slab:
    """One piece of memory. `view` is all of it."""

    __slots__ = ("memory", "view")

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.memory)


class SlabPool:
    """Slabs of one size. Not for threads."""

    def __init__(self, size: int) -> None:
        """`size` in bytes, rounded up to whole pages."""
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._free: list[Slab] = []

    def take(self) -> Slab:
        """The slab used last, whose pages are still in the processor's cache."""
        return self._free.pop() if self._free else Slab(self.size)

    def give(self, slab: Slab, used: int) -> None:
        """Take back a slab of which `used` bytes were touched."""
        if len(self._free) >= _KEPT_SLABS:
            return  # its memory goes with the last view of it
        if used > _KEPT_RESIDENT:
            slab.memory.madvise(mmap.MADV_DONTNEED, _KEPT_RESIDENT)
        self._free.append(slab)
