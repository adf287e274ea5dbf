"""A node's mailbox: everything it put or read is on its own disk first, and goes to and comes from whichever relay answers.

Relays may come, go or lose their disk: what this node put in the round under way goes to every relay that lacks it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_client.decentral import door
from aggregator_client.decentral.relay import FolderRelay, place
from aggregator_client.errors import SignatureError, UnreachableError

TIMEOUT_SECONDS = 20.0
REST_SECONDS = 10.0  # a relay that did not answer is left alone for so long
_NOTHING = hashlib.sha256(b"").hexdigest()


class HttpsRelay:
    """The far side of a relay over HTTPS with a pinned certificate. Raises UnreachableError, SignatureError."""

    def __init__(self, url: str, key: Ed25519PrivateKey) -> None:
        parts = urlsplit(url)
        self.url, self._host, self._port = url.split("#")[0], parts.hostname or "", parts.port or 443
        self._pin, self._key = parts.fragment.removeprefix("sha256="), key
        self._link: http.client.HTTPSConnection | None = None

    def names(self, address: str) -> list[str]:
        found = json.loads(self._ask("GET", f"/v1/{address}"))
        return [str(name) for name in found] if isinstance(found, list) else []

    def read(self, address: str, name: str) -> bytes:
        return self._ask("GET", f"/v1/{address}/{name}")

    def keep(self, address: str, data: bytes) -> str:
        self._ask("PUT", f"/v1/{address}", data)
        return hashlib.sha256(data).hexdigest()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        digest = _NOTHING if body is None else hashlib.sha256(body).hexdigest()
        headers = door.sign(self._key, method, path, digest) | {"x-fedpacs-digest": digest}
        for attempt in (1, 2):
            fresh = self._link is None
            try:
                link = self._connected()
                link.request(method, path, body, headers)
                answer = link.getresponse()
                data = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._link = None
                if fresh or attempt == 2:  # a kept connection may have been closed meanwhile; a new one says the truth
                    raise UnreachableError(f"The relay {self.url} does not answer ({type(error).__name__}).") from None
        if answer.status >= 400:
            raise UnreachableError(f"The relay {self.url} answered with HTTP {answer.status}: {_reason(data)}")
        return data

    def _connected(self) -> http.client.HTTPSConnection:
        if self._link is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname, context.verify_mode = (
                False,
                ssl.CERT_NONE,
            )  # the pin below is the whole of the trust
            link = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_SECONDS, context=context)
            link.connect()
            shown = link.sock.getpeercert(binary_form=True) if isinstance(link.sock, ssl.SSLSocket) else None
            if hashlib.sha256(shown or b"").hexdigest() != self._pin:
                link.close()
                raise SignatureError(
                    f"The relay {self.url} shows another certificate than the project names: call its operator."
                )
            link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._link = link
        return self._link


def _reason(data: bytes) -> str:
    try:
        return str(json.loads(data)["reason"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def relay_of(url: str, key: Ed25519PrivateKey) -> HttpsRelay | FolderRelay:
    """The relay at an address of the project."""
    parts = urlsplit(url)
    return FolderRelay(Path(parts.path)) if parts.scheme == "file" else HttpsRelay(url, key)


class Mailbox:
    """A `Relay` over several. `leaving(topic, data)` is told of every new message before it is kept or sent."""

    def __init__(
        self, folder: Path, relays: Iterable[HttpsRelay | FolderRelay], leaving: Callable[[str, bytes], None]
    ) -> None:
        self._own, self._seen = FolderRelay(folder / "put"), FolderRelay(folder / "seen")
        self._relays, self._leaving = list(relays), leaving
        self._resting: dict[int, float] = {}
        self.reasons: dict[int, str] = {}

    def put(self, topic: str, data: bytes) -> None:
        address, name = place(topic), hashlib.sha256(data).hexdigest()
        if name not in self._own.names(address):
            self._leaving(topic, data)
            self._own.keep(address, data)
        self._spread(address)

    def get(self, topic: str) -> Iterable[bytes]:
        address = place(topic)
        known = set(self._seen.names(address)) | set(self._own.names(address))
        for number, relay in self._awake():

            def fetch(relay: HttpsRelay | FolderRelay = relay) -> None:
                for name in set(relay.names(address)) - known:
                    data = relay.read(address, name)
                    if hashlib.sha256(data).hexdigest() == name:
                        self._seen.keep(address, data)
                        known.add(name)

            self._try(number, fetch)
        return [
            (self._own if name in self._own.names(address) else self._seen).read(address, name)
            for name in sorted(known)
            if len(name) == 64
        ]

    def spread(self, project: str, number: int) -> None:
        """Give every relay what it lacks of what this node put in a round."""
        head = place(f"{project}/{number}/x").rpartition("/")[0]
        folder = self._own.folder / head
        for topic in sorted(folder.iterdir()) if folder.exists() else ():
            self._spread(f"{head}/{topic.name}")

    def forget(self, project: str, before: int) -> None:
        """Drop this node's own copies of rounds before that one."""
        for side in (self._own, self._seen):
            folder = side.folder / place(f"{project}/0/x").split("/")[0]
            for old in folder.iterdir() if folder.exists() else ():
                if int(old.name) < before:
                    shutil.rmtree(old)

    def _spread(self, address: str) -> None:
        mine = self._own.names(address)
        for number, relay in self._awake():

            def give(relay: HttpsRelay | FolderRelay = relay) -> None:
                for name in set(mine) - set(relay.names(address)):
                    relay.keep(address, self._own.read(address, name))

            self._try(number, give)

    def _awake(self) -> list[tuple[int, HttpsRelay | FolderRelay]]:
        now = time.monotonic()
        return [(n, relay) for n, relay in enumerate(self._relays) if self._resting.get(n, 0.0) <= now]

    def _try(self, number: int, action: Callable[[], None]) -> None:
        """A relay that fails rests for a while; the others carry on."""
        try:
            action()
            self.reasons.pop(number, None)
        except (UnreachableError, SignatureError, OSError, ValueError) as error:
            self._resting[number] = time.monotonic() + REST_SECONDS
            self.reasons[number] = str(error)
