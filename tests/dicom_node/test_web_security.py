"""Who may ask what of the REST interface: tokens, sessions, foreign pages, rebound names, sizes and headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dicom_node.accounts import Account, Accounts
from dicom_node.errors import RefusedError
from dicom_node.web.security import COOKIE, Guard, GuardMiddleware

TOKEN = "t" * 43
BEARER = {"Authorization": f"Bearer {TOKEN}"}


RIGHTS = (("GET", "/|/status", "viewer"), ("POST", "/pause", "data-manager"))
OWN = {"X-Fedpacs": "1", "Origin": "http://127.0.0.1:8043", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    made = Accounts(tmp_path / "accounts.db")
    yield made
    made.close()


@pytest.fixture
def client(accounts: Accounts) -> TestClient:
    async def whoami(request: Request) -> JSONResponse:
        caller = request.state.caller
        return JSONResponse({"caller": caller.name if caller else None})

    paths = ("/", "/health", "/status", "/pause", "/unlisted")
    routes = [Route(path, whoami, methods=["GET", "POST"]) for path in paths]
    app = Starlette(routes=routes)
    app.add_middleware(GuardMiddleware, guard=Guard(TOKEN, {"node.hospital.example"}, accounts, RIGHTS))
    return TestClient(app, base_url="http://127.0.0.1:8043", follow_redirects=False)


def test_only_health_is_open(client: TestClient) -> None:
    assert client.get("/health").json() == {"caller": None}
    assert client.get("/status").status_code == 401
    assert client.post("/pause").status_code == 401
    assert client.get("/static/console.css").status_code == 404, "asked, though not there in this app"
    assert client.get("/staticx/../status").status_code == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN]
)
def test_a_wrong_token_is_no_token(client: TestClient, header: str) -> None:
    answer = client.get("/status", headers={"Authorization": header})
    assert answer.status_code == 401
    assert TOKEN not in answer.text


def test_the_token_opens_everything_and_may_speak_for_an_orthanc_user(client: TestClient) -> None:
    assert client.get("/status", headers=BEARER).json() == {"caller": "api"}
    assert client.post("/pause", headers=BEARER).json() == {"caller": "api"}
    named = client.get("/status", headers={**BEARER, "X-Fedpacs-User": "dr.house"})
    assert named.json() == {"caller": "orthanc:dr.house"}
    assert client.get("/status", headers={"X-Fedpacs-User": "dr.house"}).status_code == 401


def test_a_browser_without_a_session_is_sent_to_the_login(client: TestClient) -> None:
    answer = client.get("/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "login")


def test_a_session_reads_and_changes_only_from_our_own_page(client: TestClient, accounts: Accounts) -> None:
    session = accounts.open_session(Account("Ada", "admin"))
    client.cookies.set(COOKIE, session)
    assert client.get("/status").json() == {"caller": "console:Ada"}
    assert client.post("/pause", headers=OWN).json() == {"caller": "console:Ada"}
    for foreign in (
        {},
        {**OWN, "X-Fedpacs": "0"},
        {**OWN, "Origin": "http://evil.example"},
        {**OWN, "Origin": "http://127.0.0.1:9999"},
        {**OWN, "Origin": "null"},
        {**OWN, "Sec-Fetch-Site": "cross-site"},
        {**OWN, "Sec-Fetch-Site": "same-site"},
    ):
        assert client.post("/pause", headers=foreign).status_code == 403, foreign
    accounts.log_out(session)
    assert client.get("/status").status_code == 401, "a session ends"


@pytest.mark.parametrize(
    ("role", "status", "pause", "unlisted"),
    [("viewer", 200, 403, 403), ("data-manager", 200, 200, 403), ("admin", 200, 200, 200)],
)
def test_every_route_needs_its_role_and_an_unlisted_one_an_admin(
    client: TestClient, accounts: Accounts, role: str, status: int, pause: int, unlisted: int
) -> None:
    client.cookies.set(COOKIE, accounts.open_session(Account("Ada", role)))
    bearer = {"Authorization": f"Bearer {accounts.add_token('script', role, 'root')}"}
    for headers in (OWN, bearer):
        assert client.get("/status", headers=headers).status_code == status
        assert client.head("/status", headers=headers).status_code == status
        assert client.post("/pause", headers=headers).status_code == pause
        assert client.get("/pause", headers=headers).status_code == unlisted, "another method is another route"
        assert client.get("/unlisted", headers=headers).status_code == unlisted
        assert client.post("/unlisted", headers=headers).status_code == unlisted
    named = client.get("/status", headers={**bearer, "X-Fedpacs-User": "dr.house"})
    assert named.json() == {"caller": "token:script"}, "only the node's own token speaks for others"


def test_before_the_first_account_the_token_is_the_password_and_never_after(accounts: Accounts) -> None:
    guard = Guard(TOKEN, set(), accounts)
    assert accounts.session(guard.log_in("Ada", TOKEN)) == Account("Ada", "admin")
    for name, password in (("", TOKEN), ("Ada", "t" * 42), ("Ada", "")):
        with pytest.raises(RefusedError):
            guard.log_in(name, password)
    accounts.add("Ada", "admin", "correct horse battery", "root")
    with pytest.raises(RefusedError):
        guard.log_in("Ada", TOKEN)
    assert accounts.session(guard.log_in("Ada", "correct horse battery")) == Account("Ada", "admin")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8043", 200), ("localhost", 200), ("[::1]:8043", 200), ("node.hospital.example", 200),
     ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421)],
)  # fmt: skip
def test_only_our_own_names_are_answered(client: TestClient, host: str, status: int) -> None:
    assert client.get("/status", headers={**BEARER, "Host": host}).status_code == status


def test_a_large_or_endless_body_is_refused(client: TestClient) -> None:
    assert client.post("/pause", headers=BEARER, content=b"x" * 70_000).status_code == 413
    assert client.post("/pause", headers=BEARER, content=iter([b"x"] * 3)).status_code == 413


def test_every_answer_keeps_out_of_caches_frames_and_foreign_scripts(client: TestClient) -> None:
    answers: list[httpx.Response] = [
        client.get("/health"),
        client.get("/status"),
        client.get("/nowhere", headers=BEARER),
    ]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
