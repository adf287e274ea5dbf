"""Receiver processes as the node starts them, on a free port and a folder of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node.spool import Spool

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Receiver:
    """One or more receiver processes on one port."""

    def __init__(self, folder: Path, processes: int = 1, port: int = 0, storage: str = "", **dicom: object) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.spool_root = folder / "spool"
        self.config = folder / "node.toml"
        (folder / "run").mkdir(exist_ok=True)
        lines = [
            f"{k} = {_toml(v)}"
            for k, v in ({"ae_title": "TEST", "port": self.port, "host": "127.0.0.1"} | dicom).items()
        ]
        self.config.write_text("[dicom]\n" + "\n".join(lines) + f"\n[storage]\nmin_free_mb = 1\n{storage}\n")
        self.count = processes
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, wait: bool = True) -> Receiver:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "dicom_node.receiver", "--config", str(self.config)]
        with open(self.folder / "receiver.log", "ab") as log:
            for _ in range(self.count):
                self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT, env=env))
        if wait:
            self.wait()
        return self

    def wait(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while self.log().count("receiver.listening") < len(self.processes) + self._stopped:
            assert all(p.poll() is None for p in self.processes), self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    _stopped = 0

    def log(self) -> str:
        paths = (self.folder / "receiver.log", self.folder / "logs" / "receiver.jsonl")
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def alive(self) -> bool:
        return all(p.poll() is None for p in self.processes)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> list[int]:
        return self._end(signal.SIGTERM)

    def _end(self, signum: int) -> list[int]:
        self._stopped = self.log().count("receiver.listening")
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(15))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        self.processes.clear()
        return codes

    def spool(self) -> Spool:
        return Spool(self.spool_root)

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.processes[0].pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.processes[0].pid}/fd").iterdir()))


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(folder: Path | None = None, start: bool = True, **options: object) -> Receiver:
        made.append(Receiver(folder or tmp_path, **options))  # type: ignore[arg-type]
        return made[-1].start() if start else made[-1]

    yield make
    for one in made:
        one.kill()
