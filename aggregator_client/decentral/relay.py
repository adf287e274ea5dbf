"""Relays for decentralised rounds: mailboxes that nobody need trust, since all they carry is sealed and signed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Relay(Protocol):
    """A mailbox that nobody need trust. Topics are plain text; what is put stays readable to all."""

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


class FolderRelay:
    """A relay as a folder that all nodes can write to (a share, or behind any file transfer): a file for each message."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, topic: str, data: bytes) -> None:
        place = self._place(topic)
        place.mkdir(parents=True, exist_ok=True)
        file = place / hashlib.sha256(data).hexdigest()
        part = file.with_suffix(".part")
        part.write_bytes(data)
        part.replace(file)

    def get(self, topic: str) -> Iterable[bytes]:
        place = self._place(topic)
        return [file.read_bytes() for file in sorted(place.iterdir()) if not file.suffix] if place.exists() else []

    def _place(self, topic: str) -> Path:
        return self.folder / hashlib.sha256(topic.encode()).hexdigest()[:32]
