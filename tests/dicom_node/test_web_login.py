"""Logging in otherwise than by password: an OpenID Connect provider, a reverse proxy's headers; TLS or loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import RSAKey
from starlette.testclient import TestClient

from dicom_node.accounts import Accounts
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.errors import ConfigError
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from dicom_node.web.app import create_app
from tests.dicom_node.oidc_provider import SECRET, Provider

BASE = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with closing(Provider()) as made:
        yield made


def node(folder: Path, lines: str) -> NodeConfig:
    """A node whose [web] has these lines too."""
    file = write_default_config(folder, name="test")
    file.write_text(file.read_text().replace("[web]\n", f"[web]\n{lines}\n", 1))
    (file.parent / "keys" / "oidc.secret").write_text(SECRET + "\n")
    config = load_config(file)
    Spool(config.storage.spool).close()
    return config


@pytest.fixture
def config(tmp_path: Path, provider: Provider) -> NodeConfig:
    provider.claims = {"preferred_username": "dr.grey", "groups": ["staff", "pacs-admins"]}
    provider.mend, provider.key = lambda claims: None, provider.published
    settings = [
        f'issuer = "{provider.issuer}"', f'public_url = "{BASE}"', 'client_secret_file = "keys/oidc.secret"',
        'roles = { viewer = ["staff"], admin = ["pacs-admins"] }',
    ]  # fmt: skip
    return node(tmp_path / "node", f"oidc = {{ {', '.join(settings)} }}")


@pytest.fixture
def client(config: NodeConfig) -> Iterator[TestClient]:
    with TestClient(create_app(config), base_url=BASE, follow_redirects=False) as made:
        yield made


def come_back(client: TestClient) -> httpx.Response:
    """To the provider and back, as a browser goes."""
    away = client.get("/login/oidc")
    assert away.status_code == 303
    answer = httpx.get(away.headers["location"], follow_redirects=False, trust_env=False)
    found: httpx.Response = client.get(answer.headers["location"])
    return found


def records(config: NodeConfig) -> list[tuple[str, str]]:
    with closing(AuditLog(config.storage.audit)) as audit:
        return [(r.kind, str(r.facts.get("account", ""))) for r in audit.records() if r.kind.startswith("login")]


def test_a_person_of_the_provider_gets_the_role_of_their_group(client: TestClient, config: NodeConfig) -> None:
    assert 'id="oidc"' in client.get("/login").text
    answer = come_back(client)
    assert answer.status_code == 200 and 'http-equiv="refresh"' in answer.text, (
        "the cookie goes along from our own page"
    )
    cookies = [line.lower() for line in answer.headers.get_list("set-cookie")]
    assert any("httponly" in line and "samesite=strict" in line and "fedpacs_session_8080=" in line for line in cookies)
    page = client.get("/").text
    assert "console:dr.grey (OpenID) (admin)" in page
    assert records(config) == [("login", "dr.grey (OpenID)")]
    own = {"X-Fedpacs": "1", "Origin": BASE}
    assert client.post("/pause", json={"reason": "r"}).status_code == 403, "CSRF protection holds for this session too"
    assert client.post("/pause", json={"reason": "r"}, headers=own).status_code == 200


@pytest.mark.parametrize(
    ("claims", "mend"),
    [
        ({"groups": ["cleaners"]}, None),
        ({"groups": {"pacs-admins": 1}}, None),
        ({}, lambda claims: claims.update(aud="somebody else")),
        ({}, lambda claims: claims.update(aud=["fedpacs", "other"])),
        ({}, lambda claims: claims.update(iss="http://evil.example")),
        ({}, lambda claims: claims.update(nonce="another")),
        ({}, lambda claims: claims.pop("nonce")),
        ({}, lambda claims: claims.update(exp=int(time.time()) - 3600)),
        ({}, lambda claims: claims.pop("exp")),
        ({}, lambda claims: claims.update(iat=int(time.time()) + 3600)),
    ],
)
def test_a_token_that_is_not_for_us_now_logs_nobody_in(
    client: TestClient,
    config: NodeConfig,
    provider: Provider,
    claims: dict[str, Any],
    mend: Callable[[dict[str, Any]], Any] | None,
) -> None:
    provider.claims |= claims
    provider.mend = mend or (lambda claims: None)
    answer = come_back(client)
    assert answer.status_code == 403 and "fedpacs_session" not in str(answer.headers.get_list("set-cookie"))
    assert client.get("/status").status_code == 401
    assert records(config) == [("login.refused", "openid")]


def test_a_token_signed_by_another_key_logs_nobody_in(client: TestClient, provider: Provider) -> None:
    provider.key = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
    assert come_back(client).status_code == 403
    assert client.get("/status").status_code == 401


def test_the_way_back_counts_once_and_in_the_browser_that_began(client: TestClient, config: NodeConfig) -> None:
    away = client.get("/login/oidc")
    back = httpx.get(away.headers["location"], follow_redirects=False, trust_env=False).headers["location"]
    assert TestClient(client.app, base_url=BASE).get(back).status_code == 403, "another browser"
    assert come_back(client).status_code == 200
    assert client.get(back).status_code == 403, "a used one"
    assert client.get("/login/oidc/callback?state=x&code=y").status_code == 403
    assert client.get("/login/oidc/callback?error=access_denied").status_code == 403


def test_a_provider_that_is_away_leaves_the_password(tmp_path: Path) -> None:
    config = node(
        tmp_path / "node",
        f'oidc = {{ issuer = "http://127.0.0.1:1", public_url = "{BASE}", roles = {{ admin = ["x"] }} }}',
    )
    with TestClient(create_app(config), base_url=BASE) as client:
        answer = client.get("/login/oidc")
        assert answer.status_code == 403 and "log in with a password" in answer.text


def test_a_role_of_the_other_console_is_told_at_the_start(tmp_path: Path) -> None:
    oidc = f'issuer = "http://127.0.0.1:1", public_url = "{BASE}", roles = {{ coordinator = ["x"] }}'
    with pytest.raises(ConfigError, match="coordinator"):
        create_app(node(tmp_path / "node", f"oidc = {{ {oidc} }}"))


def test_a_proxys_headers_count_from_its_own_address_only(tmp_path: Path) -> None:
    config = node(
        tmp_path / "node", 'proxy = { addresses = ["10.1.2.0/24"], user_header = "X-User", role_header = "X-Role" }'
    )
    app = create_app(config)
    said = {"X-User": "Dr. Grey", "X-Role": "admin"}
    own = {"X-Fedpacs": "1", "Origin": BASE}
    with TestClient(app, base_url=BASE, client=("10.1.2.3", 5000)) as proxy:
        assert "proxy:Dr. Grey (admin)" in proxy.get("/", headers=said).text
        assert proxy.post("/pause", headers=said).status_code == 403, "CSRF protection holds for a proxy's people too"
        assert proxy.post("/pause", json={"reason": "r"}, headers={**said, **own}).status_code == 200
        for none_of_ours in ("king", "coordinator"):  # a viewer's
            answer = proxy.post("/echo", json={"peer": "A@b:1"}, headers={**said, **own, "X-Role": none_of_ours})
            assert answer.status_code == 403, none_of_ours
        assert proxy.get("/status", headers={"X-Role": "admin"}).status_code == 401, "no name, nobody"
        with closing(AuditLog(config.storage.audit)) as audit:
            assert [r.facts["by"] for r in audit.records("node.paused")] == ["proxy:Dr. Grey"]
        for stranger in (("10.1.3.3", 5000), ("127.0.0.1", 5000), ("testclient", 5000)):
            other = TestClient(app, base_url=BASE, client=stranger)
            assert other.get("/status", headers=said).status_code == 401, stranger


def test_another_site_cannot_log_a_browser_in(tmp_path: Path) -> None:
    config = node(tmp_path / "node", "")
    with closing(Accounts(config.storage.accounts)) as accounts:
        accounts.add("Ada", "admin", "correct horse battery", "root")
    form = "name=Ada&password=correct+horse+battery"
    with TestClient(create_app(config), base_url=BASE, follow_redirects=False) as client:
        assert client.post("/login", content=form, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.post("/login", content=form, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert client.post("/login", content=form, headers={"Origin": BASE}).status_code == 303


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('host = "0.0.0.0"', "reachable from elsewhere"),
        ('host = "127.0.0.1"\ntls_key = "keys/k"', "belong together"),
        ('oidc = { issuer = "http://login.example", public_url = "https://n", roles = { admin = ["x"] } }', "https://"),
        ('oidc = { issuer = "https://login.example" }', "public_url"),
        ('oidc = { issuer = "https://l.example", public_url = "https://n", roles = { king = ["x"] } }', "king"),
        ('proxy = { addresses = ["everywhere"] }', "addresses"),
    ],
)
def test_a_console_that_would_be_open_does_not_start(tmp_path: Path, lines: str, words: str) -> None:
    file = write_default_config(tmp_path / "node")
    text = file.read_text()
    if "host" in lines:
        text = text.replace('host = "127.0.0.1"                  #', "#")
    file.write_text(text.replace("[web]\n", f"[web]\n{lines}\n", 1))
    with pytest.raises(ConfigError, match=words):
        load_config(file)
