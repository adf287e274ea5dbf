"""Serves the dashboard until it is told to stop."""

from __future__ import annotations

import uvicorn

from aggregator_client.coordinator.dashboard.app import create_app, token_file
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import SettingsError
from dicom_node.config import require_tls_beyond_loopback


class _Server(uvicorn.Server):
    """Does not wait for open event streams when it is told to stop."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._ready, flush=True)


def serve(config: CoordinatorConfig, host: str, port: int) -> None:
    """Run until SIGTERM or Ctrl-C. Raises SettingsError when the port is taken or TLS is missing."""
    tls = config.dashboard
    try:
        require_tls_beyond_loopback(host, tls.tls_certificate, tls.tls_key)
    except ValueError as error:
        raise SettingsError(f"{config.path}: [dashboard] {error}.") from None
    settings = uvicorn.Config(
        create_app(config, port, host),
        host=host,
        ssl_certfile=tls.tls_certificate,
        ssl_keyfile=tls.tls_key,
        port=port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if tls.tls_certificate else "http"
    token = f"before the first account: the token in {token_file(config)}"
    ready = f"Dashboard of {config.name}: {scheme}://{shown}:{port}/ ({token})"
    try:
        _Server(settings, ready).run()
    except SystemExit as error:  # uvicorn's way to say that it cannot listen
        raise SettingsError(
            f"The dashboard cannot listen on {host} port {port}: choose another with --port."
        ) from error
