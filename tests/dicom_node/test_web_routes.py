"""Every state-changing route of both consoles, from the applications' own route tables: role, CSRF, and a record of the act.

A new route fails here until it is described below, so none can be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from aggregator_client import approvals
from aggregator_client.coordinator.dashboard import runs
from aggregator_client.coordinator.dashboard.app import accounts_file
from aggregator_client.coordinator.dashboard.app import create_app as create_dashboard
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.project import SignedProject
from dicom_node import examples
from dicom_node.accounts import DASHBOARD_ROLES, ROLES, Account, Accounts
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.web import rest
from dicom_node.web.app import create_app
from tests.aggregator_client import test_evidence
from tests.dicom_node.test_worker import Bench
from tests.interop.studies import planted

config, signed, folder = test_evidence.config, test_evidence.signed, test_evidence.folder
PASSWORD = "correct horse battery"
STUDY = "-".join(["0123abcd"] * 5)


@dataclass(frozen=True)
class Act:
    """How a route is used rightly: who may, with what, and which record it leaves ("" with the reason why none)."""

    path: str
    role: str
    record: str
    body: Mapping[str, Any] = field(default_factory=dict)
    silent: str = ""


@dataclass
class Console:
    """One application as somebody in a role uses it."""

    app: FastAPI
    accounts: Path
    audit: Path
    port: int
    cookie: str
    acts: dict[str, list[Act]]
    roles: tuple[str, ...] = ROLES

    def client(self, role: str | None) -> TestClient:
        client = TestClient(self.app, base_url=f"http://127.0.0.1:{self.port}", follow_redirects=False)
        if role:
            with closing(Accounts(self.accounts)) as accounts:
                client.cookies.set(self.cookie, accounts.open_session(Account("Ada", role)))
        return client

    @property
    def own(self) -> dict[str, str]:
        return {"X-Fedpacs": "1", "Origin": f"http://127.0.0.1:{self.port}"}

    def records(self) -> list[str]:
        with closing(AuditLog(self.audit)) as audit:
            return [r.kind for r in audit.records() if r.facts.get("by") == "console:Ada"]


@pytest.fixture
def node(
    tmp_path: Path, config: CoordinatorConfig, signed: SignedProject, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Console]:
    bench = Bench(tmp_path / "node")
    bench.send(1, 1)
    bench.deid.quarantine = {7}
    bench.send(3, 7)
    bench.run()
    approvals.offer(bench.config, signed)
    (entry,) = bench.spool.studies("quarantined")
    number = bench.spool.instances(entry.study_key)[0].id
    examples.model_folder(bench.config, signed.digest).mkdir(parents=True)
    # what lies beyond other processes is tested elsewhere: here, that the route asks for it and writes it down
    monkeypatch.setattr(rest.projects, "decide", _decide)
    monkeypatch.setattr(rest, "echo", lambda peer, title: type("Report", (), {"peer": str(peer), "echo_s": 0.0})())
    monkeypatch.setattr(examples, "draw", lambda config, digest: 0)
    monkeypatch.setitem(rest.ORTHANC_ACTIONS, "exclude", _orthanc)
    monkeypatch.setitem(rest.ORTHANC_ACTIONS, "include", _orthanc)
    app = create_app(bench.config)
    made = Console(
        app, bench.config.storage.accounts, bench.config.storage.audit, bench.config.web.port,
        f"fedpacs_session_{bench.config.web.port}", _node_acts(signed.digest, number),
    )  # fmt: skip
    with TestClient(app):
        yield made


@pytest.fixture
def dashboard(config: CoordinatorConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    for action in ("start", "pause", "resume", "stop"):
        monkeypatch.setitem(runs._ACTIONS, action, lambda config, digest: None)
    app = create_dashboard(config, 8090)
    made = Console(
        app, accounts_file(config), config.root / "audit.db", 8090, "fedpacs_coordinator_8090",
        _coordinator_acts(folder.name), DASHBOARD_ROLES,
    )  # fmt: skip
    with TestClient(app):
        yield made


def _decide(config: NodeConfig, digest: str, command: str, by: str, role: str, reason: str) -> None:
    with closing(AuditLog(config.storage.audit)) as audit:
        audit.append(f"project.{command}", project=digest, by=by)


def _orthanc(config: NodeConfig, study: str, by: str) -> int:
    with closing(AuditLog(config.storage.audit)) as audit:
        audit.append("patient.orthanc", by=by)
    return 1


def _node_acts(digest: str, number: int) -> dict[str, list[Act]]:
    patient = {"patient_id": planted(1).patient_id, "reason": "asked"}
    numbers = {"numbers": [number], "reason": "looked"}
    account = {"name": "Eve", "role": "viewer", "password": PASSWORD}
    return {
        "/logout": [Act("/logout", "viewer", "logout")],
        "/projects/{digest}/{decision}": [
            Act(f"/projects/{digest}/{verb}", "admin", f"project.{verb}", {"reason": "r"})
            for verb in ("approve", "reject", "suspend", "withdraw")
        ],
        "/optout": [Act("/optout", "data-manager", "patient.optout", patient)],
        "/optout/remove": [Act("/optout/remove", "data-manager", "patient.optin", patient)],
        "/pause": [Act("/pause", "admin", "node.paused", {"reason": "r"})],
        "/resume": [Act("/resume", "admin", "node.resumed")],
        "/echo": [Act("/echo", "data-manager", "peer.echoed", {"peer": "PACS@127.0.0.1:1"})],
        "/quarantine/release": [Act("/quarantine/release", "data-manager", "quarantine.released", numbers)],
        "/quarantine/purge": [],  # tested below: what was released waits for a worker and cannot be purged
        "/accounts": [Act("/accounts", "admin", "account.added", {**account, "name": "Root", "role": "admin"}),
                      Act("/accounts", "admin", "account.added", account)],
        "/accounts/role": [Act("/accounts/role", "admin", "account.changed", {"name": "Eve", "role": "admin"})],
        "/accounts/remove": [Act("/accounts/remove", "admin", "account.removed", {"name": "Eve"})],
        "/training/examples/{digest}": [Act(f"/training/examples/{digest}", "data-manager", "examples.drawn")],
        "/orthanc/offer": [Act("/orthanc/offer", "data-manager", "", {"studies": [STUDY]},
                               silent="a hint of the plugin many times a minute; what is taken is recorded when it comes")],
        "/orthanc/studies/{orthanc_id}/{action}": [
            Act(f"/orthanc/studies/{STUDY}/{verb}", "data-manager", "patient.orthanc") for verb in ("exclude", "include")
        ],
    }  # fmt: skip


def _coordinator_acts(digest: str) -> dict[str, list[Act]]:
    return {
        "/logout": [Act("/logout", "viewer", "logout")],
        "/runs/{digest}/{action}": [
            Act(f"/runs/{digest}/{verb}", "coordinator", f"run.{verb}") for verb in ("start", "pause", "resume", "stop")
        ],
        "/members/invite": [Act("/members/invite", "admin", "member.invited", {"name": "St. Anna"})],
        "/members/remove": [Act("/members/remove", "admin", "member.removed", {"name": "St. Anna"})],
    }


def changing(app: FastAPI) -> set[str]:
    """The paths of every route that takes anything but GET and HEAD."""
    return {
        route.path
        for route in app.routes
        if isinstance(route, APIRoute) and set(route.methods) - {"GET", "HEAD", "OPTIONS"}
    } - {"/login"}  # it is where people come in: its own tests are in test_web_console and test_web_login


def in_order(acts: dict[str, list[Act]]) -> list[Act]:
    """Log-out last, for it ends the session."""
    return [act for path, several in acts.items() if path != "/logout" for act in several] + acts["/logout"]


@pytest.fixture(params=["node", "dashboard"])
def console(request: pytest.FixtureRequest) -> Console:
    found: Console = request.getfixturevalue(request.param)
    return found


def test_every_changing_route_is_described(console: Console) -> None:
    assert changing(console.app) == console.acts.keys()


def test_nobody_changes_anything_without_a_right_role_and_our_own_page(console: Console) -> None:
    for act in in_order(console.acts):
        lower = console.roles[: console.roles.index(act.role)]
        for role in (None, *lower):
            answer = console.client(role).post(act.path, json=dict(act.body), headers=console.own)
            assert answer.status_code == (401 if role is None else 403), (act.path, role)
        for headers in (
            {},
            {"X-Fedpacs": "1", "Origin": "http://evil.example"},
            {**console.own, "Sec-Fetch-Site": "cross-site"},
        ):
            answer = console.client("admin").post(act.path, json=dict(act.body), headers=headers)
            assert answer.status_code == 403, (act.path, headers)
    assert console.records() == [], "nothing was done"


def test_every_act_is_done_by_its_role_and_written_down_with_who_did_it(console: Console) -> None:
    for act in in_order(console.acts):
        before = console.records()
        client = console.client(act.role)
        answer = client.post(act.path, json=dict(act.body), headers=console.own)
        if act.silent:
            assert answer.status_code in (200, 409), (act.path, answer.text)
            continue
        assert answer.status_code == 200, (act.path, answer.text)
        new = console.records()[len(before) :]
        assert act.record in new, (act.path, new)
    assert set(console.records()) >= {act.record for act in in_order(console.acts) if act.record}


def test_every_reading_route_needs_a_role_too(console: Console) -> None:
    free = re.compile(r"/health|/login(/.*)?|/static.*|/openapi.json")
    for route in console.app.routes:
        path = getattr(route, "path", "")
        if not isinstance(route, APIRoute) or free.fullmatch(path) or "GET" not in route.methods:
            continue
        concrete = re.sub(r"\{[a-z_]+\}", "0", path)
        assert console.client(None).get(concrete).status_code == 401, path


def test_a_purge_is_an_admins_and_written_down(node: Console) -> None:
    number = node.acts["/quarantine/release"][0].body["numbers"]
    body = {"numbers": number, "reason": "r"}
    assert node.client("data-manager").post("/quarantine/purge", json=body, headers=node.own).status_code == 403
    assert node.client("admin").post("/quarantine/purge", json=body).status_code == 403
    assert node.client("admin").post("/quarantine/purge", json=body, headers=node.own).json() == {"purged": 1}
    assert node.records() == ["quarantine.purged"]


def test_a_tokens_scopes_confine_it(node: Console) -> None:
    with closing(Accounts(node.accounts)) as accounts:
        watcher = accounts.add_token("prometheus", "admin", "root", ["status"])
        steerer = accounts.add_token("steerer", "admin", "root", ["status", "steer"])
        free = accounts.add_token("free", "viewer", "root")
    client = node.client(None)

    def ask(token: str, method: str, path: str) -> int:
        return client.request(method, path, headers={"Authorization": f"Bearer {token}"}).status_code

    assert [ask(watcher, "GET", path) for path in ("/status", "/metrics", "/openapi.json")] == [200, 200, 200]
    assert [ask(watcher, *one) for one in (("POST", "/pause"), ("GET", "/studies"), ("GET", "/"))] == [403, 403, 403]
    assert ask(steerer, "POST", "/pause") == 200 and ask(steerer, "GET", "/egress") == 403
    assert ask(free, "GET", "/egress") == 200 and ask(free, "POST", "/resume") == 403
