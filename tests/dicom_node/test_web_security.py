"""Who may ask what of the REST interface: tokens, sessions, foreign pages, rebound names, sizes and headers."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dicom_node.web.security import COOKIE, SESSION_SECONDS, Guard, GuardMiddleware

TOKEN = "t" * 43
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> TestClient:
    async def whoami(request: Request) -> JSONResponse:
        caller = request.state.caller
        return JSONResponse({"caller": caller.name if caller else None})

    routes = [Route(path, whoami, methods=["GET", "POST"]) for path in ("/", "/health", "/status", "/pause")]
    app = Starlette(routes=routes)
    app.add_middleware(GuardMiddleware, guard=Guard(TOKEN, {"node.hospital.example"}, clock))
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


def test_a_session_reads_and_changes_only_from_our_own_page(client: TestClient, clock: Clock) -> None:
    client.cookies.set(COOKIE, Guard(TOKEN, set(), clock).session("Ada"))
    own = {"X-Fedpacs": "1", "Origin": "http://127.0.0.1:8043", "Sec-Fetch-Site": "same-origin"}
    assert client.get("/status").json() == {"caller": "console:Ada"}
    assert client.post("/pause", headers=own).json() == {"caller": "console:Ada"}
    for foreign in (
        {},
        {**own, "X-Fedpacs": "0"},
        {**own, "Origin": "http://evil.example"},
        {**own, "Origin": "http://127.0.0.1:9999"},
        {**own, "Origin": "null"},
        {**own, "Sec-Fetch-Site": "cross-site"},
        {**own, "Sec-Fetch-Site": "same-site"},
    ):
        assert client.post("/pause", headers=foreign).status_code == 403, foreign
    clock.now += SESSION_SECONDS + 1
    assert client.get("/status").status_code == 401, "a session ends"


@given(st.text(max_size=80))
def test_no_made_up_cookie_is_a_session(cookie: str) -> None:
    assert Guard(TOKEN, set()).session_name(cookie) == ""


@given(st.text(max_size=80))
def test_a_session_says_who_and_another_token_does_not_open_it(name: str) -> None:
    cookie = Guard(TOKEN, set()).session(name)
    seen = Guard(TOKEN, set()).session_name(cookie)
    assert len(seen) <= 64 and "\n" not in seen and ":" not in seen
    assert Guard("another", set()).session_name(cookie) == ""


def test_a_changed_cookie_is_refused(clock: Clock) -> None:
    guard = Guard(TOKEN, set(), clock)
    payload, _, signature = guard.session("Ada").partition(".")
    longer = Guard(TOKEN, set(), lambda: clock.now + 1e6).session("Ada").partition(".")[0]
    assert guard.session_name(f"{longer}.{signature}") == ""
    assert guard.session_name(f"{payload}.{signature}") == "Ada"


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
