"""Writers and recoveries that are killed at random moments: `python -m tests.dicom_node.spool.killed ROOT KILLS SEED`.

Forks each from a process that has its imports done and no thread, so that a kill costs milliseconds. Prints `UID SHA-256` for
every instance that a writer was told is kept, as the writer wrote it down the moment it was told.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from dicom_node.spool import Incoming, Ingest, recover, scan
from dicom_node.spool.digest import Digest
from tests.dicom_node.receiver.wire import EXPLICIT, dataset


def write(root: Path, number: int, pipe: int) -> None:
    """Keep groups of instances until killed; one line of the pipe for each group that was acknowledged."""
    chance = random.Random(number)
    ingest = Ingest(root, synchronous="NORMAL")
    group = 0
    while True:
        group += 1
        batch, lines = [], []
        for n in range(chance.randint(1, 5)):
            uid = f"2.25.{number + 1}.{group}.{n}"
            data = dataset(uid, pixels=chance.randbytes(chance.choice((50, 2_000, 40_000))))
            batch.append(Incoming(scan(data, EXPLICIT), EXPLICIT, "MODALITY", Digest([data]), len(data), (data,)))
            lines.append(f"{uid} {hashlib.sha256(data).hexdigest()}\n")
        ingest.commit(batch)
        os.write(pipe, "".join(lines).encode())  # less than PIPE_BUF: whole or not at all


def recover_again(root: Path, number: int, pipe: int) -> None:
    """Recover until killed."""
    while True:
        recover(root)
        os.write(pipe, b"\n")


def kill_one(root: Path, number: int, chance: random.Random) -> bytes:
    """Start one process, kill it at a random moment, and return what it had written down."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            (recover_again if number % 4 == 3 else write)(root, number, writing)
        finally:
            os._exit(1)  # only a failure comes here
    os.close(writing)
    if chance.random() < 0.7:  # otherwise it dies while it is still opening the index
        select.select([reading], [], [], 60)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    if not os.WIFSIGNALED(status):
        raise SystemExit(f"process {number} failed before it was killed")
    return told


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    for number in range(kills):
        sys.stdout.buffer.write(kill_one(root, number, chance))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
