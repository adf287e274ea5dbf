"""docs/orthanc.md followed word for word, on Debian's own configuration folder, until Orthanc and node see each other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.config import load_config
from tests.interop.node_process import ROOT
from tests.interop.orthanc_process import MISSING, free_port
from tests.interop.studies import ct_instance, planted

DEBIAN = Path("/etc/orthanc")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.skipif(not (DEBIAN / "python.json").exists(), reason="Debian's /etc/orthanc is not here"),
]
TEXT = (ROOT / "docs" / "orthanc.md").read_text()


def block(language: str, number: int = 0, section: str = "") -> str:
    text = TEXT.split(f"\n## {section}", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)[number]


class Machine:
    """What a hospital's machine is to the page: its folders, its ports, its systemctl."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.http, self.dicom = folder, free_port(), free_port()
        self.orthanc, self.node = folder / "etc-orthanc", folder / "srv-fedpacs"
        self.console, self.ports = free_port(), free_port()
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        shutil.copytree(DEBIAN, self.orthanc)
        for file in self.orthanc.glob("*.json"):  # somebody else may have installed the plugin on this machine
            text = file.read_text()
            for key, value in {"HttpPort": self.http, "DicomPort": self.dicom, "StableAge": 1}.items():
                text = re.sub(rf'^(\s*"{key}"\s*:\s*)\d+', rf"\g<1>{value}", text, flags=re.M)
            for key in ("StorageDirectory", "IndexDirectory"):
                text = re.sub(rf'^(\s*"{key}"\s*:\s*)"[^"]*"', rf'\g<1>"{folder / "db"}"', text, flags=re.M)
            file.write_text(text)
        (folder / "sample.py").write_text("print('ours')\n")
        python = self.orthanc / "python.json"
        python.write_text(python.read_text().replace("/etc/orthanc/sample.py", str(folder / "sample.py")))

    def here(self, text: str) -> str:
        for there, here in (
            ("/etc/orthanc", str(self.orthanc)),
            ("/srv/fedpacs", str(self.node)),
            ("127.0.0.1:8042", f"127.0.0.1:{self.http}"),
        ):
            text = text.replace(there, here)
        return text

    def run(self, line: str) -> str:
        words = shlex.split(self.here(line))
        if words[:2] == ["systemctl", "restart"]:
            self.start("orthanc", ["Orthanc", str(self.orthanc)])
            return ""
        if words[0] == "fedpacs":
            words[:1] = [sys.executable, "-c", "from dicom_node.cli import main; main()"]
            if "run" in words:
                self.start("node", words)
                return ""
        if ">" in words:
            words = ["sh", "-c", self.here(line)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.children[name] = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)

    def curl(self, line: str) -> str:
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(shlex.split(self.here(line)), capture_output=True, text=True, check=False)
            if done.returncode == 0 and '"status"' in done.stdout:
                return done.stdout
            logs = [p.read_text() for p in self.folder.glob("*.log")]
            assert time.monotonic() < deadline, (done.stdout, done.stderr, *logs)
            time.sleep(0.3)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    one = Machine(tmp_path)
    yield one
    for child in one.children.values():
        child.terminate()
    for child in one.children.values():
        child.wait(30)


def test_the_page_leads_to_a_working_pair(machine: Machine) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    init, *password = [*block("sh", 0, "1. ").splitlines(), *block("sh", 1, "1. ").splitlines()]
    machine.run(init)
    node_toml = machine.node / "node.toml"
    text = node_toml.read_text()
    for line in block("toml", 0, "1. ").splitlines():
        key = line.split(" =")[0]
        head, orthanc = text.split("[orthanc]")
        orthanc = re.sub(rf"^(# )?{key} = .*$", machine.here(line), orthanc, count=1, flags=re.M)
        text = f"{head}[orthanc]{orthanc}"
    text = text.replace("port = 11112", f"port = {machine.ports}").replace("port = 8080", f"port = {machine.console}")
    node_toml.write_text(text.replace("quiet_seconds = 30 ", "quiet_seconds = 1 "))
    assert load_config(node_toml).orthanc.username == "fedpacs"
    credentials = machine.orthanc / "credentials.json"
    credentials.write_text("{" + block("json", 0, "1. ") + ', "AuthenticationEnabled": true}')
    for line in password:
        machine.run(line)

    for line in block("sh", 0, "2. ").splitlines():
        machine.run(line)
    by_hand = json.loads("{" + block("json", 0, "2. ") + "}")
    installed = json.loads((machine.orthanc / "fedpacs.json").read_text())["Fedpacs"]
    assert set(by_hand["Fedpacs"]) <= set(installed), "the lines by hand are those of the command"

    run, restart, curl = block("sh", 0, "3. ").splitlines()
    machine.run(run)
    machine.run(restart)
    health = json.loads(machine.curl(curl))
    assert (health["plugin"], health["problems"], health["node"]["status"]) == ("0.2.0", [], "ok")
    assert (machine.folder / "orthanc.log").read_text().count("ours"), "the script that was there before still runs"

    import httpx

    with httpx.Client(
        base_url=f"http://127.0.0.1:{machine.http}", auth=("alice", "her password"), trust_env=False
    ) as orthanc:
        stored = orthanc.post("/instances", content=ct_instance(planted(1))).json()
        deadline, state = time.monotonic() + 60, ""
        while state != "eligible":
            state = orthanc.get(f"/fedpacs/studies/{stored['ParentStudy']}").json().get("state", "")
            assert time.monotonic() < deadline, state
            time.sleep(0.3)
    assert (machine.orthanc / "fedpacs" / "api.token").stat().st_mode & 0o007 == 0


def test_every_setting_is_on_the_page() -> None:
    sys.path.append(str(ROOT / "plugin"))
    from fedpacs_settings import DEFAULTS, OFFER  # type: ignore[import-not-found]

    section = TEXT.split("## Settings of the section", 1)[1].split("\n## ", 1)[0]
    assert not [key for key in DEFAULTS if f"| `{key}` |" not in section]
    assert not [key for key in OFFER if f"`{key}`" not in section]
