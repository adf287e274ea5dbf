"""The wall, with a whole node: a planted patient's name, numbers and dates stand in nothing right of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from dicom_node.audit import AuditLog
from dicom_node.scu.answers import keep_answers
from tests.interop.node_process import ROOT, RunningNode, wait_for
from tests.interop.studies import Planted, ct_instance

WHO = Planted()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    one = RunningNode(tmp_path / "node")
    one.start()
    yield one
    one.kill()


def c_store(node: RunningNode, *files: bytes, calling: str = "MODALITY") -> list[int]:
    ae = AE(ae_title=calling)
    ae.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    association = keep_answers(ae.associate("127.0.0.1", node.config.dicom.port, ae_title=node.config.dicom.ae_title))
    assert association.is_established
    try:
        return [association.send_c_store(pydicom.dcmread(io.BytesIO(data), force=True)).Status for data in files]
    finally:
        association.release()


def fedpacs(node: RunningNode, *args: str) -> str:
    """What a command says, on stdout and stderr."""
    command = [
        sys.executable,
        "-c",
        "from dicom_node.cli import main; main()",
        *args,
        "--config",
        str(node.config.path),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


def found_in(data: bytes, where: str) -> list[str]:
    wide = data.replace(b"\x00", b"")  # also when someone wrote it as UTF-16
    return [f"{where}: {token}" for token in WHO.tokens() if token.encode() in data or token.encode() in wide]


def test_nothing_identified_stands_right_of_the_wall(node: RunningNode, tmp_path: Path) -> None:
    garbage = ct_instance(WHO, 9)
    assert c_store(node, *(ct_instance(WHO, n) for n in (1, 2, 3)), garbage[:-40] + os.urandom(40)) == [0, 0, 0, 0]
    csv = tmp_path / "labels.csv"
    csv.write_text(f"accession_number,finding\n{WHO.accession},normal\nACC-unknown,viral\n")
    said = [fedpacs(node, "node", "labels", "import", str(csv))]
    wait_for(lambda: len(node.catalogue().studies("eligible")) == 1, 30, node.crashes)
    wait_for(lambda: node.catalogue().counts()["labelled"] == 1, 10)
    with node.client() as client:
        said += [client.get(p).text for p in ("/", "/status", "/studies", "/projects", "/metrics")]
        said.append(client.post("/optout", json={"patient_id": WHO.patient_id, "reason": "asked"}).text)
    said += [fedpacs(node, "node", "status"), fedpacs(node, "node", "status", "--json"), fedpacs(node, "audit", "show")]
    time.sleep(0.5)
    assert node.stop() == 0

    storage = node.config.storage
    left = {storage.spool, storage.quarantine, storage.vault}
    found, files = [], 0
    for path in node.config.root.rglob("*"):
        if path.is_file() and not left & set(path.parents):
            files += 1
            found += found_in(path.read_bytes(), str(path.relative_to(node.config.root)))
            found += found_in(str(path.relative_to(node.config.root)).encode(), "a file's name")
    for number, text in enumerate(said):
        found += found_in(text.encode(), f"output {number}")
    assert found == []
    assert files > 8, "the node's folder was looked at"
    # the same search does find what is left of the wall: it can fail
    segments = b"".join(p.read_bytes() for p in storage.spool.rglob("*.seg"))
    assert {line.partition(": ")[2] for line in found_in(segments, "")} >= {
        WHO.patient_id,
        WHO.accession,
        "Quackenbush",
    }
    for folder in left:
        assert folder.stat().st_mode & 0o077 == 0, f"{folder.name} is for its owner alone"
    assert AuditLog(storage.audit).verify().ok


def test_what_was_written_is_valid_and_pseudonymous(node: RunningNode) -> None:
    assert c_store(node, *(ct_instance(WHO, n) for n in (1, 2))) == [0, 0]
    wait_for(lambda: len(node.catalogue().studies("eligible")) == 1, 30, node.crashes)
    catalogue = node.catalogue()
    study = catalogue.studies()[0]
    for record in catalogue.instances(study.study_uid):
        ds = pydicom.dcmread(node.config.storage.dataset / record.path)
        assert str(ds.SOPInstanceUID) == record.sop_uid and str(ds.StudyInstanceUID) == study.study_uid
        assert (record.rows, record.columns, ds.Rows) == (16, 16, 16)
        assert ds.PatientIdentityRemoved == "YES"
        number = int(ds.InstanceNumber)
        original = pydicom.dcmread(io.BytesIO(ct_instance(WHO, number)))
        assert ds.PixelData == original.PixelData
        if record.pixel_offset is not None:
            raw = (node.config.storage.dataset / record.path).read_bytes()
            assert raw[record.pixel_offset : record.pixel_offset + (record.pixel_length or 0)] == original.PixelData
