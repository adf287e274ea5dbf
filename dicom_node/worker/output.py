"""Writes de-identified instances under dataset/ so that a kill at any point leaves the old file or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import StorageError
from dicom_node.spool import valid_uid


@dataclass
class StudyWriter:
    """Writes one study's files: all bytes first, then one pass of fsync, then the renames, then the folder's fsync."""

    dataset: Path
    study_uid: str

    def __post_init__(self) -> None:
        if not valid_uid(self.study_uid):
            raise ValueError("a de-identified Study Instance UID is not a UID")  # never part of a path unchecked
        self.folder = self.dataset / self.study_uid
        self._waiting: list[tuple[Path, Path]] = []

    def relative(self, sop_uid: str) -> str:
        """The path of an instance relative to the dataset folder."""
        if not valid_uid(sop_uid):
            raise ValueError("a de-identified SOP Instance UID is not a UID")
        return f"{self.study_uid}/{sop_uid}.dcm"

    def write(self, sop_uid: str, data: bytes) -> str:
        """Write an instance beside its place; -> its path relative to the dataset folder, valid after `commit`."""
        relative = self.relative(sop_uid)
        final = self.dataset / relative
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
        except OSError as error:
            self.abandon()
            raise _cannot_write(self.dataset, error) from error
        self._waiting.append((temporary, final))
        return relative

    def commit(self) -> None:
        """Make everything written durable and visible."""
        try:
            for temporary, _ in self._waiting:
                _fsync(temporary)
            for temporary, final in self._waiting:
                temporary.replace(final)
            if self._waiting:
                _fsync(self.folder)
                _fsync(self.dataset)
        except OSError as error:
            self.abandon()
            raise _cannot_write(self.dataset, error) from error
        self._waiting.clear()

    def abandon(self) -> None:
        """Take back what is not committed."""
        for temporary, _ in self._waiting:
            temporary.unlink(missing_ok=True)
        self._waiting.clear()

    def keep_only(self, relative_paths: Iterable[str]) -> int:
        """Remove the study's files that are not among these (set aside, or excluded, since); -> how many."""
        keep = {self.dataset / path for path in relative_paths}
        gone = [path for path in self.folder.glob("*") if path not in keep] if self.folder.is_dir() else []
        for path in gone:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not keep:
            try:
                self.folder.rmdir()
            except OSError:
                pass  # another worker put something there meanwhile; then it is not ours to remove
        return len(gone)


def quarantine_file(folder: Path, study_key: str, instance: int, data: bytes, reason: str) -> None:
    """Keep an identified instance that could not be proven clean, with its reason beside it (left of the wall)."""
    place = folder / study_key
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in ((f"{instance}.dcm", data), (f"{instance}.reason.txt", reason.encode() + b"\n")):
            temporary = place / f".{name}.{os.getpid()}"
            temporary.write_bytes(content)
            _fsync(temporary)
            temporary.replace(place / name)
        _fsync(place)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def release_quarantine(folder: Path, study_key: str, keep: set[int]) -> None:
    """Drop what an earlier pass set aside and this one did not."""
    place = folder / study_key
    for path in place.glob("*") if place.is_dir() else ():
        if not path.name.partition(".")[0].isdigit() or int(path.name.partition(".")[0]) not in keep:
            path.unlink(missing_ok=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder} cannot be written ({error.strerror}); free disk space or check its owner.")
