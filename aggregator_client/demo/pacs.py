"""The first hospital's PACS: a real Orthanc with the fedpacs plugin, when Debian's packages are installed."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import httpx

from aggregator_client.demo.processes import Child, Children, DemoError

LIBRARIES = (
    Path("/usr/share/orthanc/plugins/libOrthancPython.so"),
    Path("/usr/share/orthanc/plugins-available/libOrthancPython.so"),
)
USER = "fedpacs-demo"


def missing() -> str:
    """Why no Orthanc can be started here, or "" when one can."""
    if shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
        return "Orthanc is not installed (apt-get install orthanc orthanc-python)"
    if not any(path.exists() for path in LIBRARIES):
        return "Orthanc's Python plugin is not installed (apt-get install orthanc-python)"
    if not _plugin().exists():
        return "the fedpacs plugin's file is not beside this installation"
    return ""


@dataclass(frozen=True)
class Pacs:
    """Where the hospital's Orthanc listens; `password_file` is what its node reads."""

    folder: Path
    http_port: int
    dicom_port: int
    ae_title: str = "PACS"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    def write(self, node_url: str, token_file: Path) -> Path:
        """Write password and orthanc.json; the two plugin lines in it are what an admin would add."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.password_file.write_text(secrets.token_urlsafe(24), encoding="utf-8")
        self.password_file.chmod(0o600)
        settings = {
            "Name": "Demo PACS",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: self.password_file.read_text(encoding="utf-8")},
            "StableAge": 2,
            "Plugins": [str(next(path for path in LIBRARIES if path.exists()))],
            "PythonScript": str(_plugin()),
            "Fedpacs": {"Url": node_url, "TokenFile": str(token_file)},
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        path.chmod(0o600)
        return path

    def start(self, children: Children, node_url: str, token_file: Path) -> Child:
        """Start Orthanc and wait until it answers. Errors: DemoError with Orthanc's last words."""
        program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if program is None:
            raise DemoError(missing())
        # Nagle on either side costs 40 ms an instance; Orthanc reads this variable through dcmtk.
        argv = ["env", "TCP_NODELAY=1", program, str(self.write(node_url, token_file))]
        child = children.start("Orthanc", argv, self.folder / "orthanc.log")
        children.wait("Orthanc's start", lambda: (self._answers(), None), stall_seconds=30, suspects=[child])
        return child

    def _answers(self) -> bool:
        try:
            password = self.password_file.read_text(encoding="utf-8")
            return httpx.get(f"{self.url}/system", auth=(USER, password), timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False


def _plugin() -> Path:
    found = importlib.util.find_spec("plugin")
    folder = next(iter(found.submodule_search_locations or []), "") if found else ""
    return Path(folder) / "fedpacs_plugin.py"
