"""The plugin in a newer Orthanc, where a root folder with one is given.

As root: debootstrap --include=orthanc,orthanc-python trixie DIR; FEDPACS_TEST_ORTHANC_ROOT=DIR pytest THIS_FILE
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.interop.orthanc_process import PLUGIN, free_port

ROOT = Path(os.environ.get("FEDPACS_TEST_ORTHANC_ROOT", "/nonexistent"))
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (ROOT / "usr/sbin/Orthanc").exists(),
        reason="FEDPACS_TEST_ORTHANC_ROOT names no root folder with a newer Orthanc (see the docstring), or we are not root",
    ),
]


def test_routes_answer_and_orthanc_ends_cleanly() -> None:
    port, folder = free_port(), ROOT / "tmp" / f"fedpacs-{os.getpid()}"
    folder.mkdir()
    shutil.copytree(PLUGIN.parent, folder / "plugin")
    (folder / "token").write_text("x" * 30)
    inside = Path("/") / folder.relative_to(ROOT)
    settings = {
        "StorageDirectory": str(inside / "db"),
        "HttpPort": port,
        "DicomPort": free_port(),
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"alice": "pw"},
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancPython.so"],
        "PythonScript": str(inside / "plugin" / "fedpacs_plugin.py"),
        "Fedpacs": {"Url": "http://127.0.0.1:9", "TokenFile": str(inside / "token")},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["chroot", str(ROOT), "/usr/sbin/Orthanc", str(inside / "orthanc.json")], stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("alice", "pw"), trust_env=False) as client:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                try:
                    health = client.get("/fedpacs/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert client.get("/system").json()["Version"] >= "1.12"
            assert health.status_code == 503 and "does not answer" in health.json()["node"]["error"]
            assert client.get("/fedpacs/rules").json()["problems"] == []
            assert client.get("/fedpacs/page").headers["cache-control"] == "no-store"
            assert client.post("/fedpacs/pause").status_code == 403
            assert client.get("/fedpacs/pause").status_code == 405
            assert "fedpacs-button" in client.get("/plugins/explorer.js").text
        process.terminate()
        assert process.wait(30) == 0, "it ends cleanly"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
