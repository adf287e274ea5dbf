"""A disk whose power can be cut: what each file of a folder holds is known as of its last sync, and what was still on its way.

Stands between Python's file calls and the kernel's for the segments of a spool. SQLite writes by itself and is not seen, so a cut
takes spool.db away altogether, which is the harshest of all outcomes: the segments alone must make it whole.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512  # bytes that a disk writes whole or not at all


class File:
    """One file: bytes that are safe, and the changes since then in their order."""

    def __init__(self) -> None:
        self.safe = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, bytes), or (size, None) for a truncation

    def sync(self) -> None:
        self.safe, self.pending = self.image(None), []

    def image(self, chance: random.Random | None) -> bytearray:
        """The content with every pending change, or, with `chance`, with any of them in any sector."""
        content = bytearray(self.safe)
        for at, data in self.pending:
            if data is None:
                if chance is None or chance.random() < 0.5:
                    del content[at:]
                    content.extend(bytes(at - len(content)))
                continue
            content.extend(bytes(max(0, at + len(data) - len(content))))
            for start in range(0, len(data), SECTOR):
                if chance is None or chance.random() < 0.5:
                    piece = data[start : start + SECTOR]
                    content[at + start : at + start + len(piece)] = piece
        return content


class Disk:
    """Watches a folder through `patch`. With `lies` it reports files as synced that are not."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, lies: bool = False) -> None:
        self.folder, self.lies = folder, lies
        self.syncs = 0
        self._number = itertools.count()
        self._files: dict[int, File] = {}
        self._of_inode: dict[int, int] = {}
        self._names: dict[str, int] = {}  # as of the folder's last sync
        self._real: dict[str, Any] = {}
        for name in ("open", "pwrite", "ftruncate", "fsync", "fdatasync"):
            self._real[name] = getattr(os, name)
            patch.setattr(os, name, getattr(self, f"_{name}"))

    def cut(self, root: Path, chance: random.Random | None = None) -> None:
        """What stands on the disk after the power went now, in `root`/segments; unsynced sectors as `chance` has it, or none."""
        segments = root / "segments"
        segments.mkdir(parents=True)
        for name, number in self._names.items():
            file = self._files[number]
            (segments / name).write_bytes(file.safe if chance is None else file.image(chance))

    def _file(self, fd: int) -> File | None:
        number = self._of_inode.get(os.fstat(fd).st_ino)
        if number is None or Path(f"/proc/self/fd/{fd}").readlink().parent != self.folder:
            return None
        return self._files[number]

    def _open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        fd: int = self._real["open"](path, flags, *rest, **options)
        if flags & os.O_CREAT and isinstance(path, str | Path) and Path(path).parent == self.folder:
            self._of_inode[os.fstat(fd).st_ino] = number = next(self._number)
            self._files[number] = File()
        return fd

    def _pwrite(self, fd: int, data: Any, at: int) -> int:
        done: int = self._real["pwrite"](fd, data, at)
        if (file := self._file(fd)) is not None:
            file.pending.append((at, bytes(memoryview(data)[:done])))
        return done

    def _ftruncate(self, fd: int, size: int) -> None:
        self._real["ftruncate"](fd, size)
        if (file := self._file(fd)) is not None:
            file.pending.append((size, None))

    def _fsync(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            if Path(f"/proc/self/fd/{fd}").readlink() == self.folder:
                self._names = {e.name: self._of_inode[e.inode()] for e in os.scandir(self.folder)}
        else:
            self._synced(fd)

    def _fdatasync(self, fd: int) -> None:
        self._synced(fd)

    def _synced(self, fd: int) -> None:
        # the device itself need not work for this: what counts is whether and when the program asked
        self.syncs += 1
        if not self.lies and (file := self._file(fd)) is not None:
            file.sync()
