"""Starts a relay: its own certificate, its address, and the server until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import uvicorn

from aggregator_client import tls
from aggregator_client.decentral.relay_server import RelayServer, certificate_digest
from aggregator_client.errors import UnreachableError


def address_of(folder: Path, host: str, port: int) -> str:
    """The relay's address with its certificate's digest; the certificate is made when there is none."""
    files = tls.TlsFiles.below(folder / "tls")
    if not files.certificate.exists():
        files.certificate.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        tls.create(files.certificate.parent, "relay", host)
    shown = f"[{host}]" if ":" in host else host
    return f"https://{shown}:{port}/#sha256={certificate_digest(files.certificate.read_bytes())}"


def serve(
    folder: Path, project: str, members: Collection[bytes], host: str, port: int, ready: Callable[[], None]
) -> None:
    """Serve on host and port until SIGTERM or SIGINT. Raises UnreachableError when the port cannot be had."""
    files = tls.TlsFiles.below(folder / "tls")
    app = RelayServer(folder / "messages", project, members).app
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=str(files.certificate),
        ssl_keyfile=str(files.key),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
    )
    try:
        _Server(config, ready).run()
    except SystemExit:
        raise UnreachableError(
            f"The relay cannot listen on {host}:{port}: stop what uses the port, or give another."
        ) from None


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
