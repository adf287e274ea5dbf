"""The spool's laws: what goes in comes out, studies open and close, purged bytes are gone, damage stays where it is."""

from __future__ import annotations

import importlib
import os
import time
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.errors import InputError, StorageError
from dicom_node.spool import Incoming, Ingest, Outcome, Spool, part10, reindex, scan
from dicom_node.spool.digest import Digest
from dicom_node.spool.segment import BLOCK, HEADER_SIZE, read_records
from dicom_node.spool.slab import SlabPool
from tests.dicom_node.receiver.wire import CT, EXPLICIT, dataset

recover_module = importlib.import_module("dicom_node.spool.recover")  # the package names a function so
IMPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def file_of(uid: str, **options: object) -> bytes:
    return part10.prefix(CT, uid, EXPLICIT, "X") + dataset(uid, **options)  # type: ignore[arg-type]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.binary(max_size=60),
    st.sampled_from([EXPLICIT, IMPLICIT, BIG]),
    st.booleans(),
)
def test_the_header_scan_agrees_with_pydicom_whatever_the_encoding(
    shape: list[int], value: bytes, syntax: str, undefined: bool
) -> None:
    inner = Dataset()
    inner.StudyInstanceUID, inner.PatientID = "9.9.9", "not this one"  # a decoy: only the top level counts
    for depth in shape:
        outer = Dataset()
        outer.RequestAttributesSequence = [inner] * (depth or 1)
        outer["RequestAttributesSequence"].is_undefined_length = undefined
        inner = outer
    top = Dataset()
    top.SOPClassUID, top.SOPInstanceUID, top.StudyInstanceUID, top.SeriesInstanceUID = CT, "1.2.3", "1.2.4", "1.2.5"
    top.PatientID, top.AccessionNumber = "PID", "ACC"
    top.ReferencedStudySequence = [inner]
    top["ReferencedStudySequence"].is_undefined_length = undefined
    top.add_new(0x00091001, "OB", value + b"\0" * (len(value) % 2))
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = syntax != BIG, syntax == IMPLICIT
    write_dataset(out, top)
    raw = out.getvalue()
    header = scan(raw, syntax)
    assert (header.sop_uid, header.study_uid, header.series_uid) == ("1.2.3", "1.2.4", "1.2.5")
    assert (header.patient_id, header.accession, header.fault) == ("PID", "ACC", "")
    for cut in {1, len(raw) // 2, len(raw) - 1}:
        torn = scan(raw[:cut], syntax)
        assert torn.fault or torn == header, "a torn data set is told, or it ends between two elements"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([EXPLICIT, IMPLICIT, BIG, "1.2.840.10008.1.2.1.99"]))
def test_the_header_scan_survives_any_bytes(raw: bytes, syntax: str) -> None:
    try:
        scan(raw, syntax)
    except ValueError as error:
        assert str(error)


def test_a_file_goes_in_and_comes_out_and_the_second_time_it_is_the_same_row(spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(file_of("1.2.1"))
    row = spool.add_file(path, source="orthanc")
    assert spool.add_file(path.read_bytes(), source="elsewhere") == row
    assert pydicom.dcmread(BytesIO(spool.read(row))).PatientID == "PID-1"
    with spool.open(row) as view:
        assert bytes(view) == spool.read(row)
    with pytest.raises(InputError, match="cannot be kept"):
        spool.add_file(b"no DICOM", source="orthanc")
    assert spool.stats().instances == {"received": 1}


def test_a_study_is_complete_after_a_quiet_while_and_a_late_instance_reopens_it_once(spool: Spool) -> None:
    key = spool.add_file(file_of("1.2.1"), source="x").study_key
    now = time.time()
    assert spool.complete_studies(now, quiet_seconds=30) == []
    assert spool.complete_studies(now + 31, quiet_seconds=30) == [key]
    assert spool.complete_studies(now + 31, quiet_seconds=30) == [], "told once"
    study = spool.study(key)
    spool.add_file(file_of("1.2.2"), source="x")  # arrives while the worker is at it
    assert not spool.finish_study(key, study.generation, "deidentified"), (
        "the worker must not close what it has not seen"
    )
    assert spool.study(key).state == "receiving"
    assert spool.complete_studies(now + 99, quiet_seconds=30) == [key]
    assert spool.finish_study(key, spool.study(key).generation, "deidentified")
    spool.add_file(file_of("1.2.2"), source="x")
    assert spool.study(key).state == "deidentified", "the same bytes again are no news"
    spool.add_file(file_of("1.2.3"), source="x")
    assert (spool.study(key).state, spool.study(key).instances) == ("receiving", 3)


def test_a_study_that_says_how_large_it_is_need_not_be_waited_for(spool: Spool) -> None:
    key = spool.add_file(file_of("1.2.1"), source="x").study_key
    spool.expect(key, 2)
    assert spool.complete_studies(time.time(), 3600) == []
    spool.add_file(file_of("1.2.2"), source="x")
    assert spool.complete_studies(time.time(), 3600) == [key]


def test_one_study_uid_under_two_patients_is_two_studies(spool: Spool) -> None:
    one = spool.add_file(file_of("1.2.1", patient="A"), source="x")
    other = spool.add_file(file_of("1.2.2", patient="B"), source="x")
    assert one.study_key != other.study_key


def test_purged_bytes_are_gone_from_the_disk_and_can_come_again(spool: Spool, tmp_path: Path) -> None:
    secret = b"PURGE-ME-" + os.urandom(20_000)
    row = spool.add_file(file_of("1.2.1", pixels=secret + b"\0"), source="x")
    other = spool.add_file(file_of("1.2.2", study="2.25.5"), source="x")
    assert spool.purge(row.study_key, generation=99) == 0, "something came meanwhile"
    assert spool.purge(row.study_key) == 1
    held = b"".join(p.read_bytes() for p in (tmp_path / "spool" / "segments").iterdir())
    assert secret[:9] not in held
    assert b"PID-1" in held, "the other study's bytes are untouched"
    with pytest.raises(StorageError, match="purged"):
        spool.read(spool.instance(row.id))
    assert spool.study(row.study_key).patient_id == ""
    assert spool.read(other)
    again = spool.add_file(file_of("1.2.1", pixels=secret + b"\0"), source="x")
    assert again.id != row.id
    assert spool.read(again)


def test_a_damaged_record_is_told_and_costs_only_itself(spool: Spool, tmp_path: Path) -> None:
    rows = [spool.add_file(file_of(f"1.2.{n}", pixels=bytes([n]) * 9000), source="x") for n in range(1, 6)]
    spool.close()
    path = tmp_path / "spool" / "segments" / rows[0].segment
    with open(path, "r+b") as file:
        file.seek(rows[1].offset + 5000)
        file.write(b"flipped")
        file.seek(rows[3].offset - 128)
        file.write(bytes(128))  # even the header of one
    assert rows[3].offset // BLOCK != rows[4].offset // BLOCK
    with Spool(tmp_path / "spool") as again:
        with pytest.raises(StorageError, match="damaged"):
            again.read(rows[1])
    report = reindex(tmp_path / "spool")
    assert (report.adopted, report.erased) == (3, 1)
    with Spool(tmp_path / "spool") as again:
        assert [bool(again.find(f"1.2.{n}")) for n in range(1, 6)] == [True, False, True, False, True]


def test_labels_wait_for_their_study(spool: Spool) -> None:
    assert spool.put_labels([("A-1", "finding", "normal"), ("A-1", "partition", "test")], "l.csv") == 2
    spool.put_labels([("A-1", "finding", "pneumonia")], "l2.csv")
    assert spool.labels("A-1") == {"finding": "pneumonia", "partition": "test"}
    key = spool.add_file(file_of("1.2.1"), source="x").study_key
    assert [s.study_key for s in spool.studies_of("A-1")] == [key]


def test_labels_outlive_a_reindex_that_was_killed(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.add_file(file_of("1.2.1"), source="x")
    spool.put_labels([("A-1", "finding", "normal")], "l.csv")
    spool.close()

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    for moment in ("connect", "_adopt"):  # before the new index was opened, and while it was filled
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(recover_module, moment, killed)
            reindex(tmp_path / "spool")
    assert reindex(tmp_path / "spool").adopted == 1
    with Spool(tmp_path / "spool") as again:
        assert again.labels("A-1") == {"finding": "normal"} and again.find("1.2.1")


def test_folders_are_the_owners_alone(spool: Spool, tmp_path: Path) -> None:
    spool.add_file(file_of("1.2.1"), source="x")
    for path in (tmp_path / "spool").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_memory_that_is_used_again_leaves_nothing_of_the_object_before_in_the_segment(tmp_path: Path) -> None:
    pool = SlabPool(1 << 20)
    ingest = Ingest(tmp_path)
    sizes = (300_000, 90_001)
    for number, size in enumerate(sizes):
        uid = f"2.25.7.{number}"
        data = dataset(uid, pixels=bytes([0xA0 + number]) * size)
        item = Incoming(scan(data, EXPLICIT), EXPLICIT, "MODALITY", Digest([data]), len(data), (data,))
        item.data_at = HEADER_SIZE + len(part10.prefix(CT, uid, EXPLICIT, "MODALITY"))
        item.slab = slab = pool.take()
        slab.view[item.data_at : item.data_at + len(data)] = data
        assert ingest.commit([item]) == [Outcome.STORED]
        pool.give(slab, item.data_at + len(data))
        assert pool.take() is slab
        pool.give(slab, 0)
    ingest.close()
    with Spool(tmp_path) as spool:
        first, second = (spool.find(f"2.25.7.{number}")[0] for number in range(2))
        assert [len(spool.read(i)) - i.data_offset > size for i, size in zip((first, second), sizes, strict=True)] == [
            True
        ] * 2
        whole = (tmp_path / "segments" / first.segment).read_bytes()
    assert second.offset % BLOCK == HEADER_SIZE, "each starts at a block of its own"
    assert not any(whole[second.offset + second.length :])
    assert len(list(read_records(tmp_path / "segments" / first.segment))) == 2


def test_an_index_whose_damage_is_no_text_is_told_of_and_rebuilt(tmp_path: Path) -> None:
    """SQLite quotes the damaged bytes in its message, which Python cannot always read."""
    with Spool(tmp_path) as spool:
        spool.add_file(file_of("2.25.1"), source="X")
    index = tmp_path / "spool.db"
    index.write_bytes(index.read_bytes().replace(b"CREATE TABLE instances", b"CREATE T\xb8BLE instances"))
    with pytest.raises(StorageError, match=r"damaged.*fedpacs node reindex"):
        Spool(tmp_path)
    assert reindex(tmp_path).adopted == 1
    with Spool(tmp_path) as spool:
        assert len(spool.find("2.25.1")) == 1
