"""The node as a user of other peers' services: its own receiver, dcmtk's storescp, and nobody at all."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from dicom_node.errors import InputError, RefusedError, UnreachableError
from dicom_node.scu import Peer, echo, send_files
from dicom_node.spool import part10
from tests.dicom_node.receiver.conftest import Receiver, free_port, receiver  # noqa: F401 - the fixture
from tests.dicom_node.receiver.wire import CT, EXPLICIT, dataset

Make = Callable[..., Receiver]


def file_of(uid: str) -> bytes:
    return part10.prefix(CT, uid, EXPLICIT, "RESULTS") + dataset(uid, pixels=uid.encode() * 100)


def test_echo_names_what_is_wrong_when_something_is(receiver: Make) -> None:  # noqa: F811
    one = receiver(allowed_ae_titles=["KNOWN"])
    assert echo(Peer("TEST", "127.0.0.1", one.port), "KNOWN").echo_s < 5
    with pytest.raises(RefusedError, match="does not know the calling AE title OTHER"):
        echo(Peer("TEST", "127.0.0.1", one.port), "OTHER")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        echo(Peer("TEST", "127.0.0.1", free_port()), "KNOWN")


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "@host:104", "PACS@host:99999", "A" * 17 + "@h:1", "PACS@h:x"])
def test_a_peer_that_is_not_one_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(InputError, match="AETITLE@host:port"):
        Peer.parse(text)


def test_files_arrive_byte_for_byte_and_what_cannot_be_sent_is_named(receiver: Make, tmp_path: Path) -> None:  # noqa: F811
    one = receiver()
    good = [tmp_path / f"{n}.dcm" for n in range(5)]
    for n, path in enumerate(good):
        path.write_bytes(file_of(f"2.25.30{n}"))
    text = tmp_path / "notes.txt"
    text.write_text("not DICOM")
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(part10.prefix("1.2.3.4", "2.25.310", EXPLICIT) + dataset("2.25.310", sop_class="1.2.3.4"))
    report = send_files(Peer("TEST", "127.0.0.1", one.port), [*good, text, odd, tmp_path / "absent"])
    assert report.sent == good
    assert set(report.failed) == {text, odd, tmp_path / "absent"}
    assert "no DICM mark" in report.failed[text]
    assert "does not take SOP class 1.2.3.4" in report.failed[odd]
    with one.spool() as spool:
        for n in range(5):
            (kept,) = spool.find(f"2.25.30{n}")
            assert spool.read(kept)[kept.data_offset :] == dataset(f"2.25.30{n}", pixels=f"2.25.30{n}".encode() * 100)


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("storescp") is None, reason="dcmtk is not installed: apt-get install dcmtk")
def test_dcmtks_storescp_takes_what_we_send(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "in"
    folder.mkdir()
    scp = subprocess.Popen(["storescp", "-od", str(folder), "-aet", "PACS", str(port)])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                echo(Peer("PACS", "127.0.0.1", port), timeout=3)
                break
            except UnreachableError:
                assert time.monotonic() < deadline
        path = tmp_path / "one.dcm"
        path.write_bytes(file_of("2.25.500"))
        assert send_files(Peer("PACS", "127.0.0.1", port), [path]).failed == {}
        (arrived,) = folder.iterdir()
        assert pydicom.dcmread(arrived).PixelData == pydicom.dcmread(BytesIO(file_of("2.25.500"))).PixelData
    finally:
        scp.terminate()
        scp.wait(10)
