"""Holds a study's head instances left of the wall until their series is there, and takes the faces off it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicom_node.errors import StorageError
from dicom_node.spool import StoredInstance, valid_uid
from dicom_node.worker.limits import TookTooLongError, time_limit

_SECONDS_PER_INSTANCE = 1.0
_REST_IS_GONE = (
    "the rest of its series was taken earlier, so its face cannot be looked for; send the whole series again"
)


@dataclass(frozen=True)
class Head:
    """What became of one instance: its bytes without a face and their facts, or the reason why it is set aside."""

    instance: StoredInstance
    outcome: Any
    reason: str = ""
    data: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)


class Heads:
    """The instances of one study whose pictures may show a face, by series; ``folder`` lies in the spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._series: dict[str, list[tuple[StoredInstance, Any, Path]]] = {}
        shutil.rmtree(folder, ignore_errors=True)  # what a killed pass left

    def add(self, instance: StoredInstance, outcome: Any) -> None:
        """Keep an instance that is de-identified but for its face. Raises StorageError."""
        if not valid_uid(outcome.sop_instance_uid):
            raise ValueError("a de-identified SOP Instance UID is not a UID")
        path = self.folder / f"{outcome.sop_instance_uid}.dcm"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(outcome.output)
            outcome.parts = None  # a series of heads must not lie in memory as a whole
        except OSError as error:
            raise StorageError(
                f"{self.folder.parent} cannot be written ({error.strerror}); free disk space."
            ) from error
        series = self._series.setdefault(instance.series_uid or outcome.sop_instance_uid, [])
        series[:] = [member for member in series if member[2] != path]
        series.append((instance, outcome, path))

    def defaced(self, earlier: set[str], seconds: float, progress: Callable[[], None]) -> Iterator[Head]:
        """Every instance with its fate. Raises StorageError.

        ``earlier`` holds the series of which identified bytes are gone: a late slice alone shows no face, with the others
        it would.
        """
        try:
            for uid, members in self._series.items():
                progress()
                reason, results = (_REST_IS_GONE, []) if uid in earlier else self._one(members, seconds)
                for place, (instance, outcome, path) in enumerate(members):
                    why = reason or results[place].reason
                    facts = {} if why else {**outcome.facts, **(results[place].facts or {})}
                    yield Head(instance, outcome, why, b"" if why else path.read_bytes(), facts)
        except OSError as error:
            raise StorageError(f"{self.folder.parent} cannot be used ({error.strerror}); free disk space.") from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _one(self, members: list[tuple[StoredInstance, Any, Path]], seconds: float) -> tuple[str, list[Any]]:
        """(why the whole series is set aside, else "", the result of each member)."""
        from anonymizer.faces.series import FaceFile, deface

        try:
            with time_limit(5 * seconds + _SECONDS_PER_INSTANCE * len(members)):
                return "", deface([FaceFile(path, outcome.face) for _, outcome, path in members])
        except TookTooLongError:
            return "looking for its face took longer than is allowed", []
        except (MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a hostile file does to a decoder, the study's rest goes on
            return f"its face could not be looked for ({type(error).__name__})", []
