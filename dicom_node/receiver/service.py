"""What all associations of one receiver process share: the spool, the queue of finished objects, counters, back pressure."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import structlog

from dicom_node.errors import StorageError
from dicom_node.queue import WorkQueue
from dicom_node.receiver.occupancy import Occupancy
from dicom_node.receiver.settings import Settings
from dicom_node.spool import Ingest
from dicom_node.spool.slab import SlabPool

if TYPE_CHECKING:
    from dicom_node.receiver.association import Association
    from dicom_node.receiver.transfer import Transfer

log = structlog.get_logger("dicom_node.receiver")

_BESIDE = 64 << 10  # a record's head and its padding
_COUNT_SECONDS = 1.0
_WATERMARK_SECONDS = 0.25
_MOST_PEERS = 1000
_CATCH_UP_AT_END = 5.0
_HYSTERESIS = 1.02  # above the watermark by this much before objects are taken again, so that it does not flap


REPORTS, REPORT_QUEUE = "reports.db", "commitment"  # storage commitment that is owed to peers


class _NoReports:
    """Where no peer's address is known nothing is owed beyond the association of the request."""

    def put(self, key: str, payload: Any = None, delay: float = 0.0) -> bool:
        return False

    def cancel(self, key: str) -> bool:
        return False


class Service:
    """Not for threads: one event loop owns it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ingest = Ingest(settings.spool, synchronous="NORMAL", count_seconds=_COUNT_SECONDS, hash_later=True)
        self.ready: list[tuple[Association, Transfer]] = []
        self.now = time.monotonic()
        self.slabs = SlabPool(settings.spill_bytes + _BESIDE)
        self.memory = 0
        self.refusing = False
        self._established = 0
        self.reports = WorkQueue(settings.spool / REPORTS, REPORT_QUEUE) if settings.peers else _NoReports()
        self.occupancy = Occupancy(settings.run or settings.spool)
        self._disk_checked = 0.0
        self._peers: set[str] = set()

    def close(self) -> None:
        self.flush_counts()
        self.catch_up(_CATCH_UP_AT_END)
        self.ingest.close()
        self.occupancy.close()

    @property
    def established(self) -> int:
        """Associations of this process."""
        return self._established

    @established.setter
    def established(self, count: int) -> None:
        self._established = count
        self.occupancy.set(count)

    # -- back pressure ------------------------------------------------------------------------------------------------

    def disk_is_full(self) -> bool:
        """True while less than the watermark is free; looked at a few times a second at most."""
        if self.now - self._disk_checked >= _WATERMARK_SECONDS or self._disk_checked == 0.0:
            self._disk_checked = self.now
            disk = os.statvfs(self.settings.spool)
            free = disk.f_bavail * disk.f_frsize
            watermark = self.settings.min_free_mb << 20
            low = free < (watermark * _HYSTERESIS if self.refusing else watermark)
            if low != self.refusing:
                self.refusing = low
                log.warning("receiver.disk", refusing=low, free_mb=free >> 20, min_free_mb=self.settings.min_free_mb)
        return self.refusing

    # -- digests ------------------------------------------------------------------------------------------------------

    def catch_up(self, seconds: float) -> None:
        """Compute SHA-256 sums that were left for later, for about `seconds` at most."""
        until = time.monotonic() + seconds
        try:
            while self.ingest.unhashed and (left := until - time.monotonic()) > 0:
                self.ingest.catch_up(left)
        except StorageError as error:
            log.warning("receiver.digests", error=str(error))

    # -- counters -----------------------------------------------------------------------------------------------------

    def count(self, ae: str, name: str, value: int = 1) -> None:
        """Count for `ae`, which is a peer's word: names beyond the first thousand share one row."""
        if ae not in self._peers:
            if len(self._peers) >= _MOST_PEERS:
                ae = "(others)"
            self._peers.add(ae)
        self.ingest.count(ae, name, value)

    def flush_counts(self) -> None:
        """Write the counters that are not written with instances; a failure keeps them for the next time."""
        try:
            self.ingest.flush_counts()
        except StorageError as error:
            log.warning("receiver.counters", error=str(error))
