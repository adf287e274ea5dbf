"""docs/orthanc.md as it stands: a real Orthanc with the plugin in front of a real node, driven from outside."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dicom_node.audit import AuditLog
from tests.interop.node_process import ROOT, RunningNode, wait_for
from tests.interop.orthanc_process import MISSING, PASSWORD, USER, Orthanc, free_port
from tests.interop.studies import Planted, ct_instance, planted

pytestmark = [pytest.mark.interop, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
ARTEFACTS = ROOT / ".artefacts"
CHANGE = {"X-Fedpacs": "1"}


class Pair:
    """An Orthanc and a node that know each other, configured as docs/orthanc.md says."""

    def __init__(self, folder: Path) -> None:
        http_port = free_port()
        password = folder / "orthanc.password"
        password.write_text(PASSWORD + "\n")
        self.node = RunningNode(
            folder / "node",
            url=f'"http://127.0.0.1:{http_port}"',
            username=f'"{USER}"',
            password_file=f'"{password}"',
            poll_seconds="0.5",
        )
        fedpacs = documented_section()
        fedpacs |= {"Url": f"http://127.0.0.1:{self.node.config.web.port}", "TokenFile": str(self.node.token_file)}
        self.orthanc = Orthanc(folder / "orthanc", {"Fedpacs": fedpacs}, http_port=http_port)

    def store(self, study: int, *numbers: int) -> None:
        with self.orthanc.client() as client:
            for number in numbers:
                client.post("/instances", content=ct_instance(planted(study), number)).raise_for_status()

    def orthanc_id(self, study: int) -> str:
        with self.orthanc.client() as client:
            query = {"Level": "Study", "Query": {"StudyInstanceUID": planted(study).study_uid}}
            return str(client.post("/tools/find", json=query).json()[0])

    def eligible(self) -> int:
        catalogue = self.node.catalogue()
        try:
            return len(catalogue.studies("eligible"))
        finally:
            catalogue.close()

    def told(self) -> object:
        try:
            with self.node.client() as client:
                return client.get("/status").text + self.node.crashes()
        except httpx.TransportError as error:
            return f"{error} {self.node.crashes()}"

    def wait_eligible(self, studies: int, seconds: float = 30) -> None:
        wait_for(lambda: self.eligible() >= studies, seconds, self.told)


def documented_section() -> dict[str, object]:
    """The section Fedpacs as docs/orthanc.md has it, so that the page cannot drift from what works."""
    text = (ROOT / "docs" / "orthanc.md").read_text()
    block = next(b for b in re.findall(r"```json\n(.*?)```", text, re.S) if '"Fedpacs"' in b)
    document = json.loads("{" + block + "}")
    assert set(document) == {"Plugins", "PythonScript", "Fedpacs"}, "the lines by hand"
    return dict(document["Fedpacs"])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    both = Pair(tmp_path)
    yield both
    both.orthanc.kill()
    both.node.kill()


def storescu(pair: Pair, folder: Path) -> None:
    """C-STORE into Orthanc with dcmtk, as a modality would."""
    program = shutil.which("storescu")
    if program is None:
        pytest.skip("storescu is missing: apt-get install dcmtk")
    subprocess.run(
        [program, "-aec", "ORTHANC", "127.0.0.1", str(pair.orthanc.dicom_port), "+sd", str(folder)],
        check=True,
        timeout=60,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def identified_anywhere(pair: Pair, who: Planted, folders: list[Path]) -> list[str]:
    found = []
    for path in (p for folder in folders for p in ([folder] if folder.is_file() else folder.rglob("*"))):
        if path.is_file():
            data = path.read_bytes()
            found += [f"{path.name}: {token}" for token in who.tokens() if token.encode() in data]
    return found


def test_a_study_stored_in_orthanc_arrives_once_and_its_state_shows_in_orthanc(pair: Pair, tmp_path: Path) -> None:
    pair.orthanc.start()
    pair.node.start()
    files = tmp_path / "files"
    files.mkdir()
    for number in (1, 2, 3):
        (files / f"{number}.dcm").write_bytes(ct_instance(planted(1), number))
    storescu(pair, files)
    pair.wait_eligible(1)
    study = pair.node.catalogue().studies()[0]
    assert (study.instances, study.modality, study.state) == (3, "CT", "eligible")
    written = [p for p in pair.node.config.storage.dataset.rglob("*") if p.is_file()]
    assert len(written) == 3
    with pair.orthanc.client() as client:
        assert client.get("/fedpacs/health").json()["node"] == {"status": "ok", "node": "test"}
        state = client.get(f"/fedpacs/studies/{pair.orthanc_id(1)}").json()
        assert (state["state"], state["patient_excluded"]) == ("eligible", False)
        page = client.get(f"/fedpacs/page?study={pair.orthanc_id(1)}")
        assert page.status_code == 200 and 'id="study-state">eligible' in page.text and "TESTNODE" in page.text
        assert client.get("/fedpacs/static/console.js").headers["content-type"].startswith("text/javascript")
        assert not [t for t in planted(1).tokens() if t in page.text]
    # a late instance reopens the study; nothing else changes
    pair.store(1, 4)
    wait_for(lambda: pair.node.catalogue().studies()[0].instances == 4, 30, pair.told)
    storage = pair.node.config.storage
    plain = [storage.catalogue, storage.audit, storage.dataset, storage.logs, storage.run]
    assert identified_anywhere(pair, planted(1), [*plain, pair.orthanc.folder / "orthanc.log"]) == []
    assert AuditLog(storage.audit).verify().ok
    screenshots(pair)


def screenshots(pair: Pair) -> None:
    """The pages as a browser paints them; kept under .artefacts/, from where docs/orthanc.md has its pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    ARTEFACTS.mkdir(exist_ok=True)
    base = f"http://{USER}:{PASSWORD}@127.0.0.1:{pair.orthanc.http_port}"
    study = pair.orthanc_id(1)
    for name, url in (
        ("orthanc-federation-page", f"{base}/fedpacs/page?study={study}"),
        ("orthanc-explorer-study", f"{base}/app/explorer.html#study?uuid={study}"),
    ):
        target = ARTEFACTS / f"{name}.png"
        target.unlink(missing_ok=True)
        profile = pair.orthanc.folder / "chromium"
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1400",
             "--virtual-time-budget=6000", f"--user-data-dir={profile}", f"--screenshot={target}", url],
            check=True, timeout=90, capture_output=True,
        )  # fmt: skip
        assert target.stat().st_size > 10_000, f"{name} is not a page"
    dom = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000",
         f"--user-data-dir={profile}", "--dump-dom", f"{base}/app/explorer.html#study?uuid={study}"],
        check=True, timeout=90, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "fedpacs-button" in dom, "the button is on the study's page"
    assert "Federation: eligible" in dom, "the study's state is on its page"


def test_opt_out_and_pause_from_orthanc(pair: Pair) -> None:
    pair.orthanc.start()
    pair.node.start()
    pair.store(1, 1)
    pair.store(2, 1)
    pair.wait_eligible(2)
    with pair.orthanc.client() as client:
        route = f"/fedpacs/studies/{pair.orthanc_id(1)}"
        assert client.post(f"{route}/exclude", json={"reason": "asked"}).status_code == 403, "no header, no change"
        assert client.post(f"{route}/exclude", json={"reason": "asked"}, headers=CHANGE).json() == {"studies": 1}
        state = client.get(route).json()
        assert (state["state"], state["patient_excluded"]) == ("withdrawn", True)
        assert client.post("/fedpacs/pause", json={"reason": "x"}, headers=CHANGE).json()["paused"] is True
        pair.store(3, 1)
        wait_for(
            lambda: client.get(f"/fedpacs/studies/{pair.orthanc_id(3)}").json()["state"] == "complete", 20, pair.told
        )
        assert pair.eligible() == 1, "paused: received, not de-identified"
        assert client.post("/fedpacs/resume", headers=CHANGE).json()["paused"] is False
        pair.wait_eligible(2)
    facts = [r.facts for r in AuditLog(pair.node.config.storage.audit).records("patient.optout")]
    assert [f["by"] for f in facts] == [f"orthanc:{USER}"]


def test_a_node_that_was_down_the_whole_time_catches_up(pair: Pair) -> None:
    pair.orthanc.start()
    for study in range(5):
        pair.store(study, 1, 2)
    with pair.orthanc.client() as client:
        page = client.get("/fedpacs/page")
        assert page.status_code == 503 and "does not answer" in page.text
        assert client.delete("/changes").status_code == 200
    pair.node.start()
    pair.wait_eligible(5)
    with pair.orthanc.client() as client:
        assert client.get("/fedpacs/health").status_code == 200


def test_every_study_is_catalogued_once_under_kill_9_of_both(pair: Pair) -> None:
    chance, studies, kills = random.Random(3), 12, {"node": 0, "orthanc": 0}
    pair.orthanc.start()
    pair.node.start()
    for study in range(studies):
        pair.store(study, 1, 2)
        time.sleep(chance.uniform(0, 0.5))
        if study % 3 == 1:
            victims = [p for name, p in pair.node.status()["processes"].items() if name != "web" and p["pid"]]
            os.kill(chance.choice(victims)["pid"], signal.SIGKILL)
            kills["node"] += 1
        if study % 6 == 3:
            pair.orthanc.kill()
            pair.orthanc.start()
            kills["orthanc"] += 1
        if study == 7:  # all of it at once, in the middle of the work
            pair.node.kill()
            pair.orthanc.kill()
            pair.orthanc.start()
            pair.node.start()
            kills = {name: count + 1 for name, count in kills.items()}
    pair.wait_eligible(studies, 60)
    time.sleep(1.5)  # anything that would come twice comes now
    catalogue = pair.node.catalogue()
    assert len(catalogue.studies()) == studies
    assert {s.instances for s in catalogue.studies()} == {2}
    files = [p for p in pair.node.config.storage.dataset.rglob("*") if p.is_file()]
    assert len(files) == 2 * studies, "no leftover, none missing"
    contents = [
        (r.facts["study"], r.facts["content_hash"])
        for r in AuditLog(pair.node.config.storage.audit).records("study.deidentified")
    ]
    assert len(contents) == len(set(contents)) and {c[0] for c in contents} == {
        s.study_uid for s in catalogue.studies()
    }
    assert kills["node"] >= 5 and kills["orthanc"] >= 3
