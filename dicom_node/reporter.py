"""`python -m dicom_node.reporter --config F`: sends the storage commitment reports that are still owed to peers.

What is committed is looked up anew at each attempt, so a report is true when it is sent. Retried with back-off; a report that no
peer took is told in the status and kept as a dead letter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import structlog

from dicom_node import logs
from dicom_node.config import NodeConfig
from dicom_node.errors import NodeError, StorageError
from dicom_node.queue import Job, WorkQueue
from dicom_node.receiver.commitment import look_up, report_of
from dicom_node.receiver.service import REPORT_QUEUE, REPORTS
from dicom_node.scu import Peer
from dicom_node.scu.report import report_commitment
from dicom_node.service import Stop, main, process_name, up
from dicom_node.spool import Spool
from dicom_node.status import write_last_error

log = structlog.get_logger("dicom_node.reporter")
POLL_SECONDS = 1.0
MAX_ATTEMPTS = 12  # over about three hours


class Reporter:
    """Sends what is due; for one thread."""

    def __init__(self, config: NodeConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._spool = Spool(config.storage.spool)
        self.queue = WorkQueue(config.storage.spool / REPORTS, REPORT_QUEUE, MAX_ATTEMPTS, clock)

    def close(self) -> None:
        self._spool.close()

    def step(self) -> bool:
        """Send one report that is due; False when there is none."""
        job = self.queue.claim(f"reporter-{os.getpid()}", lease_seconds=120.0)
        if job is None:
            return False
        try:
            self._send(job)
        except NodeError as error:
            state = self.queue.fail(job, str(error))
            log.warning("commitment.not_reported", attempt=job.attempts, state=state, reason=str(error))
            write_last_error(self._config.storage.run, "reporter", str(error))
            return True
        self.queue.done(job)
        log.info("commitment.reported", attempt=job.attempts)
        return True

    def _send(self, job: Job) -> None:
        references = [(str(sop_class), str(uid)) for sop_class, uid in job.payload["references"]]
        verdict = look_up(self._spool.db, job.payload["transaction"], references)
        event, report = report_of(verdict)
        dicom = self._config.dicom
        files = {"tls_ca": dicom.tls_ca, "tls_certificate": dicom.tls_certificate, "tls_key": dicom.tls_key}
        report_commitment(Peer.parse(job.payload["peer"], **files), event, report, dicom.ae_title)


def work(config: NodeConfig, stop: Stop) -> None:
    name = process_name("reporter")
    logs.configure(config.storage.logs, name)
    reporter = Reporter(config)
    up(config, name)
    while not stop():
        try:
            busy = reporter.step()
        except StorageError as error:
            write_last_error(config.storage.run, name, str(error))
            busy = False
        if not busy:
            stop.wait(POLL_SECONDS)
    reporter.close()


if __name__ == "__main__":
    main(__doc__ or "", work)
