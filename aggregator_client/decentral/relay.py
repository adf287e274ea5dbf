"""Relays for decentralised rounds: mailboxes that nobody need trust, since all they carry is sealed and signed."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Relay(Protocol):
    """A mailbox that nobody need trust. A topic is "project/round/what"; what is put stays readable to all who may read."""

    def put(self, topic: str, data: bytes) -> None:
        """Add bytes under a topic."""

    def get(self, topic: str) -> Iterable[bytes]:
        """Everything put under the topic so far, in any order."""


class MemoryRelay:
    """A relay in this process."""

    def __init__(self) -> None:
        self.topics: dict[str, list[bytes]] = {}

    def put(self, topic: str, data: bytes) -> None:
        self.topics.setdefault(topic, []).append(data)

    def get(self, topic: str) -> Iterable[bytes]:
        return list(self.topics.get(topic, ()))


def place(topic: str) -> str:
    """A topic's address, of hex digits and digits only: "<project>/<round>/<digest of the rest>"."""
    project, number, rest = topic.split("/", 2)
    first, last = (hashlib.sha256(part.encode()).hexdigest()[:32] for part in (project, rest))
    return f"{first}/{int(number):06d}/{last}"


class FolderRelay:
    """A relay as a folder that all nodes can write to (a share, or behind any file transfer): a file for each message."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, topic: str, data: bytes) -> None:
        self.keep(place(topic), data)

    def get(self, topic: str) -> Iterable[bytes]:
        address = place(topic)
        return [self.read(address, name) for name in self.names(address)]

    def names(self, address: str) -> list[str]:
        """The messages at an address (`place`), by the hex SHA-256 of their bytes."""
        folder = self.folder / address
        return sorted(file.name for file in folder.iterdir() if not file.suffix) if folder.exists() else []

    def read(self, address: str, name: str) -> bytes:
        """One message. OSError when it is not there."""
        return (self.folder / address / name).read_bytes()

    def keep(self, address: str, data: bytes) -> str:
        """Keep a message, whole when this returns; its name."""
        folder, name = self.folder / address, hashlib.sha256(data).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{uuid.uuid4().hex}.part"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / name)
        return name
