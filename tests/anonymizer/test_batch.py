"""Every input is accounted for whatever it does to its process, and the readable report tells what was done and no value."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from anonymizer import batch, load_profile
from anonymizer.batch import Job, Line, plan_outputs, run
from anonymizer.engine import Deidentifier
from anonymizer.model import Outcome
from anonymizer.report import Report
from tests.anonymizer.corpus.generate import base, encoded
from tests.anonymizer.corpus.people import PEOPLE

JOB = Job(load_profile("federated-default"), bytes(range(32)), seconds=3.0)
REAL = Deidentifier.deidentify


def dies(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def faults(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def eats(path: Path) -> None:
    bytearray(64 << 30)


def spins(path: Path) -> None:
    while True:
        time.sleep(0.01)


def heeds_nothing(path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    while True:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(6):
        (source / f"{number:02d}.dcm").write_bytes(encoded(base(PEOPLE[0], number + 1)))
    (source / "03.dcm").rename(source / "03-bad.dcm")
    return source


@pytest.mark.parametrize(
    ("deed", "said", "workers"),
    [
        (dies, "died", 1),
        (faults, "died", 2),
        (eats, "more memory", 1),
        (spins, "longer than is allowed", 2),
        (heeds_nothing, "died", 2),
    ],
)
def test_a_file_that_harms_its_process_gets_its_line_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: Callable[[Path], None], said: str, workers: int
) -> None:
    def deidentify(self: Deidentifier, data: Path) -> Outcome:
        if "bad" in data.name:
            deed(data)
        return REAL(self, data)

    monkeypatch.setattr(Deidentifier, "deidentify", deidentify)  # worker processes are forked and inherit it
    monkeypatch.setattr(batch, "GRACE", -2.0)  # one second of processor time, which no healthy file needs
    lines: list[Line] = []
    pairs = plan_outputs([folder], tmp_path / "out")
    run(JOB, pairs, workers, lines.append)
    assert sorted(line.source for line in lines) == sorted(str(source) for source, _ in pairs)
    bad = [line for line in lines if line.status != "ok"]
    assert [Path(line.source).name for line in bad] == ["03-bad.dcm"]
    assert said in bad[0].reason and bad[0].output is None
    assert len(list((tmp_path / "out").iterdir())) == 5  # no partial output, nothing beside


def test_the_readable_report_counts_by_study_and_rule_and_holds_no_value(folder: Path, tmp_path: Path) -> None:
    report = Report(JOB.profile)
    lines: list[Line] = []
    (folder / "not.dcm").write_bytes(b"nothing of the sort")
    run(JOB, plan_outputs([folder], tmp_path / "out"), 1, lines.append)
    for line in lines:
        report.add(line.study_instance_uid, line.status, line.reason, line.actions)
    text = report.text()
    assert text.count("## Study 2.25.") == 1 and "6 ok." in text and "1 rejected." in text
    assert "| (0010,0010) PatientName | replaced by a dummy or pseudonym | keyed pseudonym | 6 |" in text
    assert "| (0008,0050) AccessionNumber | emptied |" in text
    person = PEOPLE[0]
    held = (*person.pieces, person.pid, person.accession, "Brannoc", "Kesselring", person.birth, person.study)
    assert not any(word in text for word in held)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """512 MB of slices, half of which do not lie in any memory this process may have."""
    rows, frames, source = 512, 1024, tmp_path / "in.dcm"
    ds = base(PEOPLE[0], 1, sop_class="1.2.840.10008.5.1.4.1.1.2.1")
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.PixelData = rows, rows, frames, b"\0\0"
    data = encoded(ds)
    head = data[: data.rfind(struct.pack("<HH", 0x7FE0, 0x0010)) + 8] + struct.pack("<I", rows * rows * 2 * frames)
    with source.open("wb") as handle:  # a sparse file: all its cells are 0
        handle.write(head)
        handle.truncate(len(head) + rows * rows * 2 * frames)
    lines: list[Line] = []
    run(replace(JOB, memory=256 << 20), [(source, tmp_path / "out.dcm")], 1, lines.append)
    assert [line.status for line in lines] == ["ok"], lines[0].reason
    assert abs((tmp_path / "out.dcm").stat().st_size - source.stat().st_size) < 10_000
    (tmp_path / "out.dcm").unlink()
