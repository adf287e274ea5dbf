"""A node run as its command does, in a process of its own, for tests that drive it from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from dicom_node.config import NodeConfig, load_config
from dicom_node.records import Catalogue
from dicom_node.setup import write_default_config
from tests.interop.orthanc_process import free_port

ROOT = Path(__file__).resolve().parents[2]
RUN = (sys.executable, "-c", "from dicom_node.cli import main; main()", "node", "run", "--config")


class RunningNode:
    """`settings` replace values of node.toml by key (a key that stands in several groups is replaced in all)."""

    def __init__(self, folder: Path, **settings: str) -> None:
        if not (folder / "node.toml").exists():
            write_default_config(folder, ae_title="TESTNODE", port=free_port(), http_port=free_port(), name="test")
            text = (folder / "node.toml").read_text()
            for key, value in {"quiet_seconds": "0.5", "processes": "1", **settings}.items():
                lines = text.splitlines()
                text = "\n".join(f"{key} = {value}" if x.lstrip("# ").startswith(f"{key} =") else x for x in lines)
            (folder / "node.toml").write_text(text)
        self.config: NodeConfig = load_config(folder / "node.toml")
        self.process: subprocess.Popen[str] | None = None

    def start(self, wait: float = 40) -> str:
        """Start and wait for the ready line, which is returned."""
        self.process = subprocess.Popen(
            [*RUN, str(self.config.path)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, error = self.process.communicate(timeout=wait)
            raise AssertionError(f"the node ended: {error} {self.crashes()}")
        return line.strip()

    def crashes(self) -> str:
        files = [*self.config.storage.spool.glob("crash/*.stderr"), *self.config.storage.logs.glob("*.stderr")]
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in files if p.stat().st_size)

    def status(self) -> dict[str, Any]:
        """run/status.json."""
        return json.loads((self.config.storage.run / "status.json").read_text())  # type: ignore[no-any-return]

    def pids(self) -> list[int]:
        return [p["pid"] for p in self.status()["processes"].values() if p["pid"]]

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.config.web.port}",
            headers={"Authorization": f"Bearer {self.token_file.read_text().strip()}"},
            trust_env=False,
            timeout=20,
        )

    @property
    def token_file(self) -> Path:
        return self.config.storage.keys / "api.token"

    def catalogue(self) -> Catalogue:
        return Catalogue(self.config.storage.catalogue, self.config.storage.dataset)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        try:
            return self.process.wait(timeout=20)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
            self.process = None


def wait_for(condition: Callable[[], object], seconds: float = 20, told: Callable[[], object] = lambda: "") -> None:
    """Poll until true; the assertion shows what `told` says."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long: {told()}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
