"""Network namespaces of this process joined by a bridge, with lines that can be cut and made bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BAD_LINE = Path(__file__).with_name("bad_line.py")


def ip(*argv: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(argv)}: {done.stderr.strip()}")
    return done.returncode == 0


class Network:
    """A bridge in a namespace of its own, and one namespace for each machine, all under names of this process."""

    def __init__(self, machines: list[str]) -> None:
        self.mark = f"fp{os.getpid() % 100000}"
        self.machines = {name: f"{self.mark}-{i}" for i, name in enumerate(machines)}
        self.middle = f"{self.mark}-b"
        self.lines: list[subprocess.Popen[str]] = []

    def up(self) -> None:
        ip("netns", "add", self.middle)
        ip("-n", self.middle, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.middle, "link", "set", "bridge", "up")
        for number, space in enumerate(self.machines.values()):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "add", "line", "type", "veth", "peer", "name", f"to{number}", "netns", self.middle)
            ip("-n", self.middle, "link", "set", f"to{number}", "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "line")
            ip("-n", space, "link", "set", "line", "up")

    @staticmethod
    def address(number: int) -> str:
        return f"10.213.77.{number + 1}"

    def worsen(self, delay_ms: float = 40, jitter_ms: float = 10, loss: float = 0.05) -> None:
        """Delay and loss on every hospital's line: by netem, or where the kernel has none by a line of our own."""
        for number, space in list(enumerate(self.machines.values()))[1:]:
            netem = ["netem", "delay", f"{delay_ms}ms", f"{jitter_ms}ms", "loss", f"{loss:.0%}"]
            argv = ["tc", "-n", space, "qdisc", "add", "dev", "line", "root", *netem]
            if subprocess.run(argv, capture_output=True, timeout=30).returncode:
                self._replace(number, space, [str(loss), str(delay_ms), str(jitter_ms)])

    def _replace(self, number: int, space: str, how: list[str]) -> None:
        ip("-n", space, "link", "del", "line")
        argv = [sys.executable, str(BAD_LINE), space, "line", self.middle, f"to{number}", *how]
        line = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.lines.append(line)
        if line.stdout is None or line.stdout.readline() != "ready\n":
            raise OSError("no tap device")
        ip("-n", self.middle, "link", "set", f"to{number}", "master", "bridge", "up")
        ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "line")
        ip("-n", space, "link", "set", "line", "up")

    def carried(self) -> dict[str, int]:
        """What our own lines carried and lost, summed; empty where netem did it. Ends them."""
        total: dict[str, int] = {}
        for line in self.lines:
            line.terminate()
            for name, value in json.loads(line.communicate(timeout=10)[0]).items():
                total[name] = total.get(name, 0) + value
        self.lines.clear()
        return total

    def cut(self, machine: str) -> None:
        ip("-n", self.machines[machine], "link", "set", "line", "down")

    def mend(self, machine: str) -> None:
        ip("-n", self.machines[machine], "link", "set", "line", "up")

    def inside(self, machine: str) -> list[str]:
        return ["ip", "netns", "exec", self.machines[machine]]

    def down(self) -> None:
        for line in self.lines:
            line.kill()
            line.wait()
        for space in (*self.machines.values(), self.middle):
            ip("netns", "del", space, check=False)


def require_loss(network: Network) -> None:
    """The lines were as bad as they were meant to be."""
    if told := network.carried():
        assert 0.02 < told["lost"] / (told["lost"] + told["carried"]) < 0.12, told
