"""The verdict of the audit chain for the console: computed beside the pages, so that none waits for a long log."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dicom_node.audit import AuditLog, Verdict

_PATIENCE_SECONDS = 0.3


@dataclass(frozen=True)
class Checked:
    """A verdict and when it was reached (seconds since the epoch). `current`: nothing was appended since."""

    verdict: Verdict
    at: float
    current: bool


class Verifier:
    """Of one audit log; for one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: tuple[Verdict, float] | None = None
        self._task: asyncio.Task[None] | None = None

    async def verdict(self, wait: bool = False) -> Checked | None:
        """The newest verdict; None while the first one is still being reached. `wait`: a whole fresh walk."""
        seq = await asyncio.to_thread(self._head)
        if wait or self._last is None or self._last[0].records != seq:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._walk())
            await asyncio.wait([self._task], timeout=None if wait else _PATIENCE_SECONDS)
        if self._last is None:
            return None
        verdict, at = self._last
        return Checked(verdict, at, verdict.records >= seq)

    async def _walk(self) -> None:
        self._last = (await asyncio.to_thread(self._verify), time.time())

    def _verify(self) -> Verdict:
        with closing(AuditLog(self._path, readonly=True)) as log:
            return log.verify()

    def _head(self) -> int:
        with closing(AuditLog(self._path, readonly=True)) as log:
            return log.head()[0]
