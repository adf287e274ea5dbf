"""kill -9 again and again, of writers and of recoveries, at random moments: every acknowledged object is there and whole.

FEDPACS_SPOOL_KILLS sets how many (120 by default).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dicom_node.spool import Spool, recover, reindex

ROOT = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("FEDPACS_SPOOL_KILLS", "120"))


def kept(root: Path) -> dict[str, str]:
    """What is visible; raises where a visible object is not the one received."""
    with Spool(root) as spool:
        rows = [spool.instance(i) for (i,) in spool.db.execute("SELECT id FROM instances")]
        for row in rows:
            spool.read(row)
        assert sum(study.instances for study in spool.studies()) == len(rows)
        return {row.sop_uid: row.sha256 for row in rows}


def test_kills_of_writers_and_recoveries_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    argv = [sys.executable, "-m", "tests.dicom_node.spool.killed", str(root), str(KILLS), "5"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60 + KILLS, check=False)
    assert done.returncode == 0, done.stderr
    promised = dict(line.split() for line in done.stdout.splitlines() if line)
    assert len(promised) > KILLS // 2
    recover(root)
    there = kept(root)
    assert promised.items() <= there.items()
    assert recover(root).adopted == 0, "a second recovery has nothing to do"
    reindex(root)
    assert kept(root) == there, "the segments alone say the same"
