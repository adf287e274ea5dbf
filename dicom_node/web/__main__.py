"""`python -m dicom_node.web --config F`: the node's REST interface and console."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from dicom_node import logs
from dicom_node.config import NodeConfig, WebSettings
from dicom_node.errors import ConfigError
from dicom_node.service import Stop, main, process_name
from dicom_node.web.app import create_app


def serve(config: NodeConfig, stop: Stop) -> None:
    logs.configure(config.storage.logs, process_name("web"))
    app, web = create_app(config), config.web
    with ExitStack() as open_sockets:  # uvicorn ends by itself on SIGTERM and SIGINT
        listeners = [open_sockets.enter_context(_listen(config))]
        beside: list[socket.socket] = []
        if web.unix_socket is not None:
            door = open_sockets.enter_context(_listen_unix(config.path, web.unix_socket))
            (listeners if web.tls_certificate is None else beside).append(door)  # TLS is for the network
        server = uvicorn.Server(_settings(app, web))
        if beside:
            app.router.lifespan_context = _with(app, _Beside(_settings(app, None)), beside)
        server.run(sockets=listeners)


def _settings(app: FastAPI, tls: WebSettings | None) -> uvicorn.Config:
    """`tls`: whose certificate to show; None serves plainly, and leaves the application's start to the other server."""
    return uvicorn.Config(
        app,
        access_log=False,  # a query string could hold anything a person pasted
        log_config=None,
        timeout_graceful_shutdown=1,  # open event streams end with it
        lifespan="on" if tls else "off",
        ssl_certfile=tls.tls_certificate if tls else None,
        ssl_keyfile=tls.tls_key if tls else None,
    )


class _Beside(uvicorn.Server):
    """Serves the unix socket beside the main server, which alone minds the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _with(app: FastAPI, other: _Beside, listeners: list[socket.socket]) -> Callable[..., Any]:
    """The application's lifespan with the other server running in it."""
    own = app.router.lifespan_context

    @asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[Any]:
        async with own(app) as state:
            task = asyncio.create_task(other.serve(sockets=listeners))
            yield state
            other.should_exit = True
            await task

    return both


def _listen(config: NodeConfig) -> socket.socket:
    host, port = config.web.host, config.web.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{config.path}: [web] host {host} port {port} cannot be listened on ({error.strerror}); choose another port"
        ) from None
    return listener


def _listen_unix(config: Path, path: Path) -> socket.socket:
    """Open to the node's user and the socket's group alone; the token is asked for all the same."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)  # what a killed process left; the daemon sees to it that one folder has one node
        listener.bind(str(path))
        path.chmod(0o660)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{config}: [web] unix_socket {path} cannot be made ({reason}); choose a shorter, writable path"
        ) from None
    return listener


if __name__ == "__main__":
    main(__doc__ or "", serve)
