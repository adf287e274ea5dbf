"""Server-sent events: tells open pages that something they show has changed, so that they fetch themselves again.

A page that gets no events (an old proxy, a restart) reloads its content now and then instead; both show what a
plain reload would.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Request
from fastapi.responses import StreamingResponse

LOOK_SECONDS = 1.0
STILL_HERE_SECONDS = (
    10.0  # a page that hears nothing for twice as long looks by itself; proxies drop silent connections
)


class Changes:
    """Watches one fingerprint for any number of listeners; it is asked for only while somebody listens."""

    def __init__(self, fingerprint: Callable[[], Awaitable[str]], every: float = LOOK_SECONDS) -> None:
        self._fingerprint, self._every = fingerprint, every
        self._lock, self._known, self._at = asyncio.Lock(), "", 0.0

    def stream(self, request: Request) -> StreamingResponse:
        """`event: changed` at once and after each change; the data is the fingerprint, so that a page knows what it has."""
        return StreamingResponse(
            self._events(request), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def _events(self, request: Request) -> AsyncIterator[str]:
        seen, said = "", time.monotonic()
        yield "retry: 2000\n\n"
        while not await request.is_disconnected():
            now = await self._now()
            if now != seen:
                yield f"event: changed\ndata: {now}\n\n"
                seen, said = now, time.monotonic()
            elif time.monotonic() - said > STILL_HERE_SECONDS:
                yield f"event: still\ndata: {now}\n\n"
                said = time.monotonic()
            await asyncio.sleep(self._every)

    async def _now(self) -> str:
        async with self._lock:
            if time.monotonic() - self._at >= self._every * 0.9:
                self._known = await self._fingerprint()
                self._at = time.monotonic()
            return self._known
