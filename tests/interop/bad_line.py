"""A bad line between two network namespaces: real Ethernet frames, of which some are lost and all are late.

    python tests/interop/bad_line.py SPACE DEVICE SPACE DEVICE LOSS DELAY_MS JITTER_MS

Joins two tap devices, one in each namespace (ip netns), and carries frames between them until it is killed. Every frame is lost
with probability LOSS, each way, and the others wait DELAY ± JITTER ms. For kernels without netem; needs root and /dev/net/tun.
Prints "ready", and at the end (SIGTERM) one JSON line: frames and bytes carried, frames lost.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import sys
import time
from dataclasses import dataclass, field

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000


def tap(space: str, device: str) -> int:
    """A file descriptor of a new tap device in that namespace. This process moves into the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}", "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {space}")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TAP | IFF_NO_PI))
    return fd


@dataclass
class Line:
    """Two ends, and the frames between them by the time they are due."""

    ends: tuple[int, int]
    loss: float
    delay: float
    jitter: float
    random: random.Random = field(default_factory=lambda: random.Random(1))
    carried: int = 0
    size: int = 0
    lost: int = 0

    def run(self) -> None:
        """Carry frames until a signal says stop."""
        poll, other = select.poll(), {self.ends[0]: self.ends[1], self.ends[1]: self.ends[0]}
        for end in self.ends:
            poll.register(end, select.POLLIN)
        due: list[tuple[float, int, int, bytes]] = []
        last = dict.fromkeys(self.ends, 0.0)  # a line does not reorder
        count = 0
        while True:
            wait = max(0.0, due[0][0] - time.monotonic()) * 1000 if due else 1000.0
            for end, _ in poll.poll(wait):
                for frame in _waiting(end):
                    if self.random.random() < self.loss:
                        self.lost += 1
                        continue
                    at = time.monotonic() + self.delay + self.random.uniform(-self.jitter, self.jitter)
                    last[end] = max(last[end], at)
                    count += 1
                    heapq.heappush(due, (last[end], count, other[end], frame))
            while due and due[0][0] <= time.monotonic():
                self._deliver(*heapq.heappop(due)[2:])

    def _deliver(self, end: int, frame: bytes) -> None:
        try:
            os.write(end, frame)
        except (BlockingIOError, OSError):  # that end is down: a cut line
            self.lost += 1
            return
        self.carried, self.size = self.carried + 1, self.size + len(frame)


def _waiting(end: int, most: int = 64) -> list[bytes]:
    frames = []
    while len(frames) < most:
        try:
            frames.append(os.read(end, 65536))
        except (BlockingIOError, OSError):  # nothing more, or that end is down
            break
    return frames


def main() -> None:
    space_a, device_a, space_b, device_b = sys.argv[1:5]
    loss, delay, jitter = (float(value) for value in sys.argv[5:8])
    line = Line((tap(space_a, device_a), tap(space_b, device_b)), loss, delay / 1000, jitter / 1000)

    def stop(*_: object) -> None:
        print(json.dumps({"carried": line.carried, "bytes": line.size, "lost": line.lost}), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    line.run()


if __name__ == "__main__":
    main()
