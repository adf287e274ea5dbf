"""The plugin inside a real Orthanc, in front of a small HTTP server that plays the node and notes what it is asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.interop.orthanc_process import MISSING, USER, Orthanc

pytestmark = [pytest.mark.interop, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
STUDY = "-".join(["0123abcd"] * 5)
DIGEST = "ab" * 32
CHANGE = {"X-Fedpacs": "1"}


class NodeDouble(ThreadingHTTPServer):
    """Answers 200 with what it was asked; 401 without the token."""

    def __init__(self, port: int = 0) -> None:
        asked: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked.append({"method": self.command, "path": self.path, "body": body, "headers": dict(self.headers)})
                good = self.headers.get("Authorization") == "Bearer secret-token"
                answer = json.dumps({"state": "eligible", "path": self.path}).encode()
                self.send_response(200 if good else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = answer

            def log_message(self, *args: object) -> None:
                pass

        self.asked = asked
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def node() -> Iterator[NodeDouble]:
    server = NodeDouble()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    started: list[Orthanc] = []

    def start(fedpacs: object, **kwargs: Any) -> Orthanc:
        orthanc = Orthanc(tmp_path / f"orthanc{len(started)}", {"Fedpacs": fedpacs}, **kwargs)
        started.append(orthanc)
        return orthanc.start()

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "api.token"
    path.write_text("secret-token\n")
    return path


def settings(node: NodeDouble, token: Path) -> dict[str, object]:
    return {"Url": f"http://127.0.0.1:{node.server_port}", "TokenFile": str(token), "TimeoutSeconds": 2}


def test_routes_carry_the_token_and_the_user_and_refuse_what_is_foreign(
    orthanc: Callable[..., Orthanc], node: NodeDouble, token: Path
) -> None:
    pacs = orthanc(settings(node, token))
    with pacs.client() as client:
        assert client.get("/fedpacs/health").json()["node"]["state"] == "eligible"
        answer = client.get(f"/fedpacs/studies/{STUDY}")
        assert answer.json() == {"state": "eligible", "path": f"/orthanc/studies/{STUDY}"}
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert node.asked[-1]["headers"]["X-Fedpacs-User"] == USER

        before = len(node.asked)
        for headers in ({}, {**CHANGE, "Origin": "http://evil.example"}, {**CHANGE, "Sec-Fetch-Site": "cross-site"}):
            assert client.post("/fedpacs/pause", headers=headers, content=b"{}").status_code == 403
        assert client.get("/fedpacs/pause").status_code == 405, "nothing changes on GET"
        assert (
            client.post(f"/fedpacs/projects/{DIGEST}/approve", content=b"x" * 70_000, headers=CHANGE).status_code == 413
        )
        assert client.get("/fedpacs/metrics").status_code == 404, "only the routes of the page"
        assert client.get("/fedpacs/studies/../../keys").status_code == 404
        assert len(node.asked) == before, "none of these reached the node"

        body = b'{"reason": "ethics vote 12"}'
        assert client.post(f"/fedpacs/projects/{DIGEST}/approve", content=body, headers=CHANGE).status_code == 200
        assert (node.asked[-1]["path"], node.asked[-1]["body"]) == (f"/projects/{DIGEST}/approve", body)
        assert client.post(f"/fedpacs/studies/{STUDY}/exclude", content=b"", headers=CHANGE).status_code == 200
        deep = b"[" * 30_000
        assert client.post("/fedpacs/pause", content=deep, headers=CHANGE).status_code == 200, "passed on, not parsed"
    with pacs.client(auth=None) as client:
        assert client.get("/fedpacs/health").status_code == 401, "Orthanc's own users guard the routes"
    assert "secret-token" not in pacs.log


def test_the_explorer_shows_the_button(orthanc: Callable[..., Orthanc], node: NodeDouble, token: Path) -> None:
    pacs = orthanc(settings(node, token))
    with pacs.client() as client:
        assert "fedpacs-button" in client.get("/app/explorer.js").text + client.get("/plugins/explorer.js").text


@pytest.mark.parametrize(
    "section", [{}, {"Url": 7}, {"TokenFile": "/nonexistent/token"}, [], {"Url": "http://192.0.2.1", "TokenFile": "/t"}]
)
def test_wrong_settings_stop_nothing_and_are_told(orthanc: Callable[..., Orthanc], section: object) -> None:
    pacs = orthanc(section)
    with pacs.client() as client:
        health = client.get("/fedpacs/health")
        assert health.status_code == 503
        assert "Fedpacs" in json.dumps(health.json())
        page = client.get("/fedpacs/page")
        assert page.status_code == 503 and "Fedpacs" in page.text and "text/html" in page.headers["content-type"]
        assert client.get("/patients").json() == [], "the PACS itself works"
    assert "fedpacs: " in pacs.log


def test_a_node_that_is_down_is_told_and_comes_back(
    orthanc: Callable[..., Orthanc], node: NodeDouble, token: Path
) -> None:
    section = settings(node, token)
    node.server_close()
    pacs = orthanc(section)
    with pacs.client() as client:
        answer = client.get("/fedpacs/status")
        assert answer.status_code == 503 and "does not answer" in answer.json()["error"]
        assert client.get("/patients").json() == []
        again = NodeDouble(node.server_port)
        try:
            assert client.get("/fedpacs/status").status_code == 200
        finally:
            again.shutdown()
            again.server_close()
    assert pacs.stop() == 0


def test_a_token_the_node_does_not_take_is_told(orthanc: Callable[..., Orthanc], node: NodeDouble, token: Path) -> None:
    token.write_text("another")
    pacs = orthanc(settings(node, token))
    with pacs.client() as client:
        page = client.get("/fedpacs/page")
        assert page.status_code == 503 and "does not accept the token" in page.text
    assert "another" not in pacs.log


def test_orthanc_stops_quickly_and_cleanly_with_a_node_that_never_answers(
    orthanc: Callable[..., Orthanc], token: Path
) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        pacs = orthanc(
            {"Url": f"http://127.0.0.1:{silent.getsockname()[1]}", "TokenFile": str(token), "TimeoutSeconds": 30}
        )
        time.sleep(1)
        started = time.monotonic()
        assert pacs.stop() == 0
        assert time.monotonic() - started < 15


def test_two_scripts_in_one_orthanc(
    orthanc: Callable[..., Orthanc], node: NodeDouble, token: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "our_site.py").write_text(
        "import orthanc\n"
        "orthanc.RegisterOnChangeCallback(lambda *e: orthanc.LogWarning('site script heard %d' % e[0]))\n"
        "orthanc.ExtendOrthancExplorer('/* site button */')\n"
    )
    pacs = orthanc({**settings(node, token), "SiteScript": str(folder / "our_site.py")})
    with pacs.client() as client:
        code = client.get("/plugins/explorer.js").text
        assert "fedpacs-button" in code and "site button" in code
    assert "site script heard" in pacs.log
    wait_until(lambda: any(a["path"] == "/orthanc/offer" for a in node.asked))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
