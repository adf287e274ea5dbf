"""The work queue's laws: claimed once, given back by time, retried later each time, dead at last, never lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dicom_node.queue import Job, WorkQueue


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> WorkQueue:
    return WorkQueue(tmp_path / "work.db", "deid", max_attempts=3, clock=clock)


def test_a_key_is_one_job_claimed_once(queue: WorkQueue) -> None:
    assert queue.put("study-1", {"generation": 1}) and not queue.put("study-1", {"generation": 2})
    job = queue.claim("worker-1")
    assert job is not None and job.payload == {"generation": 2} and queue.claim("worker-2") is None
    assert queue.done(job) and queue.counts() == {"waiting": 0, "claimed": 0, "dead": 0}
    assert not queue.done(job), "a job is finished once"


def test_news_during_the_work_is_not_lost(queue: WorkQueue) -> None:
    queue.put("study-1", 1)
    job = queue.claim("worker-1")
    queue.put("study-1", 2)
    assert job is not None and queue.done(job)
    again = queue.claim("worker-1")
    assert again is not None and again.payload == 2 and again.attempts == 1


def test_a_lease_that_ran_out_gives_the_job_to_another(queue: WorkQueue, clock: Clock) -> None:
    queue.put("study-1")
    first = queue.claim("worker-1", lease_seconds=10)
    assert first is not None
    clock.now += 9
    assert queue.renew(first, 10) and queue.claim("worker-2") is None
    clock.now += 11
    second = queue.claim("worker-2", lease_seconds=10)
    assert second is not None and second.attempts == 2
    assert not queue.done(first) and queue.fail(first, "late") == "lost" and not queue.renew(first), (
        "the late worker changes nothing"
    )
    assert queue.done(second)


def test_retries_wait_longer_each_time_and_end_in_the_dead_letter(queue: WorkQueue, clock: Clock) -> None:
    queue.put("study-1")
    waits = []
    for attempt in range(1, 4):
        job = queue.claim("worker-1")
        assert job is not None and job.attempts == attempt
        state = queue.fail(job, "disk full")
        start = clock.now
        while state == "waiting" and (queue.counts()["waiting"] and not _due(queue)):
            clock.now += 0.25
        waits.append(clock.now - start)
    assert state == "dead" and queue.dead() == [("study-1", "disk full")] and queue.claim("worker-1") is None
    assert 1.5 < waits[0] < 3 < waits[1] < 6
    assert queue.requeue("study-1") and not queue.requeue("study-1")
    job = queue.claim("worker-1")
    assert job is not None and job.attempts == 1


def _due(queue: WorkQueue) -> bool:
    row = queue._db.execute("SELECT min(due) FROM jobs WHERE state = 'waiting'").fetchone()
    return bool(row[0] is not None and row[0] <= queue._now())


def test_a_job_that_kills_every_worker_dies_in_the_end(queue: WorkQueue, clock: Clock) -> None:
    queue.put("poison")
    queue.put("good", delay=1)
    for _ in range(3):
        job = queue.claim("worker", lease_seconds=1)
        assert job is not None and job.key == "poison"
        clock.now += 0.5
        clock.now += 0.5
        if job.attempts < 3:
            queue._db.execute("UPDATE jobs SET due = due + 100 WHERE key = 'good'")
    queue._db.execute("UPDATE jobs SET due = ? WHERE key = 'good'", (clock.now,))
    job = queue.claim("worker", lease_seconds=1)
    assert job is not None and job.key == "good", "the poisonous job must not stand in the way"
    assert [key for key, _ in queue.dead()] == ["poison"]


def test_putting_a_dead_job_revives_it(queue: WorkQueue) -> None:
    queue.put("study-1")
    for _ in range(3):
        job = queue.claim("worker")
        assert job is not None
        queue.fail(job, "no", retry_in=0)
    assert queue.dead() and queue.put("study-1") and queue.claim("worker") is not None


def _claim_and_die(path: Path, claimed: Any) -> None:
    queue = WorkQueue(path, "deid")
    job = queue.claim("victim", lease_seconds=0.2)
    assert job is not None
    claimed.set()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "work.db"
    queue = WorkQueue(path, "deid")
    queue.put("study-1", {"n": 1})
    context = multiprocessing.get_context("spawn")
    claimed = context.Event()
    victim = context.Process(target=_claim_and_die, args=(path, claimed))
    victim.start()
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL and claimed.is_set()
    import time

    time.sleep(0.3)
    job = WorkQueue(path, "deid").claim("second")
    assert job is not None and job.payload == {"n": 1} and job.attempts == 2


def _drain(path: Path, results: Any) -> None:
    queue = WorkQueue(path, "deid")
    while (job := queue.claim(f"worker-{os.getpid()}")) is not None:
        results.put(job.key)
        queue.done(job)


def test_two_processes_share_the_work_without_overlap(tmp_path: Path) -> None:
    path = tmp_path / "work.db"
    queue = WorkQueue(path, "deid")
    for number in range(40):
        queue.put(f"study-{number}")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_drain, args=(path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    keys = [results.get(timeout=60) for _ in range(40)]
    for worker in workers:
        worker.join(60)
    assert sorted(keys) == sorted(f"study-{number}" for number in range(40)) and results.empty()


class QueueMachine(RuleBasedStateMachine):
    """Against a model: every key put is waiting, claimed by exactly one live claim, dead, or was finished."""

    def __init__(self) -> None:
        super().__init__()
        import sqlite3

        self.clock = Clock()
        self.queue = WorkQueue(sqlite3.connect(":memory:", isolation_level=None), "q", max_attempts=2, clock=self.clock)
        self.live: dict[str, Job] = {}
        self.expected: set[str] = set()

    @rule(key=st.sampled_from("abc"))
    def put(self, key: str) -> None:
        self.queue.put(key)
        self.expected.add(key)

    @rule()
    def claim(self) -> None:
        job = self.queue.claim("w", lease_seconds=5)
        if job is not None:
            assert job.key in self.expected
            self.live[job.key] = job

    @rule(seconds=st.sampled_from([1, 6, 5000]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(key=st.sampled_from("abc"), good=st.booleans())
    def finish(self, key: str, good: bool) -> None:
        job = self.live.pop(key, None)
        if job is None:
            return
        if good and self.queue.done(job):
            if not self.queue._db.execute("SELECT 1 FROM jobs WHERE key = ?", (key,)).fetchone():
                self.expected.discard(key)
        elif not good:
            self.queue.fail(job, "no")

    @invariant()
    def nothing_is_lost(self) -> None:
        rows = {row["key"] for row in self.queue._db.execute("SELECT key FROM jobs")}
        assert rows == self.expected


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
