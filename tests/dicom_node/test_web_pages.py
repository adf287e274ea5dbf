"""The console's pages in a real browser and over HTTP: studies, before and after, quarantine, accounts, C-ECHO."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from dicom_node.accounts import Account, Accounts
from dicom_node.audit import AuditLog
from dicom_node.records import Catalogue, StudyRecord
from dicom_node.scu import Peer, send_files
from dicom_node.web.app import create_app
from tests.dicom_node.test_worker import Bench
from tests.interop.browser import ARTEFACTS, browser
from tests.interop.node_process import RunningNode
from tests.interop.studies import ct_instance, planted

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    running = RunningNode(tmp_path_factory.mktemp("console") / "node")
    running.start()
    try:
        folder = running.config.root / "sent"
        folder.mkdir()
        for number in (1, 2, 3):
            (folder / f"{number}.dcm").write_bytes(ct_instance(planted(1), number))
        dicom = running.config.dicom
        peer = Peer(dicom.ae_title, "127.0.0.1", dicom.port)
        assert not send_files(peer, sorted(folder.glob("*.dcm")), "CT1").failed
        until(lambda: Catalogue(running.config.storage.catalogue).counts().get("eligible") == 1)
        yield running
    finally:
        running.stop()


def until(truth: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_a_person_finds_their_way_in_a_browser(node: RunningNode) -> None:
    base = f"http://127.0.0.1:{node.config.web.port}"
    foreign: list[str] = []
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.on("request", lambda request: request.url.startswith(base) or foreign.append(request.url))
        problems: list[str] = []
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        # first run: the token opens the console, the first account is an admin's, and then the token does no longer
        page.goto(base + "/pages/studies")
        assert page.url == base + "/login"
        page.get_by_label("Your name").fill("Ada")
        page.get_by_label("Password").fill((node.config.storage.keys / "api.token").read_text().strip())
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="Accounts").click()
        page.get_by_label("Name", exact=True).fill("Ada")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Make account").click()
        page.locator("#accounts th", has_text="Ada").first.wait_for()
        page.screenshot(path=ARTEFACTS / "console-accounts.png")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(base + "/login")
        for password in ("wrong password", PASSWORD):
            page.get_by_label("Your name").fill("Ada")
            page.get_by_label("Password").fill(password)
            page.keyboard.press("Enter")  # the keyboard alone is enough
            if password != PASSWORD:
                page.get_by_text("The name or the password is wrong").wait_for()
        page.wait_for_url(base + "/")
        assert page.locator("#caller").inner_text() == "console:Ada (admin)"
        # C-ECHO, to ourselves and to nobody
        page.get_by_role("button", name="C-ECHO").click()
        page.get_by_text(re.compile("TESTNODE@.* answered C-ECHO in")).wait_for()
        page.get_by_label("To a peer").fill("NOBODY@127.0.0.1:1")
        page.get_by_role("button", name="C-ECHO").click()
        page.get_by_text("cannot be reached").wait_for()
        # studies: search, open, look over the wall
        page.get_by_role("link", name="Studies").click()
        assert page.locator("#total").inner_text() == "1 study."
        page.get_by_label("begins with").fill("MR")
        page.get_by_role("button", name="Search").click()
        assert page.locator("#total").inner_text() == "0 studies."
        page.get_by_role("link", name="Studies").click()
        page.locator("#studies a").click()
        assert not [token for token in planted(1).tokens() if token in page.content()]
        page.locator("#look").click()
        page.locator("#headers").wait_for()
        name = page.locator("#headers tr", has_text="PatientName")
        assert planted(1).name in name.first.inner_text() and "D: keyed pseudonym" in name.first.inner_text()
        assert page.locator("figure img").evaluate_all("images => images.map(i => i.naturalWidth > 0)") == [True, True]
        page.screenshot(path=ARTEFACTS / "console-before-after.png")
        page.get_by_role("link", name="Next").click()
        page.get_by_text("Instance 2 of 3").wait_for()
        # quarantine
        page.get_by_role("link", name="Quarantine").click()
        assert page.locator("#nothing-set-aside").is_visible()
        # pause and resume
        page.get_by_role("link", name="Home").click()
        page.get_by_role("button", name="Pause").click()
        page.get_by_label("Reason").fill("moving house")
        page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        page.get_by_text("Paused by console:Ada").wait_for()
        page.get_by_role("button", name="Resume").click()
        page.get_by_role("button", name="Pause").wait_for()
        # the daemon is restarted: the page says so, finds it again, and shows what came meanwhile without being loaded again
        page.evaluate("window.kept = true")
        node.stop()
        page.locator("#live").wait_for()
        with closing(Catalogue(node.config.storage.catalogue)) as catalogue:
            catalogue.add_study(StudyRecord("2.25.99", "P99", "CT", instances=1), [])
        node.start()
        page.locator("#eligible", has_text="2").wait_for()
        page.locator("#live").wait_for(state="hidden")
        assert page.evaluate("window.kept")
    assert foreign == [], "no request to any other host"
    away = (
        "403",
        "502",
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_CONNECTION_RESET",
        "net::ERR",
    )
    assert [p for p in problems if not any(word in p for word in away)] == []
    kinds = [record.kind for record in AuditLog(node.config.storage.audit).records()]
    for kind in ("account.added", "login.refused", "login", "study.compared"):
        assert kind in kinds
    assert AuditLog(node.config.storage.audit).verify().ok


def test_senders_and_what_was_not_taken_of_them_are_told_to_prometheus(node: RunningNode) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    dicom = node.config.dicom
    with socket.create_connection(("127.0.0.1", dicom.port), 10) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no DICOM
        assert stranger.recv(1024)[:1] == b"\x07", "A-ABORT"
    token = {"Authorization": f"Bearer {(node.config.storage.keys / 'api.token').read_text().strip()}"}

    def samples(name: str) -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{node.config.web.port}/metrics", headers=token, timeout=60).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        return {"|".join(s.labels.values()): s.value for s in families[name].samples}

    until(lambda: samples("fedpacs_not_taken").get("(unknown)|aborted: a PDU is of no known type") == 1)
    assert samples("fedpacs_received_bytes")["CT1"] > 3 * 16 * 16 * 2
    assert samples("fedpacs_disk_refusing") == {"": 0.0}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "node")
    made.send(1, 1, 2)
    made.run()
    return made


@pytest.fixture
def client(bench: Bench) -> Iterator[TestClient]:
    with TestClient(create_app(bench.config), base_url="http://127.0.0.1:8080", follow_redirects=False) as made:
        yield made


def enter(client: TestClient, bench: Bench, role: str) -> dict[str, str]:
    """Log in with a role; returns the headers of our own page."""
    accounts = Accounts(bench.config.storage.accounts)
    client.cookies.set(f"fedpacs_session_{bench.config.web.port}", accounts.open_session(Account("Ada", role)))
    accounts.close()
    return {"X-Fedpacs": "1", "Origin": "http://127.0.0.1:8080"}


def test_a_viewer_sees_nothing_identified_and_changes_nothing(client: TestClient, bench: Bench) -> None:
    own = enter(client, bench, "viewer")
    (study,) = bench.catalogue.studies()
    for path in (
        "/",
        "/pages/studies",
        f"/pages/studies/{study.study_uid}",
        f"/pages/studies/{study.study_uid}?instance=0",
    ):
        page = client.get(path)
        assert page.status_code == 200 and not [token for token in planted(1).tokens() if token in page.text], path
        assert "Pause</button>" not in page.text and "Approve</button>" not in page.text
    for path in ("/pages/quarantine", "/pages/accounts", f"/pages/studies/{study.study_uid}/0/before"):
        assert client.get(path).status_code == 403, path
    for path in ("/pause", "/optout", "/quarantine/release", "/quarantine/purge", "/accounts", "/echo"):
        assert client.post(path, json={}, headers=own).status_code == 403, path
    assert not list(AuditLog(bench.config.storage.audit).records("study.compared"))


def test_looking_over_the_wall_is_for_the_data_manager_and_is_written_down(client: TestClient, bench: Bench) -> None:
    enter(client, bench, "data-manager")
    (study,) = bench.catalogue.studies()
    page = client.get(f"/pages/studies/{study.study_uid}?instance=1")
    assert page.status_code == 200 and planted(1).patient_id in page.text and "Instance 2 of 2" in page.text
    for side in ("before", "after"):
        assert client.get(f"/pages/studies/{study.study_uid}/1/{side}").content.startswith(b"\x89PNG")
    (record,) = AuditLog(bench.config.storage.audit).records("study.compared")
    assert (record.facts["study"], record.facts["instance"], record.facts["by"]) == (study.study_uid, 1, "console:Ada")
    assert client.get(f"/pages/studies/{study.study_uid}?instance=9").status_code == 400
    assert client.get("/pages/studies/1.2.3").status_code == 400
    bench.spool.purge(bench.spool.studies()[0].study_key)
    assert "erased already" in client.get(f"/pages/studies/{study.study_uid}?instance=0").text


def test_what_is_set_aside_is_released_by_one_and_purged_by_another(client: TestClient, bench: Bench) -> None:
    bench.deid.quarantine = {2}
    bench.send(2, 1, 2)
    bench.run()
    own = enter(client, bench, "data-manager")
    page = client.get("/pages/quarantine")
    (number,) = re.findall(r'"numbers": \[(\d+)\]', page.text)
    assert not [token for token in planted(2).tokens() if token in page.text] and "Purge" not in page.text
    body = {"numbers": [int(number)], "reason": "looked at"}
    assert client.post("/quarantine/purge", json=body, headers=own).status_code == 403
    bench.deid.quarantine = set()
    assert client.post("/quarantine/release", json=body, headers=own).json() == {"studies": 1}
    bench.run()
    assert "Nothing is set aside" in client.get("/pages/quarantine").text
    bench.deid.quarantine = {3}
    bench.send(3, 3)
    bench.run()
    own = enter(client, bench, "admin")
    numbers = [int(n) for n in set(re.findall(r'"numbers": \[(\d+)\]', client.get("/pages/quarantine").text))]
    assert client.post("/quarantine/purge", json={"numbers": numbers}, headers=own).json() == {"purged": len(numbers)}
    assert client.post("/quarantine/purge", json={"numbers": []}, headers=own).status_code == 422


def test_an_admin_makes_changes_and_removes_accounts(client: TestClient, bench: Bench) -> None:
    own = enter(client, bench, "admin")
    new = {"name": "Bo", "role": "viewer", "password": PASSWORD}
    assert client.post("/accounts", json=new, headers=own).status_code == 400, "the first one must be an admin"
    assert client.post("/accounts", json={**new, "role": "admin"}, headers=own).status_code == 200
    assert client.post("/accounts", json={**new, "role": "admin"}, headers=own).status_code == 409
    assert client.post("/accounts", json={**new, "name": "Cy", "password": "short"}, headers=own).status_code == 400
    assert client.post("/accounts/remove", json={"name": "Bo"}, headers=own).status_code == 409, "the last admin"
    assert client.post("/accounts", json={**new, "name": "Cy"}, headers=own).status_code == 200
    assert client.post("/accounts/role", json={"name": "Cy", "role": "king"}, headers=own).status_code == 400
    assert client.post("/accounts/role", json={"name": "Cy", "role": "data-manager"}, headers=own).status_code == 200
    page = client.get("/pages/accounts").text
    assert "Cy" in page and PASSWORD not in page
    assert client.post("/accounts/remove", json={"name": "Cy"}, headers=own).json() == {"removed": "Cy"}


def test_a_page_of_very_many_studies_is_quick_and_complete(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.db")
    for number in range(120):
        modality = "CT" if number % 3 else "MR"
        catalogue.add_study(StudyRecord(f"2.25.{1000 + number}", f"P{number // 2:03d}", modality, instances=1), [])
    seen = []
    for page in range(3):
        found, total = catalogue.search(None, "", 50, page * 50)
        assert total == 120
        seen += [study.study_uid for study in found]
    assert len(set(seen)) == 120
    assert catalogue.search(None, "MR", 50, 0)[1] == 40
    assert [s.patient for s in catalogue.search(None, "P007", 50, 0)[0]] == ["P007", "P007"]
    assert catalogue.search("excluded", "", 50, 0) == ([], 0) and catalogue.search(None, "%", 50, 0)[1] == 0
    catalogue.close()
