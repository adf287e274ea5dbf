"""The demo's modality, as a process of its own, against real Storage SCPs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, Verification

from aggregator_client.demo import cohort, images, wrap


class Receiver:
    """A Storage SCP that answers the n-th C-STORE with `statuses[n]` (0x0000 after the last) and notes what it got."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.echoes = statuses, 0
        self.stored: list[str] = []
        entity = AE(ae_title="NODE")
        entity.require_called_aet = True
        entity.add_supported_context(Verification)
        for sop_class in (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation):
            entity.add_supported_context(sop_class)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, self._echo)]
        self.server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port: int = self.server.socket.getsockname()[1]

    def _echo(self, event: evt.Event) -> int:
        self.echoes += 1
        return 0x0000

    def _store(self, event: evt.Event) -> int:
        status = self.statuses.pop(0) if self.statuses else 0x0000
        if status == 0x0000:
            self.stored.append(str(event.dataset.PatientName))
        return status


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for exams in cohort.deal(images.load_pack(), 2):
        for exam in exams[:3]:
            for number, data in enumerate(wrap.instances(exam)):
                data.save_as(tmp_path / f"{exam.accession}-{number}.dcm", enforce_file_format=True)
    return tmp_path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    peer = Receiver([0x0000, 0xA700])
    yield peer
    peer.server.shutdown()


def command(folder: Path, port: int, called: str = "NODE") -> list[str]:
    module = "aggregator_client.demo.modality"
    return [sys.executable, "-m", module, str(folder), "127.0.0.1", str(port), called, "CR1"]


def send(folder: Path, port: int, called: str = "NODE") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "aggregator_client.demo.modality",
        str(folder),
        "127.0.0.1",
        str(port),
        called,
        "CR1",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_it_echoes_then_sends_every_instance_and_sends_again_what_was_refused(folder: Path, receiver: Receiver) -> None:
    total = len(list(folder.glob("*.dcm")))
    done = send(folder, receiver.port)
    assert done.returncode == 0, done.stderr
    assert receiver.echoes == 2  # one association, and one more for the instance answered with 0xA700
    assert len(receiver.stored) == total
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["sent"], last["total"], last["failed"]) == (total, total, 0)


def test_a_peer_that_never_takes_an_instance_is_told_in_the_exit_code(folder: Path) -> None:
    peer = Receiver([0xA700] * 1000)
    try:
        done = send(folder, peer.port)
    finally:
        peer.server.shutdown()
    assert done.returncode == 10
    assert json.loads(done.stdout.splitlines()[-1])["sent"] == 0


def test_a_folder_without_dicom_is_one_sentence(tmp_path: Path) -> None:
    done = send(tmp_path, 1)
    assert done.returncode == 4 and "no DICOM file" in done.stderr and "Traceback" not in done.stderr


def test_it_waits_for_a_peer_that_is_still_starting(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "aggregator_client.demo.modality",
        str(folder),
        "127.0.0.1",
        str(port),
        "NODE",
        "CR1",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=2.5)
        entity = AE(ae_title="NODE")
        for sop_class in (Verification, ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation):
            entity.add_supported_context(sop_class)
        server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0x0000)]
        )
        out, _ = child.communicate(timeout=30)
        server.shutdown()
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0 and json.loads(out.splitlines()[-1])["failed"] == 0
