"""A receiver that is harmed at random moments: `python -m tests.dicom_node.receiver.harm ROOT SMALL_DISK|- TRIALS SEED`.

Each trial forks a real receiver (from a process that has its imports done and no thread, so that a trial costs milliseconds),
sends it objects over real associations, harms it, kills it, restarts what a node would restart, and looks at everything that is
visible. Prints one JSON object with what was tried, acknowledged and refused; fails at the first object that is missing or half
there.

    full      the disk fills up in the middle of an object, and is freed later (a small file system)
    limit     no file may grow beyond a random size (RLIMIT_FSIZE): the next write of a segment, or of the index, fails
    locked    another process holds the index's write lock for random times, beyond the receiver's patience
    damaged   the index is overwritten or cut at random places, while the receiver runs or after; then rebuilt
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dicom_node.errors import StorageError
from dicom_node.receiver.server import Server
from dicom_node.receiver.settings import Settings
from dicom_node.spool import Spool, database, recover, reindex
from tests.dicom_node.receiver.wire import Closed, Raw, dataset, p_data, store_rq

SPILL = 300_000
SIZES = (50, 2_000, 40_000, 150_000, 700_000)
KINDS = ("full", "limit", "locked", "damaged")


@dataclass
class Trial:
    """One trial: where, on which kind of harm, and what was promised in this folder so far."""

    root: Path
    kind: str
    chance: random.Random
    tally: Counter[str]
    promised: dict[str, str] = field(default_factory=dict)  # SOP Instance UID → SHA-256 of the data set
    sent: dict[str, str] = field(default_factory=dict)


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; -> its pid. It ends with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must end here whatever happens, and tell its parent by its status
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finished(work: Callable[[], None], what: str) -> None:
    _, status = os.waitpid(forked(work), 0)
    if status:
        fail(f"{what} failed")


def fail(what: str) -> NoReturn:
    raise SystemExit(f"harm: {what}")


# -- the receiver -----------------------------------------------------------------------------------------------------


def start(trial: Trial) -> tuple[int, int]:
    """-> (pid, port) of a receiver on the trial's folder, recovered as at every start."""
    reading, writing = os.pipe()
    limit = trial.chance.choice((200_000, 400_000, 1_000_000)) if trial.kind == "limit" else 0

    def work() -> None:
        os.close(reading)
        database.BUSY_SECONDS = 0.05
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        settings = Settings(trial.root, host="127.0.0.1", port=0, ae_title="TEST", min_free_mb=0, spill_bytes=SPILL)
        server = Server(settings)
        os.write(writing, struct.pack("<I", server.port))
        server.serve()

    pid = forked(work)
    os.close(writing)
    told = os.read(reading, 4)
    os.close(reading)
    if len(told) < 4:
        os.waitpid(pid, 0)
        fail(f"the receiver did not start ({trial.kind})")
    return pid, struct.unpack("<I", told)[0]


def send(trial: Trial, port: int, number: int, during: Callable[[int], None]) -> None:
    """Objects over two associations; a few break off. What is answered with Success is promised."""
    chance = trial.chance
    peers = [Raw(port, timeout=30) for _ in range(2)]
    try:
        for peer in peers:
            peer.associate()
        for n in range(chance.randint(2, 8)):
            during(n)
            uid = f"2.25.{number + 1}.{n}"
            data = dataset(uid, pixels=chance.randbytes(chance.choice(SIZES)))
            trial.sent[uid] = hashlib.sha256(data).hexdigest()
            peer = chance.choice(peers)
            if chance.random() < 0.1:  # the modality goes away in the middle
                peers.remove(peer)
                peer.send(p_data(1, 3, store_rq(uid)), p_data(1, 0, data[: len(data) // 2]))
                peer.socket.close()
                peers.append(Raw(port, timeout=30))
                peers[-1].associate()
                trial.tally["broken off"] += 1
                continue
            status = peer.store(uid, data)
            trial.tally["acknowledged" if status == 0 else "refused"] += 1
            if status == 0:
                trial.promised[uid] = trial.sent[uid]
            elif status != 0xA700:
                fail(f"an object was answered with 0x{status:04X} ({trial.kind})")
        if chance.random() < 0.5:  # killed in the middle of an object
            peers[0].send(p_data(1, 3, store_rq("2.25.9")), p_data(1, 0, dataset("2.25.9")[:200]))
    except Closed:
        fail(f"the receiver ended an association ({trial.kind})")
    finally:
        for peer in peers:
            peer.socket.close()


def kill(pid: int, kind: str) -> None:
    ended, _ = os.waitpid(pid, os.WNOHANG)
    if ended:
        fail(f"the receiver died of {kind}")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# -- harm -------------------------------------------------------------------------------------------------------------


def fill(ballast: Path, chance: random.Random) -> None:
    """Leave between nothing and 1.5 MB free on the small disk."""
    disk = os.statvfs(ballast.parent)
    free = disk.f_bavail * disk.f_frsize - chance.randint(0, 1_500_000)
    with open(ballast, "ab") as file:
        for _ in range(max(0, free) >> 16):
            try:
                file.write(bytes(1 << 16))
                file.flush()
            except OSError:
                return


def lock(root: Path, seed: int) -> int:
    """A process that holds the index's write lock again and again."""

    def work() -> None:
        chance = random.Random(seed)
        while True:
            other = sqlite3.connect(root / "spool.db", isolation_level=None, timeout=5)
            other.execute("BEGIN IMMEDIATE")
            time.sleep(chance.choice((0.001, 0.02, 0.15)))
            other.execute("ROLLBACK")
            other.close()
            time.sleep(chance.uniform(0, 0.03))

    return forked(work)


def damage(root: Path, chance: random.Random, running: bool = False) -> None:
    """Overwrite or cut the index, its log, or both, at random places.

    While a receiver runs its shared memory is let be: cutting a file that is mapped kills whoever has it mapped, by SIGBUS.
    """
    for path in root.glob("spool.db*"):
        if chance.random() < 0.3 or (running and path.name.endswith("-shm")):
            continue
        size = path.stat().st_size
        how = chance.random()
        if how < 0.3:
            os.truncate(path, chance.randint(0, size))
        elif how < 0.9:
            with open(path, "r+b") as file:
                for _ in range(chance.randint(1, 6)):
                    file.seek(chance.randint(0, max(0, size - 1)))
                    file.write(chance.randbytes(chance.choice((1, 16, 4096))))
        elif not path.name.endswith("-shm"):
            path.write_bytes(chance.randbytes(5_000))


def check(trial: Trial) -> None:
    """Every promised object is visible with its bytes, and nothing is visible that was not sent whole."""
    with Spool(trial.root) as spool:
        rows = [spool.instance(i) for (i,) in spool.db.execute("SELECT id FROM instances")]
        for row in rows:
            spool.read(row)
        there = {row.sop_uid: row.sha256 for row in rows}
        studies = sum(study.instances for study in spool.studies())
    assert len(there) == len(rows) == studies
    assert trial.promised.items() <= there.items(), f"lost after {trial.kind}"
    assert there.items() <= trial.sent.items(), f"half an object is visible after {trial.kind}"


# -- trials -----------------------------------------------------------------------------------------------------------


def harmed(trial: Trial, number: int) -> None:
    chance, ballast, locker = trial.chance, trial.root.parent / "ballast", 0
    moment = chance.randint(0, 4)
    pid, port = start(trial)

    def during(n: int) -> None:
        if trial.kind == "full" and n == moment:
            fill(ballast, chance)
        elif trial.kind == "full" and n == moment + 2:
            ballast.unlink(missing_ok=True)

    if trial.kind == "locked":
        locker = lock(trial.root, number)
    send(trial, port, number, during)
    if trial.kind == "damaged" and chance.random() < 0.5:
        damage(trial.root, chance, running=True)
        send(trial, port, number + 1_000_000, during)
    time.sleep(chance.uniform(0, 0.004))
    kill(pid, trial.kind)
    if locker:
        os.kill(locker, signal.SIGKILL)
        os.waitpid(locker, 0)
    if trial.kind == "damaged":
        damage(trial.root, chance)
    restart(trial, ballast)


def restart(trial: Trial, ballast: Path) -> None:
    """What the node does after a crash, and a look; on a full disk it may fail, and is done again once there is room."""

    def again() -> None:
        if trial.kind == "damaged":
            reindex(trial.root)
            for former in trial.root.glob("spool.db.before-reindex-*"):
                former.unlink()
        else:
            recover_with_room(trial.root, ballast)
        check(trial)

    finished(again, f"the restart after {trial.kind}")


def recover_with_room(root: Path, ballast: Path) -> None:
    try:
        recover(root)
    except StorageError:
        if not ballast.exists():
            raise
        ballast.unlink()
        recover(root)
    ballast.unlink(missing_ok=True)


def main() -> None:
    root, small, trials, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    kinds = [kind for kind in KINDS if (kind == "full") == (small != "-")]
    tally: Counter[str] = Counter()
    folders: dict[str, Trial] = {}
    chance = random.Random(seed)
    gc.collect()
    gc.freeze()  # a fork then copies fewer pages
    for number in range(trials):
        kind = kinds[number % len(kinds)]
        # a fresh spool now and then: in between it grows over its harms, but must leave a small disk room for its index
        if number // len(kinds) % (5 if kind == "full" else 14) == 0:
            folder = Path(small) if kind == "full" else root / kind
            shutil.rmtree(folder / "spool", ignore_errors=True)
            folder.mkdir(exist_ok=True)
            folders[kind] = Trial(folder / "spool", kind, chance, tally)
        harmed(folders[kind], number)
        tally[kind] += 1
    print("\n" + json.dumps(tally))  # a receiver may have been killed in the middle of a line of its log


if __name__ == "__main__":
    main()
