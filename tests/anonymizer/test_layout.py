"""An object that is decided by what came before it comes out as it would alone, whatever differs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from anonymizer import Deidentifier, load_profile
from anonymizer.model import Outcome
from anonymizer.walk import open_file
from tests.anonymizer.corpus.generate import base
from tests.anonymizer.corpus.people import PEOPLE
from tests.anonymizer.test_same_result import written

KEY = bytes(range(32))
NAME = PEOPLE[0].pieces[0]
PROFILES = ("federated-default", "basic", "tcia")
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def slice_of(person: int = 0, **values: Any) -> FileDataset:
    """One slice of a series, with a safe private block, a sequence, and something behind the picture."""
    ds = base(PEOPLE[person], 1)
    ds.BodyPartExamined, ds.Modality = "CHEST", "CT"
    item = base(PEOPLE[person], 1, pixels=False)
    ds.ReferencedStudySequence = Sequence([item[0x00080000:0x00100000]])  # type: ignore[index]
    block = ds.private_block(0x0019, "GEMS_ACQU_01", create=True)
    block.add_new(0x02, "SL", 912)
    block.add_new(0x0F, "DS", "12.5")
    ds.add_new(0xFFFCFFFC, "OB", bytes(8))
    ds.ImageComments, ds.InstanceNumber, ds.SliceLocation = "quiet breathing, contrast 80 ml", "007", "12.5"
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def told(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.status, outcome.reason, outcome.output, list(outcome.actions), outcome.facts, outcome.patient,
        outcome.sop_instance_uid, outcome.study_instance_uid, outcome.face,
    )  # fmt: skip


def warm(raw: bytes, profile: str) -> Deidentifier:
    """One that remembers how this object is laid out."""
    deid = Deidentifier(load_profile(profile), KEY)
    assert [deid.deidentify(raw).status for _ in range(2)] == ["ok", "ok"]
    assert open_file(raw, deid._layouts).twin is not None, "else nothing is tested here"
    return deid


RAW = {(profile, syntax): written(slice_of(), syntax) for profile in PROFILES for syntax in SYNTAXES}
WARM = {key: warm(raw, key[0]) for key, raw in RAW.items()}
header = len(RAW["basic", ExplicitVRLittleEndian]) - len(slice_of().PixelData)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(RAW)),
    st.lists(st.tuples(st.integers(0, header - 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
)
def test_any_bytes_that_differ_are_seen(key: tuple[str, Any], changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(RAW[key])
    for at, new in changes:
        at = at % len(raw)
        new = new[: len(raw) - at]
        raw[at : at + len(new)] = new
    alone = Deidentifier(load_profile(key[0]), KEY).deidentify(bytes(raw))
    assert told(WARM[key].deidentify(bytes(raw))) == told(alone)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(RAW)), st.data())
def test_a_value_that_differs_is_decided_like_any_other(key: tuple[str, Any], data: st.DataObject) -> None:
    original = slice_of()
    plain = [
        el for el in original if el.VR in ("LO", "SH", "PN", "CS", "UI", "DA", "TM", "IS", "LT", "ST") and el.value
    ]
    chosen = data.draw(st.lists(st.sampled_from(plain), min_size=1, max_size=3, unique_by=lambda el: el.tag))
    words = NAME.encode("latin-1", "replace") + b" 19700203 1.2.840.999.1 ACC123"
    raw = bytearray(RAW[key])
    for el in chosen:
        found = next(one for one in open_file(bytes(raw)).elements if one[0] == el.tag)
        size = found[4] - found[3]
        new = data.draw(st.sampled_from((words, words[::-1], b"0123456789", b"  ", b"CHEST")))
        raw[found[3] : found[4]] = (new * size)[:size]
    alone = Deidentifier(load_profile(key[0]), KEY).deidentify(bytes(raw))
    assert told(WARM[key].deidentify(bytes(raw))) == told(alone)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_series_of_two_patients_comes_out_as_one_by_one(profile: str) -> None:
    deid = Deidentifier(load_profile(profile), KEY)
    twins = 0
    for number in range(40):
        values = {
            "SOPInstanceUID": f"1.2.826.0.1.3680043.9.7777.{number}",
            "InstanceNumber": str(number),
            "SliceLocation": str(number * 1.5),
            "AcquisitionTime": f"10{number:02d}59.25",
            "ContentDate": f"202311{number % 9 + 1:02d}",
        }
        if number % 7 == 3:
            values["ImageComments"] = f"seen by {NAME}, ward"
        raw = written(slice_of(number % 2, **values), ExplicitVRLittleEndian)
        twins += open_file(raw, deid._layouts).twin is not None
        alone = Deidentifier(load_profile(profile), KEY).deidentify(raw)
        assert told(deid.deidentify(raw)) == told(alone), number
    assert twins > 20


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4095), st.integers(0, 5))
@example(4095, 0)
def test_another_picture_is_looked_at(value: int, columns: int) -> None:
    """Letters that the picture may hold are looked for in each; unused bits are cleared in each."""
    key = "federated-default", ExplicitVRLittleEndian
    raw = bytearray(RAW[key])
    start, stop = next(el[3:5] for el in open_file(bytes(raw)).elements if el[0] == 0x7FE00010)
    raw[start : start + 2 * columns * 8] = (value | 0xF000).to_bytes(2, "little") * (columns * 8)
    assert stop > start + 2 * columns * 8
    alone = Deidentifier(load_profile(key[0]), KEY).deidentify(bytes(raw))
    assert told(WARM[key].deidentify(bytes(raw))) == told(alone)


def put(raw: bytes, tag: int, value: bytes) -> bytes:
    """The object with another value of the same length."""
    found = next(el for el in open_file(raw).elements if el[0] == tag)
    assert len(value) <= found[4] - found[3]
    return raw[: found[3]] + value.ljust(found[4] - found[3]) + raw[found[4] :]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({0x00080090: b"Wrzeszczykow^Q", 0x00204000: b"shown to wrzeszczykow at noon"}, b"wrzeszczykow"),
        ({0x00100010: b"Wrzeszczykow^Q", 0x00204000: b"Wrzeszczykow moved a little"}, b"wrzeszczykow"),
        ({0x00100020: b"QX-90417", 0x00204000: b"scan of QX-90417, again"}, b"qx-90417"),
        ({0x00190010: b"NOBODYKNOWS1"}, b"nobodyknows1"),
        ({0x00080005: b"ISO_IR 144", 0x00204000: b"\xbf\xd5\xe2\xe0\xde\xd2 breathing"}, b""),
        ({0x00080016: b"1.2.840.10008.5.1.4.1.1.4"}, b""),
    ],
)  # fmt: skip
def test_what_decisions_rest_on_is_asked_anew(syntax: Any, changes: dict[int, bytes], gone: bytes) -> None:
    ds = slice_of(
        PatientName="Somebodywithaname^Q", PatientID="AB-12345", ReferringPhysicianName="Somebodyelse^Quentin"
    )
    ds.SpecificCharacterSet = "ISO_IR 100"
    raw = written(ds, syntax)
    deid = warm(raw, "federated-default")
    for tag, value in changes.items():
        raw = put(raw, tag, value)
    found = deid.deidentify(raw)
    assert told(found) == told(Deidentifier(load_profile("federated-default"), KEY).deidentify(raw))
    assert found.output is not None and (not gone or gone not in found.output.lower())
