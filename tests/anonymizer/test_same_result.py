"""The same content gives the same result in every encoding: the walker knows explicit, implicit, big-endian and deflated."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from anonymizer import Deidentifier, load_profile
from tests.anonymizer.corpus.generate import base
from tests.anonymizer.corpus.people import PEOPLE

pytestmark = pytest.mark.filterwarnings("ignore")
KEY = bytes(range(32))
ZOO = Path(__file__).parents[2].parent / "shared" / "data" / "dicom-zoo" / "files"
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def written(ds: FileDataset, syntax: pydicom.uid.UID, undefined: bool = False) -> bytes:
    ds.file_meta.TransferSyntaxUID = syntax
    for element in ds.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    out = io.BytesIO()
    dcmwrite(out, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, force_encoding=True)
    return out.getvalue()


def content(data: bytes | None) -> object:
    """The data set as plain values, free of its encoding."""
    if data is None:
        return None
    ds = pydicom.dcmread(io.BytesIO(data))
    return ds.to_json_dict() if "PixelData" not in ds else {**_without_pixels(ds), "pixels": len(ds.PixelData)}


def _without_pixels(ds: Dataset) -> dict[str, object]:
    del_pixels = {k: v for k, v in ds.to_json_dict().items() if k != "7FE00010"}
    return del_pixels


text = st.text(st.characters(codec="latin-1", exclude_categories=("Cc",), exclude_characters="\\^="), max_size=40)
leaf = st.fixed_dictionaries(
    {},
    optional={
        "PatientComments": text,
        "StudyDescription": text,
        "StudyDate": st.dates().map(lambda d: f"{d:%Y%m%d}".rjust(8, "0")),
        "ReferencedSOPInstanceUID": st.integers(1, 10**9).map(lambda n: f"1.2.826.{n}"),
        "SliceThickness": st.integers(0, 99).map(str),
        "PatientName": text,
        "Rows": st.integers(0, 65535),
        "OtherPatientNames": text,
    },
)


def inside(inner: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({"ReferencedSeriesSequence": st.lists(inner, max_size=2)})


tree = st.recursive(leaf, inside, max_leaves=6)


def grown(tree: dict[str, object], into: Dataset) -> None:
    for name, value in tree.items():
        if name == "ReferencedSeriesSequence":
            items = []
            for inner in value:  # type: ignore[attr-defined]
                item = Dataset()
                grown(inner, item)
                items.append(item)
            into.ReferencedSeriesSequence = Sequence(items)
        elif name != "Rows" or "PixelData" not in into:
            setattr(into, name, value)


@settings(max_examples=60, deadline=None)
@given(tree, st.booleans())
def test_generated_objects_come_out_equal_from_every_encoding(tree: dict[str, object], undefined: bool) -> None:
    results = []
    deid = Deidentifier(load_profile("federated-default"), KEY)
    for syntax in SYNTAXES:
        ds = base(PEOPLE[0], 1, pixels=False)
        grown(tree, ds)
        results.append(deid.deidentify(written(ds, syntax, undefined)))
    assert {r.status for r in results} == {results[0].status}
    first = content(results[0].output)
    assert all(content(r.output) == first for r in results[1:])


@pytest.mark.skipif(not ZOO.exists(), reason="the zoo of odd DICOM files is not beside this checkout")
def test_the_zoo_comes_out_equal_explicit_and_implicit() -> None:
    deid = Deidentifier(load_profile("basic"), KEY)
    compared = 0
    for path in sorted(ZOO.iterdir()):
        try:
            ds = pydicom.dcmread(path)
            if (
                ds.file_meta.TransferSyntaxUID not in SYNTAXES
                or "PixelData" not in ds
                or len(path.read_bytes()) > 300000
            ):
                continue
            for element in list(ds):
                if element.tag.is_private or element.tag.group == 0x0002:
                    del ds[element.tag]
            explicit, implicit = written(ds, ExplicitVRLittleEndian), written(ds, ImplicitVRLittleEndian)
        except Exception:  # noqa: BLE001 - what pydicom cannot read or write cannot be compared with itself
            continue
        one, two = deid.deidentify(explicit), deid.deidentify(implicit)
        assert one.status == two.status, path.name
        if one.status == "ok":
            assert content(one.output) == content(two.output), path.name
            compared += 1
    assert compared >= 10


@pytest.mark.skipif(not ZOO.exists(), reason="the zoo of odd DICOM files is not beside this checkout")
def test_every_file_of_the_zoo_is_accounted_for_and_its_output_is_readable() -> None:
    deid = Deidentifier(load_profile("basic"), KEY)
    ok = 0
    for path in sorted(ZOO.iterdir()):
        outcome = deid.deidentify(path)
        assert outcome.status in ("ok", "quarantined", "rejected")
        if outcome.output is not None:
            ok += 1
            ds = pydicom.dcmread(io.BytesIO(outcome.output))
            assert str(ds.PatientIdentityRemoved) == "YES"
            assert len(list(ds.iterall())) > 3
    assert ok >= 55
