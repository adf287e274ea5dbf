"""`fedpacs node pull` against Orthanc and dcmqrscp: planned, retrieved by C-GET, C-MOVE and DICOMweb, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.cli import run as fedpacs
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, InputError, RefusedError, UnreachableError
from dicom_node.optout import opt_out
from dicom_node.retrieve import qr
from dicom_node.retrieve.plan import MAX_ATTEMPTS, Found, Plan
from dicom_node.retrieve.run import Pull, Window
from dicom_node.retrieve.selection import Selection, halves
from dicom_node.retrieve.source import Dimse
from dicom_node.retrieve.web import Web, part_of
from dicom_node.scu import Peer
from dicom_node.spool import Spool
from tests.interop.node_process import RunningNode
from tests.interop.orthanc_process import MISSING, PASSWORD, USER, Orthanc, free_port
from tests.interop.studies import ct_instance, planted

pytestmark = pytest.mark.interop
STUDIES, EACH = 6, 4
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_dicomweb = pytest.mark.skipif(not DICOMWEB.exists(), reason="apt-get install orthanc-dicomweb")
needs_dcmqrscp = pytest.mark.skipif(not shutil.which("dcmqrscp"), reason="apt-get install dcmtk")


def until(truth: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    running = RunningNode(tmp_path_factory.mktemp("retrieve") / "node", quiet_seconds="3600")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, node: RunningNode) -> Iterator[Orthanc]:
    if MISSING:
        pytest.skip(MISSING)
    allow = {f"DicomAlwaysAllow{what}": True for what in ("Echo", "Store", "Find", "Get", "Move")}
    modalities = {"node": [node.config.dicom.ae_title, "127.0.0.1", node.config.dicom.port]}
    web = {"Plugins": [str(DICOMWEB)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}} if DICOMWEB.exists() else {}
    made = Orthanc(tmp_path_factory.mktemp("pacs"), {**allow, **web, "DicomModalities": modalities}, script=None)
    made.start()
    with made.client() as client:
        for study in range(1, STUDIES + 1):
            for number in range(1, EACH + 1):
                modality = "CT" if study < STUDIES else "MR"
                assert (
                    client.post(
                        "/instances", content=ct_instance(planted(study), number, modality=modality)
                    ).status_code
                    == 200
                )
    yield made
    made.stop()


def peer(orthanc: Orthanc) -> Peer:
    return Peer("ORTHANC", "127.0.0.1", orthanc.dicom_port)


def dimse(remote: Peer) -> Dimse:
    return Dimse(remote, "get", "FEDPACS", 60.0)


def clear(node: RunningNode) -> None:
    """Forget plans and instances, so that the next test begins with nothing."""
    with Spool(node.config.storage.spool) as spool:
        spool.db.execute("DELETE FROM instances")
        spool.db.execute("DELETE FROM studies")
    for file in node.config.storage.spool.glob("retrieve.db*"):
        file.unlink()


def held(node: RunningNode) -> list[str]:
    with Spool(node.config.storage.spool) as spool:
        return sorted(row[0] for row in spool.db.execute("SELECT sop_uid FROM instances"))


def wanted(studies: range) -> list[str]:
    return sorted(f"{planted(study).study_uid}.1.{number}" for study in studies for number in range(1, EACH + 1))


def password_file(node: RunningNode) -> Path:
    file = node.config.root / "pacs.password"
    file.write_text(f"{USER}:{PASSWORD}\n")
    return file


@pytest.mark.parametrize("via", ["get", "move", pytest.param("web", marks=needs_dicomweb)])
def test_what_a_selection_finds_is_retrieved_whole_and_once(
    node: RunningNode, orthanc: Orthanc, via: str, capsys
) -> None:  # type: ignore[no-untyped-def]
    clear(node)
    where = f"{orthanc.url}/dicom-web" if via == "web" else str(peer(orthanc))
    base = ["node", "pull", where, "--modality", "CT", "--via", via, "--json", "--config", str(node.config.path)]
    base += ["--password-file", str(password_file(node))] if via == "web" else []
    assert fedpacs([*base, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["studies"], plan["instances"], plan["states"]) == (5, 20, {"waiting": 5}) and held(node) == []
    assert plan["megabytes_estimated"] == pytest.approx(20 * 0.53, abs=0.1)
    assert fedpacs(base) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["states"] == {"done": 5} and held(node) == wanted(range(1, STUDIES))
    assert not [t for t in planted(1).tokens() if t in told.out + told.err], "nothing identified is told"
    with Spool(node.config.storage.spool) as spool:
        (one,) = spool.find(wanted(range(1, 2))[0])
        original = ct_instance(planted(1), 1)
        kept = spool.read(one)
        assert kept[one.data_offset :] == original[-(len(kept) - one.data_offset) :], "byte for byte"
    assert fedpacs(base) == 0 and len(held(node)) == 20, "a second time fetches nothing twice"


def test_a_pull_that_was_killed_goes_on_where_it_was(node: RunningNode, orthanc: Orthanc) -> None:
    clear(node)
    program = "from dicom_node.cli import main; main()"
    argv = [
        sys.executable,
        "-c",
        program,
        "node",
        "pull",
        str(peer(orthanc)),
        "--modality",
        "CT",
        "--config",
        str(node.config.path),
    ]
    process = subprocess.Popen([*argv, "--per-minute", "120"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: len(held(node)) >= EACH)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(held(node)) < 20, "it was killed in the middle"
    assert subprocess.run(argv, check=False, timeout=120, env=os.environ).returncode == 0
    assert held(node) == wanted(range(1, STUDIES))


class Qrscp:
    """dcmtk's dcmqrscp, holding the CT studies."""

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        self.port, self.folder = free_port(), folder
        (folder / "db").mkdir(parents=True)
        (folder / "qr.cfg").write_text(
            f"""NetworkTCPPort = {self.port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
node = ({config.dicom.ae_title}, 127.0.0.1, {config.dicom.port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {folder / "db"} RW (200, 1024mb) ANY
AETable END
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def peer(self) -> Peer:
        return Peer("QRSCP", "127.0.0.1", self.port)

    def start(self) -> None:
        argv = ["dcmqrscp", "-c", str(self.folder / "qr.cfg")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

        def answers() -> bool:
            return (
                subprocess.run(
                    ["echoscu", "-aec", "QRSCP", "127.0.0.1", str(self.port)], capture_output=True
                ).returncode
                == 0
            )

        until(answers)

    def fill(self) -> None:
        files = []
        for study in range(1, STUDIES):
            for number in range(1, EACH + 1):
                file = self.folder / f"{study}-{number}.dcm"
                file.write_bytes(ct_instance(planted(study), number))
                files.append(str(file))
        subprocess.run(
            ["storescu", "-aec", "QRSCP", "127.0.0.1", str(self.port), *files], check=True, capture_output=True
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def qrscp(tmp_path: Path, node: RunningNode) -> Iterator[Qrscp]:
    made = Qrscp(tmp_path / "qr", node.config)
    made.start()
    made.fill()
    yield made
    made.kill()


@needs_dcmqrscp
@pytest.mark.parametrize("via", ["get", "move"])
def test_dcmqrscp_gives_its_studies_and_may_die_in_the_middle(node: RunningNode, qrscp: Qrscp, via: str) -> None:
    clear(node)
    source = Dimse(qrscp.peer, via, node.config.dicom.ae_title, 20.0)
    now, told = [time.time()], list[str]()

    def tell(event: str, facts: dict[str, object]) -> None:
        told.append(event)
        if event == "again later" and told.count(event) == 1:
            qrscp.start()

    pull = Pull(node.config, source, Selection(modalities=("CT",)), tell=tell)
    pull.plan._now = lambda: now[0]
    pull._sleep = lambda seconds: now.__setitem__(0, now[0] + 3600)
    try:
        summary = pull.prepare()
        assert (summary.studies, summary.states) == (5, {"waiting": 5})
        qrscp.kill()  # what it found is planned; now it is gone, and comes back after the first failure
        assert (done := pull.run()).states == {"done": 5}, done.reasons
    finally:
        pull.close()
    assert "again later" in told and held(node) == wanted(range(1, STUDIES))


@needs_dicomweb
def test_dicomweb_tells_what_is_wrong_in_a_sentence(
    node: RunningNode, orthanc: Orthanc, tmp_path: Path, capsys
) -> None:  # type: ignore[no-untyped-def]
    clear(node)
    base = ["node", "pull", f"{orthanc.url}/dicom-web", "--modality", "CT", "--config", str(node.config.path)]
    assert fedpacs(base) == RefusedError.exit_code, "no password"
    assert "check the user or token" in capsys.readouterr().err
    wrong = [one.replace("/dicom-web", "/nothing") for one in base]
    assert fedpacs([*wrong, "--password-file", str(password_file(node))]) == RefusedError.exit_code
    assert "is a DICOMweb root" in capsys.readouterr().err
    gone = [one.replace(str(orthanc.http_port), str(free_port())) for one in base]
    assert fedpacs(gone) == UnreachableError.exit_code
    assert fedpacs([*base, "--password-file", str(tmp_path / "none")]) == ConfigError.exit_code
    with pytest.raises(InputError, match="without a password"):
        Web("https://user:secret@pacs.example/dicom-web")


def test_the_part_of_an_answer_is_taken_byte_for_byte() -> None:
    data = b"\r\n--not the mark\r\n\r\n\x00DICM\r\n"
    body = b"--m\r\nContent-Type: application/dicom; transfer-syntax=1.2\r\n\r\n" + data + b"\r\n--m--\r\n"
    assert part_of(body, 'multipart/related; type="application/dicom"; boundary="m"') == data
    assert part_of(data, "application/dicom") == data
    for kind in ("text/html", "multipart/related"):
        with pytest.raises(ValueError, match="not a multipart"):
            part_of(body, kind)


def test_who_opted_out_is_left_at_the_pacs(node: RunningNode, orthanc: Orthanc) -> None:
    clear(node)
    opt_out(node.config, planted(2).patient_id, "Dr. Test")
    pull = Pull(node.config, dimse(peer(orthanc)), Selection(modalities=("CT", "MR")))
    try:
        assert pull.prepare().states == {"waiting": 5, "opted out": 1}
        assert pull.run().states == {"done": 5, "opted out": 1}
    finally:
        pull.close()
    assert not set(wanted(range(2, 3))) & set(held(node))


def test_an_unknown_destination_is_told_with_the_mend(node: RunningNode, orthanc: Orthanc) -> None:
    with pytest.raises(RefusedError, match=r"register this node's AE title|whether it knows NOBODY"):
        qr.move(peer(orthanc), planted(1).study_uid, "NOBODY", "FEDPACS", 30)


def test_what_the_pacs_cannot_give_is_tried_again_and_then_told(node: RunningNode, orthanc: Orthanc) -> None:
    clear(node)
    pull = Pull(node.config, dimse(peer(orthanc)), Selection(accessions=("none",)), sleep=lambda seconds: None)
    now = [time.time()]
    pull.plan._now = lambda: now[0]
    pull._sleep = lambda seconds: now.__setitem__(0, now[0] + 3600)
    try:
        pull.plan.add(Found("1.2.3.4", "PID-1", ("CT",), 3), False)
        assert pull.run().states == {"failed": 1}
        (study,) = pull.plan.studies()
        assert study.attempts == MAX_ATTEMPTS and study.reason == "the PACS names no instance of it"
        pull.plan.retry_failed()
        assert pull.plan.due() is not None
    finally:
        pull.close()


def test_a_study_that_grew_at_the_pacs_is_retrieved_again(tmp_path: Path) -> None:
    plan = Plan(tmp_path, "d")
    plan.add(Found("1.2", "P", ("CT",), 2), False)
    plan.done(plan.studies()[0], 2)
    plan.add(Found("1.2", "P", ("CT",), 2), False)
    assert plan.studies()[0].state == "done"
    plan.add(Found("1.2", "P", ("CT",), 3), False)
    assert plan.studies()[0].state == "waiting"
    plan.close()


@pytest.mark.parametrize(
    ("hours", "now", "seconds"),
    [("22:00-06:00", "23:00", 0), ("22:00-06:00", "05:59", 0), ("22:00-06:00", "06:00", 16 * 3600),
     ("22:00-06:00", "21:00", 3600), ("09:00-17:00", "08:00", 3600), ("09:00-17:00", "17:00", 16 * 3600)],
)  # fmt: skip
def test_the_hours_may_span_midnight(hours: str, now: str, seconds: float) -> None:
    assert Window.parse(hours).opens_in(datetime.fromisoformat(f"2026-11-23T{now}:00")) == seconds


def test_a_query_is_halved_by_date_until_it_is_one_day() -> None:
    (query,) = Selection(first_date="20240101", last_date="20240103").queries()
    spans = [str(half.StudyDate) for half in halves(query)]
    assert spans == ["20240101-20240102", "20240103-20240103"]
    day = Dataset()
    day.StudyDate = "20240103-20240103"
    assert halves(day) == []


@pytest.mark.parametrize(
    "options",
    [[], ["--from", "31.1.2024"], ["--from", "2024-02-01", "--to", "2024-01-01"], ["--modality", "CT", "--via", "telepathy"],
     ["--modality", "CT", "--hours", "night"], ["--patients", "none.txt"]],
)  # fmt: skip
def test_a_selection_that_makes_no_sense_is_told(node: RunningNode, options: list[str], capsys) -> None:  # type: ignore[no-untyped-def]
    assert (
        fedpacs(["node", "pull", "X@127.0.0.1:1", *options, "--config", str(node.config.path)]) == InputError.exit_code
    )
    assert capsys.readouterr().err.count("\n") == 1
