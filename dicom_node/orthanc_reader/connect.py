"""How the node reaches its Orthanc, and how others wake the reader, from the node's configuration."""

from __future__ import annotations

from pathlib import Path

from dicom_node.config import NodeConfig, OrthancSource
from dicom_node.errors import ConfigError

from .client import OrthancClient


def open_clients(config: NodeConfig) -> list[OrthancClient]:
    """A client for each Orthanc of this configuration. Raises ConfigError when a password file cannot be read."""
    return [open_client(config, source) for source in config.orthanc.sources]


def open_client(config: NodeConfig, source: OrthancSource) -> OrthancClient:
    password = ""
    if source.password_file is not None:
        file = config.root / source.password_file
        try:
            password = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"{config.path}: [orthanc] password_file {file} cannot be read; "
                "put the password of Orthanc's user there, readable by the node"
            ) from None
    return OrthancClient(source.url, source.username, password)


def wake_file(run: Path) -> Path:
    return run / "orthanc.wake"
