"""Small status files under run/ for people and tools, replaced atomically; no identified value in any."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Replace `path`, so that a reader sees the old or the new whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def read_last_error(run: Path) -> str:
    """The newest sentence that a process of the node left, "" when all is well."""
    files = sorted(run.glob("*.error"), key=lambda path: path.stat().st_mtime)
    return files[-1].read_text(errors="replace").strip() if files else ""


def write_last_error(run: Path, process: str, sentence: str) -> None:
    """Leave this process's last error, or with "" take it back (the matter is mended)."""
    path = run / f"{process}.error"
    if not sentence:
        path.unlink(missing_ok=True)
        return
    temporary = run / f".{process}.error.{os.getpid()}"
    temporary.write_text(sentence + "\n")
    temporary.replace(path)
