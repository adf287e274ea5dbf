"""The zoo of odd DICOM files, sent by two toolkits: everything a sender delivers is kept as it was sent.

pynetdicom sends a file's data set as its bytes stand, so these must be kept; dcmtk writes every data set anew: its elements must.
(tests/interop/test_dcmtk_receiver.py sends every file's bytes over a bare socket, whatever a toolkit would say of them.)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE, _config

from dicom_node.spool import part10
from tests.dicom_node.receiver.conftest import Receiver

ZOO = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "dicom-zoo" / "files"
Make = Callable[..., Receiver]
pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason="the zoo of odd DICOM files is not here")

# dcmtk 3.6.7's option to propose each transfer syntax it can send
_STORESCU = {
    "1.2.840.10008.1.2": "-xi", "1.2.840.10008.1.2.1": "-xe", "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd", "1.2.840.10008.1.2.4.50": "-xy", "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs", "1.2.840.10008.1.2.4.80": "-xt", "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv", "1.2.840.10008.1.2.4.91": "-xw", "1.2.840.10008.1.2.5": "-xr",
}  # fmt: skip
# their meta information names another object than their data set does, or nothing names one
_WITHOUT_IDENTITY = [
    "highdicom__sm_image_grayscale_reversed.dcm", "nibabel__csa_slice_norm.dcm", "pydicom__DICOMDIR-bigEnd",
    "pydicom__UN_sequence.dcm", "pydicom__chrJapMulti.dcm", "pydicom__chrJapMultiExplicitIR6.dcm", "pydicom__priv_SQ.dcm",
]  # fmt: skip


@dataclass(frozen=True)
class Animal:
    """A file of the zoo that a toolkit can name to a peer."""

    path: Path
    sop_class: str
    sop_uid: str
    transfer_syntax: str
    data: bytes


def animals() -> Iterator[Animal]:
    for path in sorted(ZOO.iterdir()):
        raw = path.read_bytes()
        try:
            meta = part10.parse(raw)
        except part10.Part10Error:
            continue  # no file meta information: nothing says how it is encoded
        if meta.sop_class and meta.sop_uid:
            yield Animal(path, meta.sop_class, meta.sop_uid, meta.transfer_syntax, raw[meta.data_offset :])


def kept(one: Receiver) -> dict[str, list[tuple[str, bytes]]]:
    """SOP Instance UID → (transfer syntax, data set) of everything in the spool, quarantine included."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    with one.spool() as spool:
        for (number,) in spool.db.execute("SELECT id FROM instances"):
            row = spool.instance(number)
            found.setdefault(row.sop_uid, []).append((row.transfer_syntax, spool.read(row)[row.data_offset :]))
    return found


def test_what_pynetdicom_sends_is_kept_byte_for_byte(receiver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    one = receiver(private_sop_classes=["*"])
    delivered: list[Animal] = []
    refused: list[str] = []
    for animal in animals():
        ae = AE("PYNETDICOM")
        ae.add_requested_context(animal.sop_class, animal.transfer_syntax)
        association = ae.associate("127.0.0.1", one.port, ae_title="TEST")
        if not association.accepted_contexts:
            refused.append(animal.path.name)
            continue
        status = association.send_c_store(animal.path)
        association.release()
        if status.Status in (0, 0xB007):
            delivered.append(animal)
        else:
            refused.append(animal.path.name)
    found = kept(one)
    for animal in delivered:
        assert (animal.transfer_syntax, animal.data) in found[animal.sop_uid], animal.path.name
    assert refused == _WITHOUT_IDENTITY
    assert len(delivered) > 80


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk is not installed: apt-get install dcmtk")
def test_what_storescu_sends_is_kept_element_for_element(receiver: Make) -> None:
    one = receiver(private_sop_classes=["*"])
    every = list(animals())
    delivered: list[Animal] = []
    for transfer_syntax, option in _STORESCU.items():
        paths = {str(animal.path): animal for animal in every if animal.transfer_syntax == transfer_syntax}
        argv = ["storescu", "-v", "-nh", "-R", option, "127.0.0.1", str(one.port), *paths]
        said = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=120, check=False).stderr
        sent = re.findall(
            r"Sending file: (.*)\n(?:(?!.*Sending file).*\n)*?.*Store Response \((?:Success|Warning)", said
        )
        delivered += [paths[path] for path in sent]  # it cannot read, or has no name for, a dozen others
    found = kept(one)
    for animal in delivered:
        want = elements(animal.transfer_syntax, animal.data)
        uid = str(want[0x00080018])
        assert want in [elements(syntax, data) for syntax, data in found.get(uid, ())], animal.path.name
    assert {animal.transfer_syntax for animal in delivered} == set(_STORESCU)
    assert len(delivered) > 70


def elements(transfer_syntax: str, data: bytes) -> dict[int, object]:
    """Tag → value, with what dcmtk changes on its way made equal: group lengths, and the padding of odd values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = pydicom.dcmread(BytesIO(part10.prefix("1.2", "1.2", transfer_syntax) + data))
        parsed.walk(lambda holder, element: holder.pop(element.tag) if element.tag.element == 0 else None)
        values = {int(element.tag): element.value for element in parsed}
    return {
        tag: value + b"\0" * (len(value) % 2) if isinstance(value, bytes) else value for tag, value in values.items()
    }
