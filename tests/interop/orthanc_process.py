"""A real Orthanc in a temporary folder for tests: start, wait, stop or kill by pid."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PLUGIN = Path(__file__).resolve().parents[2] / "plugin" / "fedpacs_plugin.py"
LIBRARIES = (
    "/usr/share/orthanc/plugins/libOrthancPython.so",
    "/usr/share/orthanc/plugins-available/libOrthancPython.so",
)
MISSING = next(
    (
        f"{what} is missing: apt-get install orthanc orthanc-python"
        for what, there in (
            ("Orthanc", shutil.which("Orthanc") is not None),
            ("libOrthancPython.so", any(Path(p).exists() for p in LIBRARIES)),
        )
        if not there
    ),
    "",
)
USER, PASSWORD = "alice", "alice-password"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Orthanc:
    """One Orthanc and its folder; `settings` are merged into its configuration."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    script: Path | None = PLUGIN
    http_port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        return (self.folder / "orthanc.log").read_text(errors="replace")

    def client(self, **kwargs: Any) -> httpx.Client:
        kwargs.setdefault("auth", (USER, PASSWORD))
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **kwargs)

    def write_config(self) -> Path:
        library = next(p for p in LIBRARIES if Path(p).exists())
        config: dict[str, Any] = {
            "StorageDirectory": str(self.folder / "db"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "StableAge": 1,
            **self.settings,
        }
        if self.script:
            config |= {"Plugins": [library], "PythonScript": str(self.script)}
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(config))
        return path

    def start(self, wait: float = 20.0) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["Orthanc", str(self.write_config())],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "TCP_NODELAY": "1"},
            )
        deadline = time.monotonic() + wait
        with self.client() as client:
            while True:
                assert self.process.poll() is None, f"Orthanc ended at start:\n{self.log}"
                assert time.monotonic() < deadline, f"Orthanc did not start:\n{self.log}"
                try:
                    if client.get("/system").status_code == 200:
                        return self
                except httpx.TransportError:
                    time.sleep(0.05)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
