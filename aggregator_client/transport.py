"""What the coordinator and a site need of a transport: opaque byte strings there, one byte string back for each.

The transport may lose, repeat or delay messages and can read none of them: they are sealed and signed above it. Two
implementations exist: Flower's SuperLink and SuperNode protocol (coordinator/flower_hub.py, flower_site.py), and
`LocalHub`, which runs in one process for tests and simulations. tests/aggregator_client/test_transport.py holds both to
the same contract.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SiteInfo:
    """A site as the transport sees it. Times are seconds since the epoch, 0 when it was never there.

    trouble: why the transport turns it away at present, for people.
    """

    name: str
    online: bool
    last_seen: float
    activated_at: float
    trouble: str = ""


@dataclass(frozen=True)
class Handle:
    """A message under way to `site`; `id` is the transport's."""

    site: str
    id: str


@dataclass(frozen=True)
class Failure:
    """Why no reply came. With `retry`, the same message may be sent again (the site left, the link broke)."""

    reason: str
    retry: bool = False


@dataclass(frozen=True)
class Delivery:
    """One message at the site; `id` names it when it is answered."""

    id: str
    payload: bytes


class Hub(Protocol):
    """The coordinator's end."""

    def register(self, site: str, public_key: bytes) -> None:
        """Let the holder of this node key (PEM) in under that name; doing so twice is the same as once."""

    def sites(self) -> list[SiteInfo]:
        """Every registered site."""

    def start_run(self) -> None:
        """Open a run; messages and replies of an earlier run are void."""

    def send(self, site: str, payload: bytes) -> Handle:
        """Put a message on its way; returns at once. To a site that is away it fails with `retry`: look at `sites` first.

        Raises UnreachableError when the hub itself is gone or does not know the site.
        """

    def collect(self, handles: Iterable[Handle], deadline: float) -> Iterator[tuple[Handle, bytes | Failure]]:
        """Yield each handle's reply or failure as it comes, until all came or `deadline` (time.monotonic) is past.

        What has not come by then is left out: the caller knows whom it still waits for, and why is its own to judge.
        """

    def close(self) -> None:
        """End the run and let go of every socket."""


class SiteLink(Protocol):
    """A site's end. A message is delivered again, also after a restart, until it was answered."""

    def next(self, timeout: float) -> Delivery | None:
        """The next message, or None after about `timeout` seconds. UnreachableError while the coordinator is away."""

    def reply(self, delivery: Delivery, payload: bytes) -> None:
        """Answer a message; returns once the coordinator has the whole answer (or has given the run up)."""

    def close(self) -> None:
        """Say good-bye, so that the coordinator need not wait to find out."""


def app_bundle() -> bytes:
    """The Flower app bundle every run carries: it names fedpacs and holds no code. Equal bytes on every machine."""
    settings = (
        '[project]\nname = "federation"\nversion = "1.0.0"\ndescription = "Runs the installed fedpacs; holds no code."\n'
        'license = "Apache-2.0"\n[tool.flwr.app]\npublisher = "fedpacs"\n'
        '[tool.flwr.app.components]\nserverapp = "fedpacs.none:app"\nclientapp = "fedpacs.none:app"\n'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        bundle.writestr(zipfile.ZipInfo("pyproject.toml", (1980, 1, 1, 0, 0, 0)), settings)
    return buffer.getvalue()


def app_bundle_hash() -> str:
    """SHA-256 of the one bundle a site accepts a message for."""
    return hashlib.sha256(app_bundle()).hexdigest()


class LocalHub:
    """A hub whose sites live in the same process. `link(site)` is a site's end."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._inbox: dict[str, deque[Delivery]] = {}
        self._replies: dict[str, bytes | Failure] = {}
        self._activated: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._online: set[str] = set()
        self._open: set[str] = set()
        self._change = threading.Condition()

    def register(self, site: str, public_key: bytes = b"") -> None:
        self._inbox.setdefault(site, deque())

    def sites(self) -> list[SiteInfo]:
        with self._change:
            return [
                SiteInfo(name, name in self._online, self._seen.get(name, 0.0), self._activated.get(name, 0.0))
                for name in sorted(self._inbox)
            ]

    def start_run(self) -> None:
        with self._change:
            self._open.clear()
            self._replies.clear()
            for box in self._inbox.values():
                box.clear()

    def send(self, site: str, payload: bytes) -> Handle:
        with self._change:
            handle = Handle(site, str(next(self._numbers)))
            if site not in self._online:
                self._replies[handle.id] = Failure(f"{site} is away", retry=True)
                return handle
            self._open.add(handle.id)
            self._inbox[site].append(Delivery(handle.id, bytes(payload)))
            self._change.notify_all()
        return handle

    def collect(self, handles: Iterable[Handle], deadline: float) -> Iterator[tuple[Handle, bytes | Failure]]:
        waiting = {handle.id: handle for handle in handles}
        while waiting:
            with self._change:
                left = max(0.0, deadline - time.monotonic())
                if not self._change.wait_for(lambda: not waiting.keys().isdisjoint(self._replies), left):
                    return
                found = [(waiting.pop(id), self._replies.pop(id)) for id in list(waiting) if id in self._replies]
            yield from found

    def close(self) -> None:
        self.start_run()

    def link(self, site: str) -> LocalLink:
        """This site's end; making a second one is a restart of the site."""
        with self._change:
            self._seen[site] = self._activated[site] = time.time()
            self._online.add(site)
        return LocalLink(self, site)


class LocalLink:
    """A site's end of a LocalHub."""

    def __init__(self, hub: LocalHub, site: str) -> None:
        self._hub, self._site = hub, site

    def next(self, timeout: float) -> Delivery | None:
        hub, box = self._hub, self._hub._inbox[self._site]
        with hub._change:
            hub._seen[self._site] = time.time()
            # it stays first in line until it is answered
            return box[0] if hub._change.wait_for(lambda: bool(box), timeout) else None

    def reply(self, delivery: Delivery, payload: bytes) -> None:
        hub, box = self._hub, self._hub._inbox[self._site]
        with hub._change:
            hub._seen[self._site] = time.time()
            if delivery in box:
                box.remove(delivery)
            if delivery.id in hub._open:
                hub._open.discard(delivery.id)
                hub._replies[delivery.id] = bytes(payload)
                hub._change.notify_all()

    def close(self) -> None:
        with self._hub._change:
            self._hub._online.discard(self._site)
