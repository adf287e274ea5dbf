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


def finish(files: Sequence[Staged]) -> list[FaceResult]:
    """Deface one series and move what came through to its place; -> one result a file, in order. Raises OutputError."""
    from anonymizer.faces.series import FaceFile, deface

    results = deface([FaceFile(file.path, file.face) for file in files])
    try:
        for file, result in zip(files, results, strict=True):
            if result.status == "ok":
                file.target.parent.mkdir(parents=True, exist_ok=True)
                file.path.replace(file.target)
            else:
                file.path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"An output cannot be written ({error.strerror}); make room or name another --out.") from None
    return results
