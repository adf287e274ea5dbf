"""A memory-mapped, checksummed float16 cache of prepared images, keyed by SOP Instance UID and preparation.

One folder per preparation digest holds `images.f16` (rows of equal size, append-only) and `index.jsonl` (one line a
row,
with the source file's SHA-256 and the row's CRC-32). Rows are synced before their lines, so a crash loses at most the
rows being written; a torn last line, a row of another source or a wrong checksum only costs preparing that image again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.errors import CacheError, PixelError
from trainer.pixels.prepare import Preparation

_WRITE_TOGETHER = 256


@dataclass(frozen=True)
class Wanted:
    """One image to have: its key (SOP Instance UID), its source's SHA-256, and how to make it: → [C, size, size]."""

    key: str
    source: str
    make: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Filled:
    """images: memory map float16 [rows, C, size, size]; rows[i] is wanted i's row or -1; failures name the reasons.

    marks int64 [N]: the CRC-32 of each wanted image's prepared pixels (-1 where there is none). Samples ordered by it come
    in the same order at every node and on every run, which an order by pseudonymous UID does not give.
    """

    images: np.ndarray
    rows: np.ndarray
    marks: np.ndarray
    failures: dict[str, str]
    made: int


class TensorCache:
    """The cache of one preparation. Several processes may share it: writers take a lock, readers need none."""

    def __init__(self, root: Path, preparation: Preparation, channels: int = 1) -> None:
        self.folder = root / preparation.digest
        self.shape = (channels, preparation.size, preparation.size)
        self.row_bytes = 2 * channels * preparation.size * preparation.size
        make_folder(self.folder)
        self.data = self.folder / "images.f16"
        self.index = self.folder / "index.jsonl"

    def fill(
        self, wanted: Sequence[Wanted], threads: int = 1, progress: Callable[[int, int], None] | None = None
    ) -> Filled:
        """Make what is not there yet and map everything. Errors: CacheError when the folder cannot be written."""
        with folder_lock(self.folder):
            known = self._read_index()
            rows = np.array([self._valid_row(known, w) for w in wanted], np.int64)
            marks = np.array(
                [known[w.key]["crc"] if row >= 0 else -1 for w, row in zip(wanted, rows, strict=True)], np.int64
            )
            missing = [i for i in range(len(wanted)) if rows[i] < 0]
            failures = self._make(wanted, missing, (rows, marks), threads, progress)
        return Filled(self._map(), rows, marks, failures, len(missing) - len(failures))

    def forget(self, keys: set[str]) -> int:
        """Overwrite the rows of these SOP Instance or Study UIDs with zeros and drop them (an opt-out); returns how many.

        A row's key may be several words (slice number and Study Instance UID); the last one is compared.
        """
        with folder_lock(self.folder):
            known = self._read_index()
            gone = [entry for key, entry in known.items() if key.split(" ")[-1] in keys]
            if gone:
                with self.data.open("r+b") as file:
                    for entry in gone:
                        file.seek(int(entry["row"]) * self.row_bytes)
                        file.write(bytes(self.row_bytes))
                    file.flush()
                    os.fsync(file.fileno())
                kept = [entry for key, entry in known.items() if key.split(" ")[-1] not in keys]
                part = self.index.with_suffix(".part")
                part.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
                part.replace(self.index)
        return len(gone)

    def _read_index(self) -> dict[str, dict[str, int | str]]:
        if not self.index.exists():
            return {}
        known: dict[str, dict[str, int | str]] = {}
        room = self.data.stat().st_size // self.row_bytes if self.data.exists() else 0
        for line in self.index.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
                if 0 <= entry["row"] < room:
                    known[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a crash; its image is made again
        return known

    def _valid_row(self, known: dict[str, dict[str, int | str]], wanted: Wanted) -> int:
        entry = known.get(wanted.key)
        if entry is None or entry.get("source") != wanted.source:
            return -1
        row = int(entry["row"])
        with self.data.open("rb") as file:
            file.seek(row * self.row_bytes)
            return row if zlib.crc32(file.read(self.row_bytes)) == entry["crc"] else -1

    def _make(
        self,
        wanted: Sequence[Wanted],
        missing: list[int],
        found: tuple[np.ndarray, np.ndarray],
        threads: int,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, str]:
        failures: dict[str, str] = {}
        if not missing:
            return failures
        with ThreadPoolExecutor(max(1, threads)) as workers:
            for start in range(0, len(missing), _WRITE_TOGETHER):
                chunk = missing[start : start + _WRITE_TOGETHER]
                made = list(workers.map(lambda i: _attempt(wanted[i], self.shape), chunk))
                good = [(i, image) for i, image in zip(chunk, made, strict=True) if isinstance(image, bytes)]
                failures |= {wanted[i].key: out for i, out in zip(chunk, made, strict=True) if isinstance(out, str)}
                self._append([(wanted[i], image) for i, image in good], [i for i, _ in good], *found)
                if progress is not None:
                    progress(min(start + _WRITE_TOGETHER, len(missing)), len(missing))
        return failures

    def _append(
        self, images: list[tuple[Wanted, bytes]], places: list[int], rows: np.ndarray, marks: np.ndarray
    ) -> None:
        if not images:
            return
        with self.data.open("ab") as file:
            size = file.seek(0, os.SEEK_END)
            if size % self.row_bytes:  # the tail of a write cut short
                size -= size % self.row_bytes
                file.truncate(size)
            file.write(b"".join(image for _, image in images))
            file.flush()
            os.fsync(file.fileno())
        first = size // self.row_bytes
        lines = []
        for n, (want, image) in enumerate(images):
            rows[places[n]], marks[places[n]] = first + n, (crc := zlib.crc32(image))
            lines.append(json.dumps({"key": want.key, "source": want.source, "row": first + n, "crc": crc}))
        with self.index.open("a", encoding="utf-8") as file_text:
            file_text.write("\n" + "\n".join(lines) + "\n")
            file_text.flush()
            os.fsync(file_text.fileno())

    def _map(self) -> np.ndarray:
        if not self.data.exists() or self.data.stat().st_size < self.row_bytes:
            return np.zeros((0, *self.shape), np.float16)
        count = self.data.stat().st_size // self.row_bytes
        return np.memmap(self.data, np.float16, "r", shape=(count, *self.shape))


def make_folder(folder: Path) -> None:
    """Make a cache's folder, for its owner only. Errors: CacheError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise _cannot_write(err) from err


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One writer at a time; an OSError inside (disk full, not writable) becomes a CacheError."""
    try:
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as err:
        raise _cannot_write(err) from err


def _attempt(wanted: Wanted, shape: tuple[int, ...]) -> bytes | str:
    """The row's bytes, or the sentence why there is none."""
    try:
        image = wanted.make()
    except PixelError as err:
        return str(err)
    if tuple(image.shape) != shape or not np.isfinite(image).all():
        return f"instance {wanted.key} gives no finite image; withdraw the study or exclude it from the cohort"
    return np.ascontiguousarray(image, np.float16).tobytes()


def _cannot_write(err: OSError) -> CacheError:
    if err.errno == errno.ENOSPC:
        return CacheError("the disk is full while caching prepared images; free some space and run the job again")
    return CacheError(f"the tensor cache cannot be written ({err.strerror}); make its folder writable for this process")
