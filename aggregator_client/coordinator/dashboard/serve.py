"""Serves the dashboard until it is told to stop."""

from __future__ import annotations

import uvicorn

from aggregator_client.coordinator.dashboard.app import create_app, token_file
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import SettingsError


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
    """Run until SIGTERM or Ctrl-C. Raises SettingsError when the port is taken."""
    settings = uvicorn.Config(
        create_app(config, port, host),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    shown = f"[{host}]" if ":" in host else host
    ready = f"Dashboard of {config.name}: http://{shown}:{port}/ (before the first account: the token in {token_file(config)})"
    try:
        _Server(settings, ready).run()
    except SystemExit as error:  # uvicorn's way to say that it cannot listen
        raise SettingsError(
            f"The dashboard cannot listen on {host} port {port}: choose another with --port."
        ) from error
