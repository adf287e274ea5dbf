"""Full disks, files that may not grow, a locked and a damaged index, at random moments: nothing acknowledged is lost.

FEDPACS_HARM sets how many trials there are (64 by default; hundreds in a long run), FEDPACS_HARM_SEED which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRIALS = int(os.environ.get("FEDPACS_HARM", "64"))
SEED = os.environ.get("FEDPACS_HARM_SEED", "3")


def harm(root: Path, small: str, trials: int) -> dict[str, int]:
    argv = [sys.executable, "-m", "tests.dicom_node.receiver.harm", str(root), small, str(trials), SEED]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120 + 2 * trials, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_files_that_may_not_grow_and_a_locked_or_damaged_index_lose_nothing(tmp_path: Path) -> None:
    found = harm(tmp_path, "-", TRIALS * 3 // 4)
    assert min(found[kind] for kind in ("limit", "locked", "damaged")) >= TRIALS // 4
    assert min(found["acknowledged"], found["refused"], found["broken off"]) > TRIALS // 20, (
        "harm was done, and survived"
    )


def test_a_disk_that_fills_up_in_the_middle_of_an_object_loses_nothing(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        found = harm(tmp_path, str(tmp_path), TRIALS // 4)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)
    assert min(found["full"], found["acknowledged"], found["refused"]) > 0
