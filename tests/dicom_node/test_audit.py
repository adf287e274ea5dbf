"""The audit chain: whole after any history, and every way of changing it shows at the right record."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.audit import AuditLog
from dicom_node.errors import IntegrityError

FACTS = st.dictionaries(
    st.text(max_size=8),
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), FACTS), max_size=6))
def test_any_history_verifies_and_reads_back(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, dict[str, object]]]
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.db"
    log = AuditLog(path)
    for kind, facts in history:
        log._db.execute("SELECT 1")
        log.append(kind, **{f"f_{name}": value for name, value in facts.items()})
    log.close()
    reopened = AuditLog(path, readonly=True)
    verdict = reopened.verify()
    assert verdict.ok and verdict.records == len(history)
    assert [record.kind for record in reopened.records()] == [kind for kind, _ in history]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "audit.db")
    for number in range(1, 6):
        log.append("egress" if number % 2 else "round.trained", project="p", round=number, bytes=100 * number)
    return log


def _unlock(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.execute("DROP TRIGGER records_no_update")
    db.execute("DROP TRIGGER records_no_delete")
    return db


TAMPERINGS: list[tuple[str, Callable[[sqlite3.Connection], object], int]] = [
    (
        "facts changed",
        lambda db: db.execute("UPDATE records SET facts = replace(facts, '300', '301') WHERE seq = 3"),
        3,
    ),
    ("facts made unreadable", lambda db: db.execute("UPDATE records SET facts = '{' WHERE seq = 3"), 3),
    ("kind changed", lambda db: db.execute("UPDATE records SET kind = 'round.trained' WHERE seq = 1"), 1),
    ("time changed", lambda db: db.execute("UPDATE records SET at = at + 1 WHERE seq = 4"), 4),
    (
        "hash changed",
        lambda db: db.execute("UPDATE records SET hash = 'a' || substr(hash, 2) WHERE seq = 2 AND hash NOT LIKE 'a%'"),
        2,
    ),
    ("record deleted", lambda db: db.execute("DELETE FROM records WHERE seq = 2"), 2),
    ("end cut off", lambda db: db.execute("DELETE FROM records WHERE seq = 5"), 5),
    ("all cut off", lambda db: db.execute("DELETE FROM records"), 1),
    (
        "record appended past the head",
        lambda db: db.execute("INSERT INTO records SELECT 6, at, kind, facts, prev, hash FROM records WHERE seq = 5"),
        6,
    ),
    (
        "two records exchanged",
        lambda db: db.executescript(
            "UPDATE records SET seq = 90 WHERE seq = 2; UPDATE records SET seq = 2 WHERE seq = 3;"
            " UPDATE records SET seq = 3 WHERE seq = 90"
        ),
        2,
    ),
]


@pytest.mark.parametrize(("name", "tamper", "first"), TAMPERINGS, ids=[name for name, _, _ in TAMPERINGS])
def test_every_change_shows_at_its_record(
    log: AuditLog, name: str, tamper: Callable[[sqlite3.Connection], object], first: int
) -> None:
    assert log.verify().ok
    db = _unlock(log.path)
    before = db.execute("SELECT * FROM records").fetchall()
    tamper(db)
    db.commit()
    if name == "hash changed" and before == db.execute("SELECT * FROM records").fetchall():
        pytest.skip("the hash began with an a already")
    verdict = log.verify()
    assert not verdict.ok and verdict.first_broken == first, verdict
    with pytest.raises(IntegrityError, match=f"record {first}"):
        log.require_whole()


def test_our_own_code_cannot_change_or_delete(log: AuditLog) -> None:
    for statement in ("UPDATE records SET kind = 'x'", "DELETE FROM records"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            log._db.execute(statement)


def test_facts_that_are_not_json_are_refused_and_leave_nothing(log: AuditLog) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append("x", value=float("nan"))
    assert log.verify().records == 5


def _append(path: Path, count: int) -> None:
    log = AuditLog(path)
    for number in range(count):
        log.append("x", number=number)


def test_many_processes_append_to_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    workers = [multiprocessing.get_context("spawn").Process(target=_append, args=(path, 15)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    verdict = AuditLog(path).verify()
    assert verdict.ok and verdict.records == 45
