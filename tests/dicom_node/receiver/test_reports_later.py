"""Storage commitment owed to a peer that has gone: reported on an association of our own, through a kill, retried, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from dicom_node.config import load_config
from dicom_node.queue import WorkQueue
from dicom_node.receiver.service import REPORT_QUEUE, REPORTS
from dicom_node.reporter import Reporter
from dicom_node.scu import Peer, takes_commitment
from tests.dicom_node.receiver.conftest import ROOT, Receiver, free_port
from tests.dicom_node.receiver.wire import CT, Raw, dataset

Make = Callable[..., Receiver]


class Pacs:
    """A peer that asks for commitment and hangs up, and listens for the report at its own port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"PACS@127.0.0.1:{self.port}"
        self.reports: list[tuple[int, Dataset]] = []
        self.status = 0x0000

    def ask(self, port: int, references: list[tuple[str, str]], answer: int | None = None) -> str:
        """N-ACTION, and hang up at once; with `answer` the report on this association is answered with that status."""
        answered: list[str] = []

        def report(event: evt.Event) -> tuple[int, None]:
            return (0x0110 if answer is None else answer), None

        def sent(event: evt.Event) -> None:
            if type(event.message).__name__ == "N_EVENT_REPORT_RSP":  # released before, the report would be owed still
                answered.append(type(event.message).__name__)

        ae = AE("PACS")
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate(
            "127.0.0.1", port, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report), (evt.EVT_DIMSE_SENT, sent)]
        )
        request = Dataset()
        request.TransactionUID = generate_uid()
        request.ReferencedSOPSequence = [Dataset() for _ in references]
        for item, (sop_class, uid) in zip(request.ReferencedSOPSequence, references, strict=True):
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        status, _ = association.send_n_action(
            request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert status.Status == 0
        if answer is not None:
            until(lambda: bool(answered))
            association.release()
        else:
            association.abort()
        return str(request.TransactionUID)

    @contextmanager
    def listening(self) -> Iterator[None]:
        def report(event: evt.Event) -> tuple[int, None]:
            self.reports.append((event.event_type, event.event_information))
            return self.status, None

        ae = AE("PACS")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
        try:
            yield
        finally:
            server.shutdown()


def until(truth: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def store(one: Receiver, *uids: str) -> None:
    with Raw(one.port) as raw:
        raw.associate()
        for uid in uids:
            assert raw.store(uid, dataset(uid)) == 0


@pytest.fixture
def pacs() -> Pacs:
    return Pacs()


def queue_of(one: Receiver) -> WorkQueue:
    return WorkQueue(one.spool_root / REPORTS, REPORT_QUEUE)


def test_a_report_is_owed_through_a_kill_and_sent_when_the_peer_is_there(receiver: Make, pacs: Pacs) -> None:
    one = receiver(peers=[pacs.address])
    store(one, "2.25.1", "2.25.2")
    transaction = pacs.ask(one.port, [(CT, "2.25.1"), (CT, "2.25.2"), (CT, "2.25.9")])
    one.kill()  # SIGKILL, before anything else was sent
    assert queue_of(one).counts()["waiting"] == 1
    now = [time.time()]
    with closing(Reporter(load_config(one.config), lambda: now[0])) as reporter:
        assert not reporter.step(), "the association of the request comes first"
        now[0] += 30
        assert reporter.step() and pacs.reports == [], "the peer is away"
        assert not reporter.step(), "it waits before it tries again"
        with pacs.listening():
            pacs.status = 0x0110
            now[0] += 30
            assert reporter.step() and len(pacs.reports) == 1, "a refused report is owed still"
            pacs.status = 0x0000
            now[0] += 60
            assert reporter.step()
            now[0] += 10_000
            assert not reporter.step(), "once it was taken it is not sent again"
    event, report = pacs.reports[-1]
    assert event == 2 and report.TransactionUID == transaction
    assert [i.ReferencedSOPInstanceUID for i in report.ReferencedSOPSequence] == ["2.25.1", "2.25.2"]
    assert [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in report.FailedSOPSequence] == [("2.25.9", 0x0112)]


def test_a_report_taken_on_the_association_of_the_request_is_owed_no_more(receiver: Make, pacs: Pacs) -> None:
    one = receiver(peers=[pacs.address])
    store(one, "2.25.1")
    pacs.ask(one.port, [(CT, "2.25.1")], answer=0x0000)
    until(lambda: queue_of(one).counts()["waiting"] == 0)
    pacs.ask(one.port, [(CT, "2.25.1")], answer=0x0110)
    assert queue_of(one).counts()["waiting"] == 1, "a report the peer failed to take is owed"


def test_a_peer_whose_address_is_not_known_is_told_on_its_own_association_only(receiver: Make, pacs: Pacs) -> None:
    one = receiver()
    store(one, "2.25.1")
    pacs.ask(one.port, [(CT, "2.25.1")])
    assert not (one.spool_root / REPORTS).exists()


def test_the_reporter_process_sends_what_is_owed(receiver: Make, pacs: Pacs, tmp_path: Path) -> None:
    one = receiver(peers=[pacs.address])
    store(one, "2.25.1")
    pacs.ask(one.port, [(CT, "2.25.1")])
    queue = queue_of(one)
    queue._db.execute("UPDATE jobs SET due = 0")  # not to wait for the grace period
    argv = [sys.executable, "-m", "dicom_node.reporter", "--config", str(one.config)]
    with pacs.listening():
        process = subprocess.Popen(argv, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        try:
            until(lambda: bool(pacs.reports) and queue.counts() == {"waiting": 0, "claimed": 0, "dead": 0})
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    assert pacs.reports[0][0] == 1


def test_a_peer_is_asked_whether_it_offers_storage_commitment(receiver: Make, pacs: Pacs) -> None:
    one = receiver()
    assert takes_commitment(Peer("TEST", "127.0.0.1", one.port))
    ae = AE("PACS")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", pacs.port), block=False)
    try:
        assert not takes_commitment(Peer.parse(pacs.address))
    finally:
        server.shutdown()
