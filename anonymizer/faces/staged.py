"""Faces in a run over folders: de-identified files wait in a staging folder until their whole series is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anonymizer.errors import OutputError

if TYPE_CHECKING:
    from anonymizer.faces.series import FaceResult


@dataclass(frozen=True)
class Staged:
    """A de-identified file that waits for its series. ``series`` is the new Series Instance UID."""

    path: Path
    target: Path
    series: str
    face: str


@contextmanager
def staging(targets: Sequence[Path]) -> Iterator[Path]:
    """A private folder beside the outputs, on their file system, gone at the end. Raises OutputError."""
    folder = Path(os.path.commonpath([target.parent for target in targets])) if targets else Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".fedpacs-faces-", dir=folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); make room or name another --out.") from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def finish(files: Sequence[Staged], previews: Path | None = None) -> list[FaceResult]:
    """Deface one series and move what came through to its place; -> one result a file, in order. Raises OutputError.

    ``previews``: a folder for the surface before and after, named after the new Series Instance UID.
    """
    from anonymizer.faces.series import FaceFile, deface

    try:
        before = [_kept(file.path) for file in files] if previews is not None else []
        results = deface([FaceFile(file.path, file.face) for file in files])
        for file, result in zip(files, results, strict=True):
            if result.status == "ok":
                file.target.parent.mkdir(parents=True, exist_ok=True)
                file.path.replace(file.target)
            else:
                file.path.unlink(missing_ok=True)
        if previews is not None and any(result.changed for result in results):
            _show(previews, files, before, results)
        for path in before:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"An output cannot be written ({error.strerror}); make room or name another --out.") from None
    return results


def _kept(path: Path) -> Path:
    """Another name for a file as it is now: what is defaced is written anew under the old name."""
    kept = path.with_suffix(".before")
    kept.hardlink_to(path)
    return kept


def _show(folder: Path, files: Sequence[Staged], before: Sequence[Path], results: Sequence[FaceResult]) -> None:
    from anonymizer.faces.preview import previews, write

    pairs = [
        (old, file.target) for file, old, result in zip(files, before, results, strict=True) if result.status == "ok"
    ]
    pictures = previews([old.read_bytes for old, _ in pairs], [new.read_bytes for _, new in pairs])
    write(folder, files[0].series or files[0].path.stem, pictures)
