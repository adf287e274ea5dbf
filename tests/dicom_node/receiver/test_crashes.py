"""Nothing acknowledged is ever lost: kill -9 at random moments, a full disk, a lost index, a power cut.

FEDPACS_KILLS sets how many times a receiver process is killed (6 by default; hundreds in a long run).
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node.errors import StorageError
from dicom_node.spool import Spool, recover, reindex
from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.wire import Closed, Raw, dataset, echo

KILLS = int(os.environ.get("FEDPACS_KILLS", "6"))
Make = Callable[..., Receiver]
Ledger = dict[str, str]  # SOP Instance UID → SHA-256 of the data set that was acknowledged


class Modality(threading.Thread):
    """Sends objects of all sizes for as long as it may, reconnecting when cut off, and writes down every Success."""

    def __init__(self, port: int, number: int, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.number, self.ledger, self.stop_event = port, number, ledger, stop
        self.random = random.Random(number)
        self.sent = 0

    def run(self) -> None:
        while not self.stop_event.is_set():
            try:
                with Raw(self.port, timeout=5) as raw:
                    kind, _ = raw.associate()
                    while kind == 2 and not self.stop_event.is_set():
                        self._store(raw)
            except (OSError, Closed, AssertionError):
                time.sleep(0.02)

    def _store(self, raw: Raw) -> None:
        self.sent += 1
        uid = f"2.25.{self.number + 1}.{self.sent}"
        size = self.random.choice((50, 5_000, 200_000, 9_000_000 if self.sent % 50 == 0 else 1000))
        data = dataset(uid, pixels=self.random.randbytes(size), study=f"2.25.77.{self.number}")
        if raw.store(uid, data) == 0:
            self.ledger[uid] = hashlib.sha256(data).hexdigest()


def assert_kept(root: Path, ledger: Ledger) -> None:
    """Every acknowledged object is there with its bytes, and everything visible is whole."""
    with Spool(root) as spool:
        rows = [spool.instance(i) for (i,) in spool.db.execute("SELECT id FROM instances")]
        for row in rows:
            spool.read(row)  # raises where a visible object is not the one received
        visible = {row.sop_uid: row.sha256 for row in rows}
        assert {uid: visible.get(uid) for uid in ledger} == ledger
        for study in spool.studies():
            assert study.instances == len(spool.instances(study.study_key))


@pytest.fixture
def modalities() -> Iterator[Callable[[int, int], Ledger]]:
    stop = threading.Event()
    threads: list[Modality] = []

    def start(port: int, count: int) -> Ledger:
        ledger: Ledger = {}
        threads.extend(Modality(port, n, ledger, stop) for n in range(count))
        for thread in threads:
            thread.start()
        return ledger

    start.stop = lambda: (stop.set(), [t.join(10) for t in threads])  # type: ignore[attr-defined]
    yield start
    stop.set()


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(receiver: Make, modalities: object) -> None:
    one = receiver(processes=2)
    ledger = modalities(one.port, 3)  # type: ignore[operator]
    chance = random.Random(4)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.6))
        victims = list(one.processes) if chance.random() < 0.3 else [chance.choice(one.processes)]
        for process in victims:
            process.send_signal(signal.SIGKILL)
            process.wait()
            one.processes.remove(process)
        started = one.log().count("receiver.listening")
        one.count = len(victims)
        one.start(wait=False)
        deadline = time.monotonic() + 60
        while one.log().count("receiver.listening") < started + len(victims):
            assert time.monotonic() < deadline, one.log()
            time.sleep(0.05)
    time.sleep(0.3)
    modalities.stop()  # type: ignore[attr-defined]
    assert len(ledger) > KILLS
    assert echo(one.port) == 0
    one.kill()
    assert recover(one.spool_root).adopted >= 0
    assert_kept(one.spool_root, ledger)
    size = sum(p.stat().st_size for p in (one.spool_root / "segments").iterdir())
    before = studies(one.spool_root)
    report = reindex(one.spool_root)
    assert report.adopted == len(before), "reindex finds what the index had"
    assert studies(one.spool_root) == before
    assert_kept(one.spool_root, ledger)
    assert size == sum(p.stat().st_size for p in (one.spool_root / "segments").iterdir()), "and touches no byte"


def studies(root: Path) -> dict[str, tuple[str, str, str]]:
    with Spool(root) as spool:
        return {
            u: (k, s, c)
            for u, k, s, c in spool.db.execute("SELECT sop_uid, study_key, sha256, calling_ae FROM instances")
        }


def test_a_power_cut_that_takes_the_unsynced_index_with_it_takes_no_object(receiver: Make, tmp_path: Path) -> None:
    """The index is written without a sync of its own; whatever a power cut leaves of its log, the segments make it whole."""
    one = receiver()
    ledger: Ledger = {}
    with Raw(one.port) as raw:
        raw.associate()
        for n in range(120):
            data = dataset(f"2.25.6.{n}", pixels=os.urandom(500 + n))
            assert raw.store(f"2.25.6.{n}", data) == 0
            ledger[f"2.25.6.{n}"] = hashlib.sha256(data).hexdigest()
        one.kill()
    wal = one.spool_root / "spool.db-wal"
    whole = wal.stat().st_size
    for cut in (0, 31, whole // 3, whole // 2 + 7, whole - 5):
        copy = tmp_path / f"cut{cut}"
        shutil.copytree(one.spool_root, copy)
        os.truncate(copy / "spool.db-wal", cut)
        (copy / "spool.db-shm").unlink(missing_ok=True)
        (segment,) = (copy / "segments").iterdir()
        with open(segment, "ab") as file:
            file.write(b"FPSEG01\n" + os.urandom(300))  # the torn tail of a group that was never promised
        recover(copy)
        assert_kept(copy, ledger)
        assert recover(copy).adopted == 0, "a second recovery has nothing to do"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_refuses_and_goes_on_by_itself_once_there_is_room(receiver: Make, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(7 << 20))
    one = receiver(small_disk, start=False)
    one.config.write_text(one.config.read_text().replace("min_free_mb = 1", "min_free_mb = 0"))
    one.start()
    ledger: Ledger = {}
    seen = []
    with Raw(one.port) as raw:
        raw.associate()
        for n in range(40):
            data = dataset(f"2.25.7.{n}", pixels=os.urandom(300_000))
            status = raw.store(f"2.25.7.{n}", data)
            seen.append(status)
            if status == 0:
                ledger[f"2.25.7.{n}"] = hashlib.sha256(data).hexdigest()
        big = dataset("2.25.8", pixels=os.urandom(9 << 20))
        assert raw.store("2.25.8", big) == 0xA700, "also in the middle of an object that is streamed"
        assert set(seen) == {0, 0xA700}
        ballast.unlink()
        time.sleep(1.0)
        data = dataset("2.25.9", pixels=os.urandom(300_000))
        assert raw.store("2.25.9", data) == 0
        ledger["2.25.9"] = hashlib.sha256(data).hexdigest()
    one.kill()
    recover(one.spool_root)
    assert_kept(one.spool_root, ledger)
    with one.spool() as spool:
        assert {i.sop_uid for s in spool.studies() for i in spool.instances(s.study_key)} == set(ledger)


def test_a_damaged_index_is_named_and_can_be_rebuilt_labels_included(receiver: Make) -> None:
    one = receiver()
    with Raw(one.port) as raw:
        raw.associate()
        for n in range(5):
            assert raw.store(f"2.25.5.{n}", dataset(f"2.25.5.{n}")) == 0
    with one.spool() as spool:
        spool.put_labels([("A-1", "finding", "normal")], "labels.csv")
    with pytest.raises(StorageError, match="stop the node"):
        reindex(one.spool_root)
    one.stop()
    before = studies(one.spool_root)
    assert reindex(one.spool_root).adopted == 5
    assert studies(one.spool_root) == before
    with one.spool() as spool:
        assert spool.labels("A-1") == {"finding": "normal"}
    for path in one.spool_root.glob("spool.db*"):
        path.unlink()
    (one.spool_root / "spool.db").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    one.start(wait=False)
    assert one.processes[0].wait(15) == 7
    assert "fedpacs node reindex" in one.log()
    one.processes.clear()
    assert reindex(one.spool_root).adopted == 5
    assert studies(one.spool_root) == before


def test_a_locked_index_holds_the_answer_back_instead_of_losing_the_object(receiver: Make) -> None:
    one = receiver()
    with Raw(one.port, timeout=20) as raw:
        raw.associate()
        assert raw.store("2.25.3.1", dataset("2.25.3.1")) == 0
        other = sqlite3.connect(one.spool_root / "spool.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answered: list[int] = []
        sender = threading.Thread(target=lambda: answered.append(raw.store("2.25.3.2", dataset("2.25.3.2"))))
        sender.start()
        time.sleep(0.7)
        assert answered == []
        other.execute("ROLLBACK")
        other.close()
        sender.join(15)
        assert answered == [0]
    assert len(studies(one.spool_root)) == 2
