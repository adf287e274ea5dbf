"""Bring a backup back: everything is unpacked and checked beside its place first, then moved in, the settings file last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from dicom_node.backup.archive import FORMAT, Report
from dicom_node.backup.sealed import SealedReader
from dicom_node.errors import InputError, IntegrityError, RefusedError, StorageError

_STAGE = ".restoring"
_TOLERATED = {"lost+found", _STAGE}


@dataclass(frozen=True)
class _Place:
    """Where one root goes: `folder` receives what was unpacked in `folder`/.restoring/NAME."""

    name: str
    folder: Path
    single: str = ""  # the one file it is, else a folder

    @property
    def stage(self) -> Path:
        return self.folder / _STAGE / self.name

    def occupied(self) -> bool:
        if self.single:
            return (self.folder / self.single).exists()
        return self.folder.exists() and any(one.name not in _TOLERATED for one in self.folder.iterdir())


def restore(file: Path, target: Path, secret: bytes, kind: str, settings_file: str) -> Report:
    """Unpack `file` into `target` (and, for folders outside it, where they were).

    Raises RefusedError when a place is not empty (so never over a live node), IntegrityError for a wrong key or damage,
    InputError for another kind of file, StorageError when it cannot be written. Nothing is moved in before all is checked.
    """
    target = target.expanduser().resolve()
    places: dict[str, _Place] = {}
    umask = os.umask(0o077)
    try:
        with file.open("rb") as raw:
            head, found = _unpack(raw, file, target, secret, kind, places)
        _move_in(places, settings_file)
        with file.open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
    except tarfile.TarError:
        raise IntegrityError(f"The backup {file} holds no readable archive: take another copy of it.") from None
    except OSError as error:
        raise StorageError(f"The backup {file} cannot be restored to {target} ({error.strerror}): mend that.") from None
    finally:
        os.umask(umask)
        for place in places.values():
            shutil.rmtree(place.folder / _STAGE, ignore_errors=True)
    return Report(str(file), kind, len(found), sum(one["bytes"] for one in found.values()), digest, head["made_at"])


def _unpack(
    raw: BinaryIO, file: Path, target: Path, secret: bytes, kind: str, places: dict[str, _Place]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Everything into the stages of `places`, which are filled in here; what the backup says of itself, and what was in it."""
    reader = SealedReader(raw, secret, str(file))
    with tarfile.open(fileobj=reader, mode="r|") as tar:
        members = iter(tar)
        head = _json(tar, next(members))
        if head.get("format") != FORMAT or head.get("kind") != kind:
            raise InputError(
                f"{file} is a backup of a {head.get('kind')} (format {head.get('format')}), not of a {kind}."
            )
        wanted = _places(head, target)
        for place in wanted.values():
            if place.occupied():
                raise RefusedError(f"{place.folder / place.single} is not empty: restore into a folder that is.")
        places.update(wanted)
        for place in places.values():
            shutil.rmtree(place.folder / _STAGE, ignore_errors=True)  # what a restore that was killed left behind
        for place in places.values():  # two roots may have one parent
            place.stage.mkdir(mode=0o700, parents=True)
        found, promised = _take(tar, members, places)
    while reader.read(1 << 20):  # up to the last chunk, which proves that nothing was cut off
        pass
    if found != promised:
        raise IntegrityError(f"The backup {file} does not hold what its list says: take another copy of it.")
    return head, found


def _take(
    tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], places: dict[str, _Place]
) -> tuple[dict[str, Any], dict[str, Any]]:
    found: dict[str, Any] = {}
    for member in members:
        if member.name == "manifest.json":
            return found, _json(tar, member)
        root, *rest = PurePosixPath(member.name).parts
        if not member.isreg() or root not in places or not rest or ".." in rest:
            raise IntegrityError("The backup holds an entry that no backup has: take another copy of it.")
        found[member.name] = _write(tar, member, places[root].stage.joinpath(*rest))
    return found, {}


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, Any]:
    stream, digest = tar.extractfile(member), hashlib.sha256()
    assert stream is not None  # a regular file
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while block := stream.read(1 << 20):
            digest.update(block)
            if block.count(0) == len(block):
                out.seek(len(block), os.SEEK_CUR)  # a hole: a segment's reserve and purged instances need no room
            else:
                out.write(block)
        out.truncate(member.size)
        out.flush()
        os.fchmod(out.fileno(), member.mode & 0o777)
        os.fsync(out.fileno())
    os.utime(path, (member.mtime, member.mtime))
    return {"bytes": member.size, "sha256": digest.hexdigest()}


def _places(head: dict[str, Any], target: Path) -> dict[str, _Place]:
    places = {"home": _Place("home", target)}
    for name, root in head["roots"].items():
        path = Path(root["path"])
        places[name] = _Place(name, path.parent, path.name) if root["file"] else _Place(name, path)
    return places


def _move_in(places: dict[str, _Place], settings_file: str) -> None:
    """Into place; `settings_file`, which makes a folder a node, comes last."""
    for place in reversed(list(places.values())):  # home, which is first, goes last
        for path in sorted(place.stage.iterdir(), key=lambda p: p.name == settings_file):
            path.rename(place.folder / path.name)
        descriptor = os.open(place.folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    stream = tar.extractfile(member)
    return json.loads(stream.read()) if stream is not None else {}
