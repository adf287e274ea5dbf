"""The cursor into Orthanc's log: a change that it stood on and that is gone means one scan, not none and not one a poll."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.orthanc_reader.client import Change, OrthancStudy
from dicom_node.orthanc_reader.ledger import Ledger
from dicom_node.orthanc_reader.reader import Reader

URL = "http://pacs"


class Log:
    """An Orthanc's log and its studies, as the reader asks for them."""

    def __init__(self) -> None:
        self.entries: list[Change] = []
        self.there: set[str] = set()
        self.scans = 0

    def add(self, seq: int, study: str) -> None:
        self.entries.append(Change(seq, "StableStudy", "Study", study, f"20260101T0000{seq:02d}"))
        self.there.add(study)

    def changes(self, since: int, limit: int = 100) -> tuple[list[Change], int, bool]:
        found = [one for one in self.entries if one.seq > since][:limit]
        last = found[-1].seq if found else max((one.seq for one in self.entries), default=0)
        return found, last, True

    def studies_of_instances(self, instances: list[str]) -> set[str]:
        return set()

    def studies(self) -> list[OrthancStudy]:
        self.scans += 1
        return [OrthancStudy(one, True, "20260101T000000", "1.2", "P") for one in sorted(self.there)]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def reader(tmp_path: Path, log: Log) -> Iterator[Reader]:
    ledger = Ledger(tmp_path / "orthanc.db", URL)
    client: Any = log
    sink: Any = None
    yield Reader(client, ledger, sink, quiet_seconds=0)
    ledger.close()


def turn(reader: Reader) -> None:
    reader.poll()
    if reader.scan_needed:
        reader.scan()


def test_a_database_that_grew_past_the_cursor_is_scanned(reader: Reader, log: Log) -> None:
    log.add(1, "a")
    log.add(5, "b")
    turn(reader)
    assert (log.scans, reader.ledger.cursor()[0]) == (1, 5), "one scan at the start"
    log.entries, log.there = [], set()
    for seq, study in ((3, "x"), (4, "y"), (6, "z")):  # another database, with no change at 5
        log.add(seq, study)
    turn(reader)
    waiting = {row.orthanc_id for row in reader.ledger.due(1e12)}
    assert log.scans == 2 and {"x", "y", "z"} <= waiting


def test_a_deleted_last_study_costs_one_scan(reader: Reader, log: Log) -> None:
    for seq, study in ((1, "a"), (2, "b")):
        log.add(seq, study)
    turn(reader)
    log.entries.pop()  # Orthanc drops the changes of a study that is deleted
    log.there.discard("b")
    log.entries.append(Change(2, "Deleted", "Patient", "p", "20260101T000009"))
    turn(reader)
    scans = log.scans
    for _ in range(5):
        turn(reader)
    assert log.scans == scans, "not one a poll"
    log.entries.pop()
    log.changes = lambda since, limit=100: ([], 2, True)  # type: ignore[method-assign]
    for _ in range(5):
        turn(reader)
    assert log.scans <= scans + 1
