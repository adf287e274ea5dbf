"""The worker's round: complete quiet studies, put them in the durable queue, take one, finish it, do the chores."""

from __future__ import annotations

import time
from collections.abc import Callable

from dicom_node.errors import NodeError, StorageError
from dicom_node.logs import get_logger
from dicom_node.pause import is_paused
from dicom_node.queue import Job, WorkQueue
from dicom_node.spool import StudyRow
from dicom_node.status import write_last_error
from dicom_node.worker.chores import Chores
from dicom_node.worker.pipeline import Pipeline, Verdict

QUEUE = "deidentify"
LEASE_SECONDS = 600.0  # longer than any one object may take; a worker's own restart does not wait for it
CHORES_SECONDS = 2.0
_RENEW_SECONDS = 10.0


class LostClaim(StorageError):
    """Another worker took the study over, because this one was away for longer than its lease."""


class Worker:
    """One de-identification worker; `name` is the same after a restart, so that it takes its own work back at once."""

    def __init__(self, pipeline: Pipeline, name: str, clock: Callable[[], float] = time.time) -> None:
        self.pipeline, self.name, self.clock = pipeline, name, clock
        self.spool, self.config = pipeline.spool, pipeline.config
        self.queue = WorkQueue(self.config.storage.spool / "work.db", QUEUE)
        self.chores = Chores(pipeline, clock)
        self.log = get_logger()
        self._chores_at = self._renewed_at = 0.0

    def start(self) -> None:
        """After a start: take back own claims, queue what an earlier worker completed but did not queue, judge anew."""
        self.queue.release(self.name)
        for study in self.spool.studies("complete"):
            self.queue.put(study.study_key)
        self.chores.judge_all()

    def step(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """One round; -> whether a study was worked on. Raises StorageError when the node's own storage fails."""
        now = self.clock()
        for study_key in self.spool.complete_studies(now, self.config.study.quiet_seconds):
            self.queue.put(study_key)
        if now - self._chores_at >= CHORES_SECONDS:
            self._chores_at = now
            self.chores.all()
            self._reap_dead()
            for study in self.spool.studies("complete"):  # reopened by a person, or by a chore
                self._put_once(study.study_key)
        if is_paused(self.config) or stopping():
            return False
        job = self.queue.claim(self.name, LEASE_SECONDS)
        if job is None:
            return False
        self._work(job)
        return True

    def _work(self, job: Job) -> None:
        study = self.spool.study(job.key)
        if study.state != "complete":  # still arriving again, or done by another claim of the same work
            self.queue.done(job)
            return
        started = self.clock()
        try:
            verdict = self.pipeline.process(study, job.attempts, lambda: self._renew(job))
        except LostClaim:
            return
        except NodeError as error:
            write_last_error(self.config.storage.run, self.name, str(error))
            self.queue.fail(job, type(error).__name__)
            self.log.warning("study.failed", error=type(error).__name__, attempt=job.attempts)
            return
        self._finish(study, verdict)
        self.queue.done(job)
        write_last_error(self.config.storage.run, self.name, "")
        self.log.info("study.done", state=verdict.state, instances=study.instances, seconds=self.clock() - started)

    def _finish(self, study: StudyRow, verdict: Verdict) -> None:
        """Close the study, unless instances came meanwhile: then it completes, and goes through, once more."""
        self.spool.finish_study(study.study_key, study.generation, verdict.state, verdict.reason)

    def _put_once(self, study_key: str) -> None:
        if not self.queue.known(study_key):
            self.queue.put(study_key)

    def _reap_dead(self) -> None:
        """A study that no worker survives, or that failed every time, is quarantined with that reason; others go on."""
        for study_key, reason in self.queue.dead():
            study = self.spool.study(study_key)
            if study.state == "complete":
                self.spool.finish_study(study_key, study.generation, "quarantined", f"it was given up: {reason}")
                self.pipeline.audit.append(
                    "study.quarantined",
                    study=self.pipeline.deid.uid(study.study_uid),
                    reason=f"it was given up: {reason}",
                )
            self.queue.drop(study_key)

    def _renew(self, job: Job) -> None:
        if self.clock() - self._renewed_at >= _RENEW_SECONDS:
            self._renewed_at = self.clock()
            if not self.queue.renew(job, LEASE_SECONDS):
                raise LostClaim("another worker took this study over; it goes on there.")
