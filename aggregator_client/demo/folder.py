"""The demo's output folder: made fresh for each run, locked while one runs, and never made by deleting someone's files."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_node.errors import InputError, RefusedError, StorageError

MARK = ".fedpacs-demo"
"""The file that tells a folder of an earlier demo, which may be cleared, from any other."""


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Clear or make `out` and hold its lock; the folder stays when the context ends.

    Errors: InputError when the folder holds anything that is not a demo's, RefusedError when a demo runs in it now,
    StorageError when it cannot be written.
    """
    out = out.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise InputError(
            f"{out} holds files that are not a demo's; name another folder with --out, or empty it yourself"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        mark = (out / MARK).open("a+")
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror}); name another folder with --out") from None
    with mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"a demo is running in {out}; wait for it, or name another folder with --out") from None
        for entry in out.iterdir():
            if entry.name != MARK:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield out
