"""Peers of other makers do what this node's own tests play: dcmtk speaks TLS both ways, Orthanc asks for storage commitment,
and dcmqrscp is the PACS that results go to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from dicom_node.config import load_config
from dicom_node.errors import UnreachableError
from dicom_node.queue import WorkQueue
from dicom_node.receiver.service import REPORT_QUEUE, REPORTS
from dicom_node.results import Results
from dicom_node.results.pacs import open_pacs
from dicom_node.scu import Peer, echo, send_files
from dicom_node.setup import write_default_config
from dicom_node.spool import part10
from tests.dicom_node.receiver.conftest import ROOT, Receiver, receiver  # noqa: F401 - the fixture
from tests.dicom_node.receiver.test_tls import tls, write  # noqa: F401 - one is a fixture
from tests.dicom_node.receiver.wire import CT, EXPLICIT, dataset
from tests.dicom_node.test_results import WHO, deidentify, report, segmentation
from tests.interop.orthanc_process import MISSING, Orthanc, free_port
from tests.interop.studies import ct_instance
from tests.interop.test_dcmtk_receiver import run
from tests.interop.test_retrieve import Qrscp, needs_dcmqrscp, until

Make = Callable[..., Receiver]
pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent the intended person name"),
]
needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="apt-get install dcmtk")


def part10_file(folder: Path, uid: str) -> tuple[Path, bytes]:
    data = dataset(uid, pixels=bytes(range(256)) * 400)
    path = folder / f"{uid}.dcm"
    path.write_bytes(part10.prefix(CT, uid, EXPLICIT) + data)
    return path, data


@needs_dcmtk
def test_dcmtk_sends_over_mutual_tls_by_each_profile_in_force(receiver: Make, tls: Path) -> None:  # noqa: F811
    authority = serialization.load_pem_private_key((tls / "ca.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]), authority)
    write(tls, "node", rsa.generate_private_key(65537, 2048), issuer)  # what the retired profile could be spoken with
    one = receiver(tls_certificate=tls / "node.pem", tls_key=tls / "node.key", tls_ca=tls / "ca.pem")

    def storescu(uid: str, member: str, *profile: str) -> int:
        path, _ = part10_file(tls, uid)
        keys = ["+tls", str(tls / f"{member}.key"), str(tls / f"{member}.pem"), "+cf", str(tls / "ca.pem")]
        return run("storescu", *keys, *profile, "127.0.0.1", str(one.port), str(path)).returncode

    assert storescu("2.25.1", "modality", "+py") == 0, "non-downgrading BCP 195"
    assert storescu("2.25.2", "modality", "+px") == 0, "BCP 195"
    assert storescu("2.25.3", "modality", "+pz") == 0, "extended BCP 195"
    assert storescu("2.25.4", "modality", "+pa") != 0, "the retired AES profile has no forward secrecy"
    assert storescu("2.25.5", "stranger", "+py") != 0, "a certificate of nobody we know"
    assert run("storescu", "127.0.0.1", str(one.port), str(tls / "2.25.1.dcm")).returncode != 0, "no TLS at all"
    with one.spool() as spool:
        kept = [bool(spool.find(f"2.25.{n}")) for n in range(1, 6)]
    assert kept == [True, True, True, False, False]


@needs_dcmtk
def test_dcmtk_takes_what_we_send_over_mutual_tls(tls: Path) -> None:  # noqa: F811
    port, folder = free_port(), tls / "in"
    folder.mkdir()
    keys = ["+tls", str(tls / "node.key"), str(tls / "node.pem"), "+cf", str(tls / "ca.pem")]
    server = subprocess.Popen(["storescp", *keys, "-aet", "PACS", "-od", str(folder), str(port)])
    known = Peer("PACS", "127.0.0.1", port, tls / "ca.pem", tls / "modality.pem", tls / "modality.key")
    stranger = Peer("PACS", "127.0.0.1", port, tls / "ca.pem", tls / "stranger.pem", tls / "stranger.key")

    def answers() -> bool:
        try:
            return echo(known, timeout=5).echo_s < 5
        except UnreachableError:
            assert server.poll() is None
            return False

    try:
        until(answers, 30)
        path, data = part10_file(tls, "2.25.9")
        assert send_files(known, [path]).failed == {}
        (arrived,) = folder.iterdir()
        assert pydicom.dcmread(arrived).PixelData == data[-256 * 400 :]
        with pytest.raises(UnreachableError):
            echo(stranger, timeout=5)
        elsewhere = Peer("PACS", "127.0.0.1", port, tls / "ca2.pem", tls / "modality.pem", tls / "modality.key")
        with pytest.raises(UnreachableError):
            echo(elsewhere, timeout=5)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[tuple[Receiver, Orthanc]]:
    """A receiver and an Orthanc that know each other."""
    if MISSING:
        pytest.skip(MISSING)
    (tmp_path / "node").mkdir()
    one = Receiver(tmp_path / "node")
    modality = {"AET": "TEST", "Host": "127.0.0.1", "Port": one.port, "AllowStorageCommitment": True}
    pacs = Orthanc(
        tmp_path / "pacs", {"DicomModalities": {"node": modality}, "DicomAlwaysAllowEcho": True}, script=None
    )
    one = Receiver(tmp_path / "node", port=one.port, peers=[f"ORTHANC@127.0.0.1:{pacs.dicom_port}"])
    one.start()
    pacs.start()
    yield one, pacs
    pacs.stop()
    one.kill()


def test_orthanc_is_told_what_is_committed_and_what_is_not(asking: tuple[Receiver, Orthanc]) -> None:
    one, pacs = asking
    argv = [sys.executable, "-m", "dicom_node.reporter", "--config", str(one.config)]
    queue = WorkQueue(one.spool_root / REPORTS, REPORT_QUEUE)
    reporter = subprocess.Popen(argv, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        with pacs.client() as client:

            def verdict(asked: object) -> dict[str, object]:
                told: dict[str, object] = {}

                def there() -> bool:
                    queue._db.execute("UPDATE jobs SET due = 0")  # not to wait for the grace period
                    told.update(client.get(f"/storage-commitment/{asked}").json())
                    return told["Status"] != "Pending"

                until(there, 60)
                return told

            sent = [client.post("/instances", content=ct_instance(WHO, n)).json() for n in (1, 2)]
            ask = {"Resources": [sent[0]["ID"]], "StorageCommitment": True, "Synchronous": True}
            stored = client.post("/modalities/node/store", json=ask).raise_for_status().json()
            good = verdict(stored["StorageCommitmentTransactionUID"])
            assert good["Status"] == "Success" and len(good["Success"]) == 1  # type: ignore[arg-type]
            both = {"Resources": [one["ID"] for one in sent]}
            asked = client.post("/modalities/node/storage-commitment", json=both).raise_for_status().json()
            bad = verdict(asked["ID"])
            assert bad["Status"] == "Failure" and len(bad["Success"]) == len(bad["Failures"]) == 1  # type: ignore[arg-type]
            assert "'FailureReason': 274" in str(bad["Failures"]), "0x0112, no such object instance"
    finally:
        reporter.terminate()
        assert reporter.wait(30) == 0


@needs_dcmqrscp
def test_results_go_once_to_a_pacs_that_is_no_orthanc(tmp_path: Path) -> None:
    file = write_default_config(tmp_path / "node")
    config = load_config(file)
    pacs = Qrscp(tmp_path / "qr", config)
    text = file.read_text().replace('pacs = ""', f'pacs = "{pacs.peer}"', 1)
    file.write_text(text)
    config = load_config(file)
    deidentify(config)
    pacs.start()
    try:
        with closing(Results(config)) as results:
            for result in (segmentation(config), report(config)):
                results.take(result, "tester")
            remote = open_pacs(config)
            assert remote is not None
            assert results.deliver(remote, "pacs") == 0, "the PACS does not have the study yet"
            files = [tmp_path / f"{n}.dcm" for n in (1, 2, 3)]
            for n, path in enumerate(files, 1):
                path.write_bytes(ct_instance(WHO, n))
            assert send_files(pacs.peer, files).failed == {}
            assert results.deliver(remote, "pacs") == 2
            assert {one.state for one in results.all()} == {"stored"}
            assert results.deliver(remote, "pacs") == 0
        kept = [pydicom.dcmread(path) for path in (pacs.folder / "db").glob("*.dcm")]
        assert sorted(one.Modality for one in kept) == ["CT", "CT", "CT", "SEG", "SR"]
        assert {one.StudyInstanceUID for one in kept} == {WHO.study_uid}
        assert {one.PatientID for one in kept} == {WHO.patient_id}
    finally:
        pacs.kill()
