"""The REST interface and the console over a node's real databases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from aggregator_client import approvals
from aggregator_client.coordinator import settings
from aggregator_client.project import ProjectDocument, sign
from dicom_node.audit import AuditLog
from dicom_node.cli import run
from dicom_node.config import load_config
from dicom_node.errors import ConfigError
from dicom_node.pause import is_paused
from dicom_node.spool import Spool
from dicom_node.web.app import create_app
from tests.dicom_node.test_worker import Bench
from tests.interop.studies import planted

SIGNED = {
    "name": "pneumonia",
    "version": "1",
    "purpose": "Tell <script>alert(1)</script> pneumonia from normal.",
    "rounds": 3,
    "task": {"classes": ["normal", "viral"], "label": "finding"},
    "cohort": {},
    "network": {"name": "small_resnet", "args": {"in_channels": 1, "classes": 2}},
}
OWN = {"X-Fedpacs": "1", "Origin": "http://127.0.0.1:8080"}


@pytest.fixture
def node(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "node")
    bench.send(1, 1, 2)
    bench.run()
    coordinator = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    coordinator.invite("test").write(tmp_path / "invitation.json")
    join = ["federation", "join", str(tmp_path / "invitation.json"), "--config", str(bench.config.path)]
    assert run([*join, "--out", str(tmp_path / "enrolment")]) == 0
    who = {"name": coordinator.name, **coordinator.keys().public_base64()}
    project = sign(ProjectDocument.model_validate({**SIGNED, "coordinator": who}), coordinator.keys().signing)
    approvals.offer(bench.config, project)
    bench.digest = project.digest
    audit = AuditLog(bench.config.storage.audit)
    audit.append(
        "egress", what="update", project=bench.digest, round=3, recipient="coordinator", bytes=1234, sha256="cd" * 32
    )
    return bench


@pytest.fixture
def client(node: Bench) -> Iterator[TestClient]:
    token = (node.config.storage.keys / "api.token").read_text().strip()
    with TestClient(create_app(node.config), base_url="http://127.0.0.1:8080") as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def log_in(client: TestClient, node: Bench, name: str = "Ada") -> None:
    del client.headers["Authorization"]
    token = (node.config.storage.keys / "api.token").read_text()
    answer = client.post("/login", content=f"name={name}&password={token.strip()}", follow_redirects=False)
    assert answer.status_code == 303
    assert (
        "httponly" in answer.headers["set-cookie"].lower() and "samesite=strict" in answer.headers["set-cookie"].lower()
    )


def test_status_counts_what_happened(client: TestClient, node: Bench) -> None:
    status = client.get("/status").json()
    assert status["node"]["ae_title"] == "FEDPACS" and status["node"]["port"] == 11112
    assert (status["pipeline"]["instances"], status["pipeline"]["eligible"]) == (2, 1)
    assert status["senders"][0]["ae_title"] == "TEST" and status["senders"][0]["stored"] == 2
    assert status["disk"]["free_mb"] > 0 and status["paused"] is False


def test_studies_are_the_de_identified_ones(client: TestClient, node: Bench) -> None:
    studies = client.get("/studies").json()["studies"]
    assert [s["study_uid"] for s in studies] == [node.deid.uid(planted(1).study_uid)]
    assert client.get("/studies?state=excluded").json()["studies"] == []
    assert client.get("/studies?limit=0").status_code == 422


def test_no_answer_holds_an_identified_value(client: TestClient, node: Bench) -> None:
    for path in ("/", "/status", "/studies", "/projects", "/egress", "/optout", "/metrics", "/health"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert not [token for token in planted(1).tokens() if token in answer.text], path
    wrong = client.post("/optout", json={"patient_id": planted(1).patient_id, "other": 1})
    assert wrong.status_code == 422 and planted(1).patient_id not in wrong.text


def test_projects_are_decided_by_a_named_person_and_audited(client: TestClient, node: Bench) -> None:
    assert client.get("/projects").json()["projects"][0]["state"] == "offered"
    log_in(client, node)
    answer = client.post(f"/projects/{node.digest}/approve", json={"reason": "ethics vote 7"}, headers=OWN)
    assert answer.json() == {"digest": node.digest, "state": "approved", "by": "console:Ada"}
    facts = node.audit("project.approved")[0]
    assert (facts["by"], facts["reason"], facts["project"]) == ("console:Ada", "ethics vote 7", node.digest)
    approvals.require_approved(node.config, node.digest)  # the decision is signed: the federation side takes it
    answer = client.post(f"/projects/{node.digest}/reject", json={"reason": "--by=else"}, headers=OWN)
    assert answer.json()["state"] == "rejected" and answer.json()["by"] == "console:Ada"
    unknown = client.post(f"/projects/{'0' * 64}/approve", json={}, headers=OWN)
    assert unknown.status_code == 400 and "error" in unknown.json()
    assert client.post(f"/projects/{node.digest}/delete", json={}, headers=OWN).status_code == 422
    assert client.post(f"/projects/{node.digest}/approve", json={}).status_code == 403, "no header, no change"


def test_pause_and_resume(client: TestClient, node: Bench) -> None:
    assert client.post("/pause", json={"reason": "move"}).json() == {"paused": True, "changed": True}
    assert is_paused(node.config) and client.get("/status").json()["paused"]
    assert client.post("/pause").json()["changed"] is False
    assert client.post("/resume").json() == {"paused": False, "changed": True}
    assert not is_paused(node.config)
    assert client.get("/pause").status_code == 405


def test_an_opt_out_withdraws_at_once_and_stores_no_number(client: TestClient, node: Bench) -> None:
    assert client.post("/optout", json={"patient_id": planted(1).patient_id}).json() == {"withdrawn": 1}
    assert client.get("/status").json()["pipeline"]["withdrawn"] == 1
    assert client.get("/optout").json() == {"optouts": 1}
    for database in (node.config.storage.catalogue, node.config.storage.audit):
        assert planted(1).patient_id.encode() not in database.read_bytes()
    answer = client.post("/optout/remove", json={"patient_id": planted(1).patient_id})
    assert answer.json() == {"readmitted": 1}
    assert client.post("/optout/remove", json={"patient_id": "nobody"}).status_code == 400


def test_the_console_shows_the_four_values_and_what_left(client: TestClient, node: Bench) -> None:
    log_in(client, node)
    shown = {
        "/": ("FEDPACS", "11112", "any AE title from 127.0.0.0/8", "console:Ada", "1.2 kB", "pneumonia"),
        "/pages/left": ("1234 bytes", "update", "pneumonia", "coordinator", "Whole: ", node.digest[:12]),
        f"/pages/projects/{node.digest}": ("&lt;script&gt;", "What leaves your hospital", "<code>fedpacs"),
    }
    for path, values in shown.items():
        page = client.get(path).text
        for value in values:
            assert value in page, (path, value)
        assert "<script>alert" not in page, "a project's words are words"
        sources = re.findall(r'(?:src|href|action|data-post|data-events)="([^"]*)"', page)
        assert sources and not [s for s in sources if "//" in s], "no other host is asked"
        assert "style=" not in page and "onclick" not in page, "the policy allows no inline code"
        for source in re.findall(r'(?:src|href)="([^"#]*)"', page):
            assert client.get(urljoin(path, source)).status_code == 200, source


def test_inside_orthanc_one_page_shows_all(client: TestClient, node: Bench) -> None:
    page = client.get("/", headers={"X-Fedpacs-Via": "orthanc"}).text
    for value in ("1.2 kB", "pneumonia", "What leaves your hospital", f'data-post="projects/{node.digest}/approve"'):
        assert value in page, value
    assert "pages/" not in page and "data-events" not in page, "the plugin passes neither on"


def test_metrics_can_be_scraped(client: TestClient, node: Bench) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    eligible = [s.value for s in families["fedpacs_studies"].samples if s.labels["state"] == "eligible"]
    assert eligible == [1.0]
    assert families["fedpacs_egress_bytes"].samples[0].value == 1234
    assert families["fedpacs_disk_free_bytes"].samples[0].value > 1 << 20


def test_what_asks_orthanc_says_when_there_is_none(client: TestClient) -> None:
    study = "-".join(["0123abcd"] * 5)
    for answer in (client.get(f"/orthanc/studies/{study}"), client.post("/orthanc/offer", json={"studies": [study]})):
        assert answer.status_code == 409 and "[orthanc] url" in answer.json()["error"]
    assert client.get("/orthanc/studies/../../status").status_code in (200, 404)
    assert client.get("/orthanc/studies/x").status_code == 422


def test_a_wrong_token_does_not_log_in(client: TestClient) -> None:
    del client.headers["Authorization"]
    answer = client.post("/login", content="name=Ada&password=wrong", follow_redirects=False)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_a_short_or_missing_token_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node")
    (bench.config.storage.keys / "api.token").write_text("short")
    with pytest.raises(ConfigError, match="token_file"):
        create_app(load_config(bench.config.path))


def test_quarantine_reasons_are_counted(client: TestClient, node: Bench) -> None:
    node.deid.quarantine = {7}
    node.send(5, 7)
    node.run()
    assert client.get("/status").json()["reasons"] == {"quarantined: 1 set aside: text is burned into the pixels": 1}
    assert isinstance(node.spool, Spool)
