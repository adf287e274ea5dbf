"""`python -m dicom_node.web --config F`: the node's REST interface and console."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from dicom_node import logs
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError
from dicom_node.service import Stop, main, process_name
from dicom_node.web.app import create_app


def serve(config: NodeConfig, stop: Stop) -> None:
    logs.configure(config.storage.logs, process_name("web"))
    # a query string could hold anything a person pasted: no access log
    settings = uvicorn.Config(create_app(config), access_log=False, log_config=None, timeout_graceful_shutdown=3)
    server = uvicorn.Server(settings)
    with ExitStack() as open_sockets:  # uvicorn ends by itself on SIGTERM and SIGINT
        listeners = [open_sockets.enter_context(_listen(config))]
        if config.web.unix_socket is not None:
            listeners.append(open_sockets.enter_context(_listen_unix(config.path, config.web.unix_socket)))
        server.run(sockets=listeners)


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
