"""The console over TLS, with the unix socket beside it, as its own process serves them."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from aggregator_client import tls
from dicom_node.setup import write_default_config


@dataclass
class Served:
    port: int
    authority: Path
    door: Path
    token: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (tmp_path / "tls").mkdir()
    files = tls.create(tmp_path / "tls", "hospital", "127.0.0.1")
    file = write_default_config(tmp_path / "node", http_port=port)
    text = file.read_text().replace(
        '# tls_certificate = "keys/console.crt"', f'tls_certificate = "{files.certificate}"'
    )
    text = text.replace('# tls_key = "keys/console.key"', f'tls_key = "{files.key}"')
    file.write_text(text.replace('# unix_socket = "run/console.sock"', 'unix_socket = "run/console.sock"'))
    token = (tmp_path / "node" / "keys" / "api.token").read_text().strip()
    process = subprocess.Popen([sys.executable, "-m", "dicom_node.web", "--config", str(file)])
    try:
        one = Served(port, files.authority, tmp_path / "node" / "run" / "console.sock", token)
        end = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, "the console did not start"
                time.sleep(0.1)
        yield one
    finally:
        process.terminate()
        process.wait(30)


def test_the_network_gets_tls_and_the_socket_beside_it_none(served: Served) -> None:
    url = f"https://127.0.0.1:{served.port}"
    asked = {"Authorization": f"Bearer {served.token}"}
    trusted = ssl.create_default_context(cafile=str(served.authority))
    with httpx.Client(verify=trusted, trust_env=False, timeout=60) as client:
        page = client.get(f"{url}/login", follow_redirects=True)
        assert page.status_code == 200
        assert client.get(f"{url}/status", headers=asked).status_code == 200
        assert client.get(f"{url}/status").status_code == 401
    with (
        httpx.Client(trust_env=False, timeout=60) as stranger,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY"),
    ):
        stranger.get(f"{url}/login")
    with httpx.Client(trust_env=False, timeout=60) as plain, pytest.raises(httpx.HTTPError):
        plain.get(f"http://127.0.0.1:{served.port}/login")
    through = httpx.HTTPTransport(uds=str(served.door))
    with httpx.Client(transport=through, timeout=60) as beside:
        assert beside.get("http://localhost/status", headers=asked).status_code == 200
        assert beside.get("http://localhost/status").status_code == 401
