"""How the node reaches its Orthanc, and how others wake the reader, from the node's configuration."""

from __future__ import annotations

from pathlib import Path

from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError

from .client import OrthancClient


def open_client(config: NodeConfig) -> OrthancClient:
    """A client for [orthanc] of this configuration. Raises ConfigError when the password file cannot be read."""
    settings = config.orthanc
    password = ""
    if settings.password_file is not None:
        try:
            password = settings.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"{config.path}: [orthanc] password_file {settings.password_file} cannot be read; "
                "put the password of Orthanc's user there, readable by the node"
            ) from None
    return OrthancClient(settings.url, settings.username, password)


def wake_file(run: Path) -> Path:
    return run / "orthanc.wake"
