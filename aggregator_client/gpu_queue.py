"""Which GPUs a job of this node gets, and when: one job a GPU, in the order in which jobs came.

The processes that train and that predict share one folder. A job waits with a ticket and holds its cards through locked files,
which the kernel lets go when the process ends, however it ends; so a killed job leaves nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from dicom_node.config import NodeConfig

POLL_SECONDS = 0.2


@cache
def cards() -> tuple[str, ...]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES or else nvidia-smi names them; () without any."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip() not in ("", "-1"))
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        said = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(str(number) for number, line in enumerate(said.splitlines()) if line.startswith("GPU "))


def of_node(config: NodeConfig) -> GpuQueue:
    """The queue of this node's jobs; without cards when the node is set to train on the CPU."""
    there = () if config.federation.device == "cpu" else cards()
    return GpuQueue(config.storage.federation / "gpus", there)


class GpuQueue:
    """The cards of one node. Any number of processes may open the same folder."""

    def __init__(self, folder: Path, there: Sequence[str]) -> None:
        self.folder, self.there = folder, tuple(there)

    def at_once(self, wanted: int) -> int:
        """How many processes a training takes: `wanted` (0 for all) of the cards there are, and 1 without any."""
        return max(1, min(wanted or len(self.there), len(self.there)))

    @contextmanager
    def turn(self, count: int, may_wait: Callable[[], None]) -> Iterator[dict[str, str]]:
        """Hold `count` cards: the environment that shows a job these alone. Without cards nobody waits, and it is empty.

        `may_wait` is called again and again while others are before us and raises to give up.
        """
        if not self.there:
            yield {}
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held: dict[str, int] = {}
        ticket, mine = self._ticket()
        try:
            while len(held) < min(count, len(self.there)):
                if not self._before(ticket):
                    self._take(held, min(count, len(self.there)))
                if len(held) < min(count, len(self.there)):
                    may_wait()
                    time.sleep(POLL_SECONDS)
            ticket.unlink()
            yield {"CUDA_VISIBLE_DEVICES": ",".join(held)}
        finally:
            ticket.unlink(missing_ok=True)
            for descriptor in (mine, *held.values()):
                os.close(descriptor)

    def _ticket(self) -> tuple[Path, int]:
        """A place at the end of the queue, kept for as long as its descriptor is open."""
        name = f"{time.time_ns():020}-{os.getpid()}"
        part = self.folder / f"{name}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # before anybody sees it, or it looks like a dead one's
        return part.rename(self.folder / f"{name}.ticket"), descriptor

    def _before(self, ticket: Path) -> bool:
        """Whether anybody who still lives came earlier."""
        for other in sorted(self.folder.glob("*.ticket")):
            if other.name >= ticket.name:
                return False
            try:
                descriptor = os.open(other, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
            other.unlink(missing_ok=True)
        return False

    def _take(self, held: dict[str, int], count: int) -> None:
        """Lock what is free, up to `count` cards. Only the first of the queue does so, so nobody waits for each other."""
        for card in self.there:
            if card in held or len(held) == count:
                continue
            descriptor = os.open(self.folder / f"{card.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[card] = descriptor
            except BlockingIOError:
                os.close(descriptor)
