"""dcmtk's storescu and echoscu against the receiver: real files of the zoo, and senders that leave Nagle on."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from dicom_node.spool import part10
from tests.dicom_node.receiver.conftest import Receiver, receiver  # noqa: F401 - the fixture
from tests.dicom_node.receiver.wire import Raw, accepted, context, dataset

ZOO = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom-zoo" / "files"
Make = Callable[..., Receiver]
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk is not installed: apt-get install dcmtk"),
]


def run(*argv: str, seconds: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, env=os.environ | env, check=False)


def test_echoscu_is_answered_and_a_stranger_is_told_why_not(receiver: Make) -> None:  # noqa: F811
    one = receiver(allowed_ae_titles=["PACS"])
    assert run("echoscu", "-aet", "PACS", "127.0.0.1", str(one.port)).returncode == 0
    answer = run("echoscu", "-aet", "OTHER", "127.0.0.1", str(one.port))
    assert answer.returncode != 0
    assert "Calling AE Title Not Recognized" in answer.stderr


def test_storescu_delivers_a_file_byte_for_byte_without_a_stall_for_each(receiver: Make, tmp_path: Path) -> None:  # noqa: F811
    one = receiver()
    folder = tmp_path / "in"
    folder.mkdir()
    sent = {}
    for n in range(60):
        uid = f"2.25.5{n}"
        sent[uid] = dataset(uid, pixels=bytes([n]) * 10_000)
        (folder / f"{n}.dcm").write_bytes(
            part10.prefix("1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2.1") + sent[uid]
        )
    start = time.monotonic()
    done = run("storescu", "127.0.0.1", str(one.port), "+sd", str(folder))  # TCP_NODELAY is not set: Nagle stays on
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    with one.spool() as spool:
        for uid, data in sent.items():
            (kept,) = spool.find(uid)
            assert pydicom.dcmread(BytesIO(spool.read(kept))).PixelData == data[-10_000:]
    assert seconds < 60 * 0.04, "each instance waited for a delayed acknowledgement"


@pytest.mark.skipif(not ZOO.is_dir(), reason="the zoo of odd DICOM files is not here")
def test_every_file_of_the_zoo_arrives_intact_or_is_refused_because_it_has_no_identity(receiver: Make) -> None:  # noqa: F811
    one = receiver(private_sop_classes=["*"])
    refused = []
    for path in sorted(ZOO.iterdir()):
        raw_file = path.read_bytes()
        try:
            meta = part10.parse(raw_file)
        except part10.Part10Error:
            continue  # no file meta information: nothing says how it is encoded
        data = raw_file[meta.data_offset :]
        uid, sop_class = identity(raw_file)
        with Raw(one.port) as raw:
            kind, body = raw.associate(context(1, sop_class or meta.sop_class, meta.transfer_syntax))
            assert kind == 2
            if accepted(body) != {1: 0}:
                refused.append(path.name)
                continue
            status = raw.store(uid or meta.sop_uid, data, sop_class=sop_class or meta.sop_class)
        if status not in (0, 0xB007):
            refused.append(path.name)
            continue
        with one.spool() as spool:
            assert data in [spool.read(i)[i.data_offset :] for i in spool.find(uid)], path.name
    assert refused == ["pydicom__DICOMDIR-bigEnd", "pydicom__UN_sequence.dcm", "pydicom__priv_SQ.dcm"]


def identity(raw_file: bytes) -> tuple[str, str]:
    """SOP Instance and Class UID as the data set has them, by another reader than ours."""
    try:
        parsed = pydicom.dcmread(
            BytesIO(raw_file), specific_tags=["SOPInstanceUID", "SOPClassUID"], stop_before_pixels=True
        )
    except Exception:  # noqa: BLE001 - whatever pydicom thinks of a crafted file, it is sent
        return "", ""
    return str(parsed.get("SOPInstanceUID", "")), str(parsed.get("SOPClassUID", ""))
