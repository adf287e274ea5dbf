"""`python -m dicom_node.web --config F`: the node's REST interface and console."""

from __future__ import annotations

import socket

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
    with _listen(config) as listener:  # uvicorn ends by itself on SIGTERM and SIGINT
        server.run(sockets=[listener])


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


if __name__ == "__main__":
    main(__doc__ or "", serve)
