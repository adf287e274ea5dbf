"""The dashboard: what it shows, who may steer, and a real run started, watched, stopped and resumed in a browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from aggregator_client.coordinator import evidence, overview, settings
from aggregator_client.coordinator.dashboard import curves, runs
from aggregator_client.coordinator.dashboard.app import accounts_file, create_app, token_file
from aggregator_client.coordinator.settings import CoordinatorConfig
from dicom_node.accounts import Account, Accounts
from dicom_node.audit import AuditLog
from dicom_node.cli import run as fedpacs
from tests.aggregator_client import hospital, test_evidence
from tests.interop.browser import ARTEFACTS, axe, browser, violations

config, signed, folder = (
    test_evidence.config,
    test_evidence.signed,
    test_evidence.folder,
)  # fixtures: a run of one round
OWN = {"X-Fedpacs": "1", "Origin": "http://127.0.0.1:8090"}


@pytest.fixture
def client(config: CoordinatorConfig, folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(config, 8090), base_url="http://127.0.0.1:8090", follow_redirects=False) as made:
        yield made


def enter(client: TestClient, config: CoordinatorConfig, role: str) -> None:
    with closing(Accounts(accounts_file(config))) as accounts:
        client.cookies.set("fedpacs_coordinator_8090", accounts.open_session(Account("Cleo", role)))


def test_the_privacy_ledger_tells_the_bound_of_a_noisy_project(
    client: TestClient, config: CoordinatorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = runs.SignedProject.read

    def noisy(source: Path | bytes) -> Any:
        signed = read(source)
        terms = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 1.0, "clip": 1.0}
        privacy = type(signed.document.privacy).model_validate({"mode": "sealed", "dp": terms})
        return replace(signed, document=signed.document.model_copy(update={"privacy": privacy}))

    monkeypatch.setattr(runs.SignedProject, "read", noisy)
    enter(client, config, "viewer")
    told = client.get("/privacy").json()["ledger"][0]["noise"]
    assert (told["epsilon"], told["delta"]) == (8.0, 1e-5)
    assert f"ε at most 8.0 for each {told['unit']}" in client.get("/pages/privacy").text


def test_a_viewer_sees_every_hospital_and_round_and_steers_nothing(
    client: TestClient,
    config: CoordinatorConfig,
    folder: Path,
) -> None:
    assert client.get("/", headers={"Accept": "text/html"}).headers["location"] == "login"
    enter(client, config, "viewer")
    home = client.get("/").text
    assert "chest" in home and "0.800" in home and "0.700" in home, "the mean and the worst hospital"
    assert "0.610" in home and "sex F" in home, "the worst group of patients"
    page = client.get(f"/runs/{folder.name}").text
    for words in ("North", "South", "0.900", "0.700", "it is away", "<svg", "What leaves your hospital"):
        assert words in page, words
    facts = client.get(f"/runs/{folder.name}/facts").json()
    assert facts["history"][0]["worst_site"] == "South" and facts["state"] == "stopped"
    assert "resume" not in re.findall(r'data-post="([^"]*)"', page)
    compared = client.get(f"/pages/compare?run={folder.name}").text
    assert "<svg" in compared and "0.800" in compared and "Worst hospital" in compared
    ledger = client.get("/privacy").json()["ledger"]
    told = [(one["site"], one["answers"], one["protection"]) for one in ledger]
    assert told == [("South", 1, "sealed"), ("North", 1, "sealed")]
    assert "single updates" in client.get("/pages/privacy").text and ledger[0]["noise"] is None
    for path in (f"/runs/{folder.name}/resume", f"/runs/{folder.name}/stop", "/members/invite", "/members/remove"):
        assert client.post(path, json={"name": "x"}, headers=OWN).status_code == 403, path
    for path in (f"/runs/{folder.name}/evidence", "/members/North/invitation"):
        assert client.get(path).status_code == 403, path
    assert client.get(f"/runs/{'0' * 64}").status_code == 409
    assert client.get("/runs/../../etc/passwd").status_code in (403, 404)


def test_hospitals_are_invited_and_removed_and_all_is_written_down(
    client: TestClient,
    config: CoordinatorConfig,
    tmp_path: Path,
) -> None:
    enter(client, config, "admin")
    made = client.post("/members/invite", json={"name": "St. Anna"}, headers=OWN).json()
    assert made["site"] == "St. Anna" and "St. Anna" in client.get("/pages/hospitals").text
    answer = client.get("/members/St. Anna/invitation")
    assert "attachment" in answer.headers["content-disposition"]
    (tmp_path / "invitation.json").write_bytes(answer.content)
    node = tmp_path / "anna"
    assert fedpacs(["node", "init", str(node)]) == 0
    join = ["federation", "join", str(tmp_path / "invitation.json"), "--config", str(node / "node.toml")]
    assert fedpacs([*join, "--out", str(tmp_path / "enrolment.json")]) == 0, "the downloaded file is an invitation"
    assert client.get("/members/Nobody/invitation").status_code == 409
    assert client.post("/members/remove", json={"name": "St. Anna"}, headers=OWN).json() == {"removed": "St. Anna"}
    assert "St. Anna" not in client.get("/pages/hospitals").text
    with closing(AuditLog(config.root / "audit.db")) as audit:
        acts = [record.kind for record in audit.records() if record.facts.get("by") == "console:Cleo"]
    assert acts == ["member.invited", "invitation.taken", "member.removed"]


def test_the_evidence_bundle_comes_down_whole(
    client: TestClient,
    config: CoordinatorConfig,
    folder: Path,
    tmp_path: Path,
) -> None:
    enter(client, config, "coordinator")
    answer = client.get(f"/runs/{folder.name}/evidence")
    (tmp_path / "evidence.zip").write_bytes(answer.content)
    assert evidence.verify(tmp_path / "evidence.zip").project == "chest version 1"


def test_a_run_that_cannot_go_on_says_why(client: TestClient, config: CoordinatorConfig, folder: Path) -> None:
    enter(client, config, "coordinator")
    assert "does not go on" in client.post(f"/runs/{folder.name}/stop", headers=OWN).json()["error"]
    answer = client.post(f"/runs/{'0' * 64}/start", headers=OWN)
    assert answer.status_code == 409 and "No signed project" in answer.json()["error"]


class Consortium:
    """A coordinator with its dashboard, and two hospitals, as processes of their own."""

    def __init__(self, root: Path) -> None:
        ports = []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        self.config = settings.create(root / "coordinator", name="University", host="127.0.0.1", port=ports[0])
        self.hospitals = [
            hospital.hospital(root / n, n, self.config, 30, seed) for seed, n in enumerate(("North", "South"))
        ]
        self.project = hospital.project(self.config, rounds=3, deadline_s=300)
        (self.config.root / "project.json").write_bytes(self.project.file_bytes())
        for one in self.hospitals:
            one.approve(self.project)
        self.url = f"http://127.0.0.1:{ports[1]}"
        argv = [sys.executable, "-c", "from dicom_node.cli import main; main()", "coordinator", "dashboard"]
        self.dashboard = subprocess.Popen(
            [*argv, "--dir", str(self.config.root), "--port", str(ports[1])],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.dashboard.stdout is not None
        self.ready = self.dashboard.stdout.readline()

    def close(self) -> None:
        self.dashboard.terminate()
        self.dashboard.wait(30)
        pid = overview.running_pid(self.config.run_folder(self.project.digest))
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        for one in self.hospitals:
            one.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_started_watched_stopped_and_resumed_in_a_browser(tmp_path: Path) -> None:
    with browser() as chromium, closing(Consortium(tmp_path)) as world:
        assert world.url in world.ready
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(200_000)
        page.goto(world.url)
        page.get_by_label("Your name").fill("Cleo")
        page.get_by_label("Password").fill(token_file(world.config).read_text().strip())
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Start").click()
        page.get_by_role("link", name=world.project.document.name).click()
        assert page.locator("#run-state").inner_text() == "running"
        page.get_by_role("button", name="Pause after this round").click()
        page.get_by_text("the round under way is its last one").wait_for()
        world.hospitals[0].start()
        world.hospitals[1].start()
        page.locator("#run-state", has_text="paused").wait_for()  # it comes by itself
        assert page.locator("#round").inner_text() in ("0 of 3", "1 of 3")
        page.get_by_role("button", name="Resume").click()
        page.locator("#run-state", has_text="running").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Resume").click()
        page.get_by_text("3 of 3").wait_for()
        page.locator("#run-state", has_text="finished").wait_for()
        page.locator(".curves svg").wait_for()
        with page.expect_download() as waiting:
            page.locator("#evidence").click()
        waiting.value.save_as(tmp_path / "evidence.zip")
        script = axe(tmp_path / "axe")
        for width, scheme in ((1400, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme)
            for name, path in {"run": f"/runs/{world.project.digest}", "runs": "/", "compare": "/pages/compare",
                               "privacy": "/pages/privacy", "hospitals": "/pages/hospitals"}.items():  # fmt: skip
                page.goto(world.url + path)
                assert violations(page, script) == [], (path, scheme)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                page.screenshot(path=ARTEFACTS / f"dashboard-{name}{'' if width == 1400 else '-narrow'}.png")
        assert evidence.verify(tmp_path / "evidence.zip").round == 3
        with closing(AuditLog(world.config.root / "audit.db")) as audit:
            kinds = [record.kind for record in audit.records() if record.kind != "roster.changed"]
        acts = ("login", "run.start", "run.pause", "run.resume", "run.stop", "run.resume", "evidence.exported")
        assert [kind for kind in kinds if kind in acts] == list(acts)


def test_accounts_of_the_dashboard_are_made_on_the_command_line(config: CoordinatorConfig, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("correct horse battery")
    base = ["coordinator", "account", "Cleo", "--dir", str(config.root), "--password-file", str(tmp_path / "password")]
    assert fedpacs(base) == 4, "the first one must be an admin"
    assert fedpacs([*base, "--role", "admin"]) == 0
    with closing(Accounts(accounts_file(config))) as accounts:
        assert accounts.session(accounts.log_in("Cleo", "correct horse battery")) == Account("Cleo", "admin")
    assert fedpacs([*base, "--remove"]) == 5
    second = [word.replace("Cleo", "Carl") for word in base]
    assert fedpacs([*second, "--role", "data-manager"]) == 4, "a hospital's role"
    assert fedpacs([*second, "--role", "coordinator"]) == 0
    with closing(Accounts(accounts_file(config))) as accounts:
        carl = accounts.session(accounts.log_in("Carl", "correct horse battery"))
    assert carl is not None and carl.may("coordinator") and not carl.may("admin")


def test_a_round_s_figures_stand_at_the_model_they_are_of() -> None:
    """A site measures the model that it is sent: round 1 tells of the untrained one, as "best round" counts too."""
    table = [
        {"site": site, "round": number, "metric": 0.5 + number / 10}
        for number in (1, 2, 3)
        for site in ("North", "South")
    ]
    across = re.findall(r">(\d+)</text>", curves.draw(table))
    assert across == ["0", "1", "2"]
    history = [{"round": number, "mean_metric": 0.5 + number / 10} for number in (1, 2, 3)]
    run = {"project": "patterns", "digest": "a" * 64, "history": history}
    assert re.findall(r">(\d+)</text>", curves.compare([run])) == across
