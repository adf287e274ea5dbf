"""Which nodes the coordinator's server turns away at its door, and why: their clock, or their key.

A node signs the time of each request; Flower answers 401 when that is minutes off or the signature does not fit, and tells
neither side which. What is told here is what the request claimed, so it explains a silent hospital and decides nothing.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

REMEMBERED_SECONDS = 120.0
MOST = 1000
CLOCK_SECONDS = 60.0


class TurnedAway:
    """Remembers for each public key (PEM bytes) the last refusal, until a request of that key is let in again.

    key_header, time_header: the names, in lower case, of the headers with the base64 key and the ISO 8601 time.
    """

    def __init__(self, key_header: str, time_header: str) -> None:
        self._names = key_header.encode(), time_header.encode()
        self._last: dict[bytes, tuple[float, str]] = {}

    def watching(self, app: App) -> App:
        """`app`, with its answers looked at."""

        async def watched(scope: Scope, receive: Any, send: Any) -> None:
            async def look(event: Any) -> None:
                if event["type"] == "http.response.start":
                    self._answered(dict(scope["headers"]), int(event["status"]))
                await send(event)

            await app(scope, receive, look if scope["type"] == "http" else send)

        return watched

    def _answered(self, headers: dict[bytes, bytes], status: int) -> None:
        try:
            key = base64.b64decode(headers[self._names[0]], validate=True).strip() + b"\n"
        except (KeyError, binascii.Error):
            return
        if status != 401:
            self._last.pop(key, None)
        elif key in self._last or len(self._last) < MOST:  # anybody may knock
            self._last[key] = (time.monotonic(), _why(headers.get(self._names[1], b"")))

    def why(self, key: bytes) -> str:
        """Why the holder of this key was turned away lately; empty when it was not."""
        at, reason = self._last.get(key, (0.0, ""))
        return reason if reason and time.monotonic() - at < REMEMBERED_SECONDS else ""


def _why(stamp: bytes) -> str:
    try:
        ahead = datetime.fromisoformat(stamp.decode("ascii")).timestamp() - time.time()
    except ValueError:
        ahead = 0.0
    if abs(ahead) > CLOCK_SECONDS:
        side = "ahead of" if ahead > 0 else "behind"
        return f"its clock is {abs(ahead):.0f} s {side} the coordinator's; set the clock there"
    return "its key or signature is not accepted; compare the fingerprints of its keys"
