"""A cache of prepared volumes of any shape: one memory-mapped, checksummed float16 file a series, read patch by patch.

The sibling of trainer.pixels.cache for tasks that learn from whole volumes. `<name>.npy` holds [channels, D, H, W];
`<name>.json` its key, its source's digest, its CRC-32 and a few places of each class, for class-balanced patches. The
JSON is written last, so a crash or a damaged file only costs preparing that volume again. At most one volume a thread is
in memory while the cache is filled.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.errors import PixelError
from trainer.pixels.cache import Wanted, folder_lock, make_folder

_PLACES = 256  # remembered voxels of each class
_CHUNK = 1 << 24


@dataclass(frozen=True)
class StoredVolume:
    """One cached series. places: {class: int32 [k, 3] voxels}; low: the image's smallest value, to pad with;
    mark: the CRC-32 of its prepared voxels, for an order that depends on no pseudonym.
    """

    path: Path
    key: str
    shape: tuple[int, int, int]
    low: float
    places: dict[int, np.ndarray]
    mark: int

    def open(self) -> np.ndarray:
        """The array float16 [channels, D, H, W] as a memory map."""
        return np.asarray(np.load(self.path, mmap_mode="r"))


class VolumeCache:
    """Volumes under one preparation digest. The last channel of each is its class index."""

    def __init__(self, root: Path, digest: str) -> None:
        self.folder = root / digest
        make_folder(self.folder)

    def fill(
        self, wanted: Sequence[Wanted], threads: int = 1, progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[StoredVolume | None], dict[str, str]]:
        """Every wanted volume, or None with its reason in the second value. Errors: CacheError."""
        failures: dict[str, str] = {}
        done: list[StoredVolume | None] = []
        with folder_lock(self.folder), ThreadPoolExecutor(max(1, threads)) as workers:
            for number, found in enumerate(workers.map(self._one, wanted), 1):
                if isinstance(found, str):
                    failures[wanted[number - 1].key] = found
                done.append(None if isinstance(found, str) else found)
                if progress is not None:
                    progress(number, len(wanted))
        return done, failures

    def forget(self, keys: set[str]) -> int:
        """Overwrite the volumes whose key ends in one of these UIDs with zeros and remove them; returns how many."""
        count = 0
        with folder_lock(self.folder):
            for note in self.folder.glob("*.json"):
                if str(_read(note).get("key", "")).split(" ")[-1] not in keys:
                    continue
                data = note.with_suffix(".npy")
                with data.open("r+b") as file:
                    for start in range(0, data.stat().st_size, _CHUNK):
                        file.write(bytes(min(_CHUNK, data.stat().st_size - start)))
                    file.flush()
                    os.fsync(file.fileno())
                note.unlink()
                data.unlink()
                count += 1
        return count

    def _one(self, wanted: Wanted) -> StoredVolume | str:
        name = hashlib.sha256(wanted.key.encode()).hexdigest()[:32]
        data, note = self.folder / f"{name}.npy", self.folder / f"{name}.json"
        known = _read(note)
        if known.get("source") == wanted.source and data.exists() and _checksum(data) == known.get("crc"):
            return _stored(data, known)
        try:
            volume = np.ascontiguousarray(wanted.make(), np.float16)
        except PixelError as err:
            return str(err)
        if volume.ndim != 4 or not np.isfinite(volume).all():
            return f"study {wanted.key.split(' ')[-1]} gives no finite volume; exclude it from the cohort"
        _write(data, partial(_save, volume))
        facts = {"key": wanted.key, "source": wanted.source, "crc": _checksum(data), **_facts(volume)}
        _write(note, lambda file: file.write(json.dumps(facts).encode()))
        return _stored(data, facts)


def _facts(volume: np.ndarray) -> dict[str, object]:
    """Shape, smallest value, and evenly chosen places of each class that occurs."""
    places: dict[str, list[list[int]]] = {}
    for index in np.unique(volume[-1]):
        flat = np.flatnonzero(volume[-1] == index)
        flat = flat[np.linspace(0, len(flat) - 1, min(len(flat), _PLACES)).astype(np.int64)]
        places[str(int(index))] = np.stack(np.unravel_index(flat, volume.shape[1:]), 1).tolist()
    return {"shape": list(volume.shape[1:]), "low": float(volume[:-1].min()), "places": places}


def _stored(data: Path, facts: dict[str, object]) -> StoredVolume:
    shape, places = facts["shape"], facts["places"]
    assert isinstance(shape, list) and isinstance(places, dict)
    kept = {int(index): np.array(found, np.int32) for index, found in places.items()}
    return StoredVolume(
        data, str(facts["key"]), (shape[0], shape[1], shape[2]), float(str(facts["low"])), kept, int(str(facts["crc"]))
    )


def _read(note: Path) -> dict[str, object]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # absent or torn: the volume is made again
    return found if isinstance(found, dict) else {}


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _save(volume: np.ndarray, file: BinaryIO) -> None:
    """np.save, but with a write whose OSError still says that the disk is full."""
    form = np.lib.format
    form.write_array_header_1_0(file, form.header_data_from_array_1_0(volume))
    file.write(volume.data.cast("B"))


def _write(path: Path, fill: Callable[..., object]) -> None:
    part = path.with_suffix(path.suffix + ".part")
    try:
        with part.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
