"""Decides which of Orthanc's studies are ready and pulls each into the spool, exactly once in effect.

    poll    /changes since the cursor → the studies they touch are marked dirty and the cursor moves, in one transaction
    scan    all studies against the ledger, at start, hourly, after an outage and when the log is not the one we knew
    work    each dirty study that is stable and has been left alone for the quiet period: pull what the spool lacks,
            check it, list it, and close the study only if Orthanc still shows the state that was pulled

Events are never relied on: a restart of Orthanc within its StableAge drops them for good.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, tzinfo
from itertools import zip_longest
from typing import Protocol

from dicom_node.errors import InputError, NodeError, StorageError, UnreachableError
from dicom_node.spool import study_key

from .client import Change, GoneError, OrthancClient, OrthancInstance, OrthancStudy
from .ledger import Ledger, LedgerStudy
from .rules import Rules

SCAN_SECONDS = 3600.0
RULES_SECONDS = 10.0  # how old what the plugin says may be
SOURCE = "ORTHANC"  # stands where the calling AE title of a sender would
_WINDOW_BYTES = 32 << 20  # two of these may be in memory at once, unless one instance alone is larger
_DIRTYING = {"NewStudy", "StableStudy", "NewSeries", "NewInstance"}


class SpoolSink(Protocol):
    """What the reader needs of dicom_node.spool.Spool: on disk, synced, when a call returns."""

    def add_files(self, files: Sequence[bytes], *, source: str) -> object: ...

    def expect(self, study_key: str, instances: int) -> None: ...


class Reader:
    """Follows one Orthanc. Single-threaded but for the parallel downloads of one study's instances."""

    def __init__(
        self,
        client: OrthancClient,
        ledger: Ledger,
        spool: SpoolSink,
        *,
        quiet_seconds: float,
        connections: int = 4,
        clock: Callable[[], float] = time.time,
        on_handover: Callable[[int, bool], None] | None = None,
        ours: Callable[[Iterable[str]], set[str]] = lambda sop_uids: set(),
        timezone: tzinfo | None = None,
    ) -> None:
        """`ours` tells which SOP Instance UIDs are results that we stored there ourselves."""
        self.client, self.ledger, self.spool = client, ledger, spool
        self.quiet_seconds, self.connections, self.clock = quiet_seconds, connections, clock
        self.on_handover, self.ours, self.timezone = on_handover, ours, timezone
        self.rules, self._rules_at = Rules.load(ledger.rules()), 0.0
        self.scan_needed = True
        self.refused = 0

    def step(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """One round of poll, scan when due, and work; -> studies handed over. Raises UnreachableError, ConfigError."""
        try:
            self.poll(stopping)
            if self.scan_needed or self.clock() - self.ledger.scanned_at() >= SCAN_SECONDS:
                self.scan()
            self.learn_rules()
            return self.work(stopping) if self.rules.open_at(self._local()) else 0
        except UnreachableError:
            self.scan_needed = True  # it may have been restarted, or restored, behind our back
            raise

    def learn_rules(self) -> None:
        """Ask the plugin what its Orthanc offers; rules that were seen once hold until others are given."""
        if self.clock() - self._rules_at < RULES_SECONDS:
            return
        told = self.client.rules()
        self._rules_at = self.clock()
        if told is None:
            return
        text = json.dumps(told, sort_keys=True)
        if text != self.ledger.rules():
            self.ledger.keep_rules(text)
        self.rules = Rules.parse(told)

    def _local(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), self.timezone)

    # -- poll and scan ------------------------------------------------------------------------------------------------

    def poll(self, stopping: Callable[[], bool] = lambda: False) -> None:
        cursor = self._resume()
        done = False
        while not done and not stopping():
            changes, last, done = self.client.changes(cursor)
            if not changes:
                if last > cursor:  # changes came and were cleared before we read them
                    self.scan_needed = True
                    self.ledger.advance((), last, "")
                return
            if changes[0].seq > cursor + 1:
                self.scan_needed = True
            self.ledger.advance(self._touched(changes), last, _anchor(changes[-1]))
            cursor = last

    def _resume(self) -> int:
        """The cursor, or 0 when the log is not the one it points into (a restored or another database)."""
        cursor, anchor = self.ledger.cursor()
        if not cursor:
            return 0
        changes, last, _ = self.client.changes(cursor - 1, limit=1)
        replaced = bool(anchor and changes and changes[0].seq == cursor and _anchor(changes[0]) != anchor)
        if replaced or last < cursor:
            self.scan_needed = True
            return 0
        if anchor and (not changes or changes[0].seq != cursor):
            # the change we stand on is gone: its study was deleted, the log cleared, or this is another database grown past it
            self.scan_needed = True
            self.ledger.advance((), cursor, "")  # one scan answers for it
        return cursor

    def _touched(self, changes: list[Change]) -> set[str]:
        studies = {c.orthanc_id for c in changes if c.level == "Study" and c.kind in _DIRTYING}
        instances = [c.orthanc_id for c in changes if c.level == "Instance" and c.kind in _DIRTYING]
        return studies | self.client.studies_of_instances(instances)

    def scan(self) -> tuple[int, int]:
        """Compare all of Orthanc with the ledger -> (studies found that the log had not told us of, studies gone)."""
        found = self.ledger.reconcile(self.client.studies(), self.clock())
        self.scan_needed = False
        return found

    # -- work ---------------------------------------------------------------------------------------------------------

    def work(self, stopping: Callable[[], bool] = lambda: False) -> int:
        handed = 0
        for row in self.ledger.due(self.clock()):
            if stopping():
                break
            try:
                handed += self._take(row, stopping)
            except GoneError:
                self._look_again(row.orthanc_id)
            except (UnreachableError, StorageError):
                raise  # nothing of this study is at fault: all wait
            except NodeError as error:
                # one study that cannot be taken must not hold up the others
                delay = min(3600.0, 5.0 * 2**row.attempts)
                self.ledger.later(row.orthanc_id, self.clock() + delay, str(error), failed=True)
        return handed

    def _look_again(self, orthanc_id: str) -> None:
        """Something vanished while we read: the study itself, or one of its instances."""
        try:
            self.client.study(orthanc_id)
            self.ledger.later(orthanc_id, self.clock() + 1.0)
        except GoneError:
            self.ledger.gone(orthanc_id)

    def _take(self, row: LedgerStudy, stopping: Callable[[], bool]) -> bool:
        study = self.client.study(row.orthanc_id)
        wait = self._not_before(study) - self.clock()
        if not study.stable or wait > 0:
            self.ledger.later(row.orthanc_id, self.clock() + min(max(wait, 1.0), 10.0))
            return False
        if self.rules.asks and (
            why := self.rules.withheld_because(self.client.traits(row.orthanc_id), self._local().date())
        ):
            self.ledger.withhold(row.orthanc_id, self.clock() + SCAN_SECONDS, why)
            return False
        instances = self.client.instances(study.orthanc_id)
        results = self.ours(i.sop_uid for i in instances)
        instances = [i for i in instances if i.sop_uid not in results]
        if not self._pull([i for i in instances if not self.ledger.has(i)], stopping):
            return False
        if self.client.study(row.orthanc_id).last_update != study.last_update:
            return False  # it grew meanwhile; it is still dirty and is looked at again
        # Orthanc has waited for the study to end; the spool need not wait a second time
        self.spool.expect(study_key(study.study_uid, study.patient_id), len(instances))
        fresh = self.ledger.handed_over(study, len(instances), self.clock())
        if self.on_handover:
            self.on_handover(len(instances), fresh)
        return fresh

    def _not_before(self, study: OrthancStudy) -> float:
        """When the study has been left alone for the quiet period, by Orthanc's clock or by ours, whichever is first.

        Orthanc calls every study stable after a restart, so its word alone does not do; its LastUpdate does, unless the
        clocks differ, and then the time since we first saw this LastUpdate does.
        """
        since = self.ledger.seen(study, self.clock())
        return min(max(study.updated_at, 0.0), since) + self.quiet_seconds

    def _pull(self, wanted: list[OrthancInstance], stopping: Callable[[], bool]) -> bool:
        """Download in parallel, spool in order, list what the spool has; False when told to stop half way.

        The next window is on its way while one is kept, so that network and disk work at the same time.
        """
        rate = self.rules.megabytes_per_second * 1e6
        windows = list(_windows(wanted, min(_WINDOW_BYTES, int(rate)) if rate else _WINDOW_BYTES))
        ahead: list[Future[tuple[bytes, str]]] = []
        with ThreadPoolExecutor(self.connections, thread_name_prefix="orthanc") as pool:
            try:
                for window, following in zip_longest(windows, windows[1:], fillvalue=()):
                    if stopping():
                        return False
                    started = time.monotonic()
                    got = [one.result() for one in ahead or [pool.submit(self._fetch, i) for i in window]]
                    ahead = [] if rate else [pool.submit(self._fetch, i) for i in following]
                    self._keep([data for data, _ in got])
                    self.ledger.add_instances([(i, digest) for i, (_, digest) in zip(window, got, strict=True)])
                    if rate:
                        _sleep_until(started + sum(len(data) for data, _ in got) / rate, stopping)
            finally:
                for one in ahead:
                    one.cancel()
        return True

    def _fetch(self, instance: OrthancInstance) -> tuple[bytes, str]:
        data = self.client.file(instance)
        return data, hashlib.sha256(data).hexdigest()

    def _keep(self, files: list[bytes]) -> None:
        """Spool a window at the cost of one commit; one file that is not DICOM must not take the others with it."""
        try:
            self.spool.add_files(files, source=SOURCE)
        except InputError as error:
            if len(files) == 1:
                self.refused += 1
                self.ledger.note_error(str(error))
                return
            for data in files:
                self._keep([data])


def _sleep_until(moment: float, stopping: Callable[[], bool]) -> None:
    while (left := moment - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left, 0.2))


def _windows(instances: list[OrthancInstance], most: int) -> Iterator[list[OrthancInstance]]:
    window: list[OrthancInstance] = []
    size = 0
    for instance in instances:
        if window and (size + instance.size > most or len(window) >= 256):
            yield window
            window, size = [], 0
        window.append(instance)
        size += instance.size
    if window:
        yield window


def _anchor(change: Change) -> str:
    return f"{change.date} {change.kind} {change.orthanc_id}"
