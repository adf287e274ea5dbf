"""Heads lose their faces by at least 6 mm and not one voxel of brain; what is in doubt is quarantined with its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from scipy import ndimage
from typer.testing import CliRunner

from anonymizer import Deidentifier, load_profile
from anonymizer.batch import Job, Line, plan_outputs, run
from anonymizer.cli import deid
from anonymizer.faces.which import may_show_face
from tests.anonymizer.heads import Head, make, write_classic, write_enhanced

Array = NDArray[Any]
JOB = Job(load_profile("federated-default"), bytes(range(32)))
VENDORS = Path(__file__).resolve().parents[3] / "shared" / "data" / "mr-vendor-series"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


def taken_across(source: Path, out: Path) -> list[Line]:
    lines: list[Line] = []
    run(JOB, plan_outputs([source], out), 1, lines.append)
    return lines


def after(head: Head, out: Path) -> Array:
    """The output's slices in the order of the truth, by their positions."""
    values: list[Array | None] = [None] * len(head.positions)
    for path in out.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        if "NumberOfFrames" in ds:
            return np.asarray(ds.pixel_array)
        away = np.linalg.norm(np.array(head.positions) - np.array([float(v) for v in ds.ImagePositionPatient]), axis=1)
        values[int(away.argmin())] = ds.pixel_array
    return np.stack([value for value in values if value is not None])


def check(head: Head, values: Array) -> None:
    """The brain bit for bit, and the skin of every feature 6 mm or more away from what is left of the head."""
    assert np.array_equal(values[head.brain], head.values[head.brain])
    assert (values != head.values).any()
    level = 600 if head.modality == "CT" else 60
    left = ndimage.binary_opening(values > level)
    before = ndimage.binary_opening(head.values > level)
    away = ndimage.distance_transform_edt(~left, sampling=head.voxel)
    skin = (
        before & ~ndimage.binary_erosion(before) & (ndimage.distance_transform_edt(head.head, sampling=head.voxel) < 4)
    )
    for name, box in head.features.items():
        surface = skin & box
        assert surface.sum() > 20, name
        assert (away[surface] >= 6).mean() > (0.9 if name == "ears" else 0.99), (
            f"{name}: {(away[surface] >= 6).mean():.3f}"
        )


@pytest.mark.parametrize(
    ("direction", "modality", "syntax", "seed"),
    [
        ("sagittal", "MR", ExplicitVRLittleEndian, 3),
        ("coronal", "CT", JPEGLSLossless, 2),
    ],
)
def test_a_series_loses_its_face_and_none_of_its_brain(
    tmp_path: Path, direction: str, modality: str, syntax: str, seed: int
) -> None:
    head = make(direction, modality, seed)
    sources = write_classic(head, tmp_path / "in", syntax)
    lines = taken_across(tmp_path / "in", tmp_path / "out")
    assert Counter(line.status for line in lines) == {"ok": len(sources)}, Counter(line.reason for line in lines)
    check(head, after(head, tmp_path / "out"))
    for path in (tmp_path / "out").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        assert ds.RecognizableVisualFeatures == "NO"
        assert "113102" in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]
        assert ds.file_meta.TransferSyntaxUID == syntax
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in sources
    )  # nothing staged is left
    changed = {Path(line.source).name for line in lines if any(a.rule.startswith("113102") for a in line.actions)}
    for path in sources:
        same = pydicom.dcmread(path).PixelData == pydicom.dcmread(tmp_path / "out" / path.name).PixelData
        assert same == (path.name not in changed)


def test_an_enhanced_object_alone_loses_its_face_and_only_touched_frames_are_encoded_anew(tmp_path: Path) -> None:
    head = make("axial", "MR", seed=4)
    write_enhanced(head, tmp_path / "in.dcm", RLELossless)
    outcome = Deidentifier(load_profile("federated-default"), bytes(32)).deidentify(tmp_path / "in.dcm")
    assert outcome.status == "ok", outcome.reason
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "in.dcm").write_bytes(outcome.output or b"")
    values = after(head, tmp_path / "out")
    check(head, values)
    from pydicom.encaps import generate_frames

    streams = [
        list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=len(head.values)))
        for path in (tmp_path / "in.dcm", tmp_path / "out" / "in.dcm")
    ]
    same = [bool(np.array_equal(a, b)) for a, b in zip(values, head.values, strict=True)]
    assert any(same) and [a == b for a, b in zip(*streams, strict=True)] == same


def test_deflated_slices_without_a_body_part_are_known_by_their_anatomy(tmp_path: Path) -> None:
    head = make("axial", "CT", seed=5, gap=5.0)
    for path in write_classic(head, tmp_path / "in"):
        ds = pydicom.dcmread(path)
        del ds.BodyPartExamined, ds.SeriesDescription
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        ds.save_as(path, enforce_file_format=True)
    lines = taken_across(tmp_path / "in", tmp_path / "out")
    assert {line.status for line in lines} == {"ok"}, {line.reason for line in lines}
    check(head, after(head, tmp_path / "out"))


@pytest.mark.parametrize("fault", ["noise", "few", "gap", "half", "nowhere"])
def test_a_head_in_doubt_is_quarantined_with_its_reason(tmp_path: Path, fault: str) -> None:
    head = make("sagittal" if fault == "few" else "axial", "MR", seed=6, gap=5.0, pixel=4.0)
    if fault == "noise":
        head.values = np.random.default_rng(0).integers(0, 900, head.values.shape).astype(np.uint16)
    paths = write_classic(head, tmp_path / "in")
    keep = {"few": slice(18, 23), "half": slice(0, 14), "gap": [*range(15), *range(25, 40)]}.get(fault, slice(None))
    kept = set(np.array(sorted(paths, key=lambda p: p.name[-7:]), dtype=object)[keep])
    for path in paths:
        if path not in kept:
            path.unlink()
        elif fault == "nowhere":
            ds = pydicom.dcmread(path)
            del ds.ImagePositionPatient
            ds.save_as(path)
    lines = taken_across(tmp_path / "in", tmp_path / "out")
    assert {line.status for line in lines} == {"quarantined"}
    said = {"few": "too few", "gap": "missing", "nowhere": "where its frames lie", "noise": "face", "half": ""}[fault]
    assert all(line.reason and said in line.reason and line.output is None for line in lines), {
        line.reason for line in lines
    }
    assert not list((tmp_path / "out").rglob("*.dcm"))


@pytest.mark.parametrize(
    ("count", "kind", "status"), [(3, "AXIAL", "ok"), (3, "SAGITTAL", "quarantined"), (9, "AXIAL", "quarantined")]
)
def test_a_few_axial_slices_of_unknown_place_show_no_face(tmp_path: Path, count: int, kind: str, status: str) -> None:
    head = make("axial", "CT", seed=9, gap=10.0, pixel=4.0)
    for number, path in enumerate(sorted(write_classic(head, tmp_path / "in"))):
        if number >= count:
            path.unlink()
            continue
        ds = pydicom.dcmread(path)
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
        ds.ImageType = ["ORIGINAL", "PRIMARY", kind]
        ds.save_as(path)
    lines = taken_across(tmp_path / "in", tmp_path / "out")
    assert [line.status for line in lines] == [status] * count


@pytest.mark.skipif(not VENDORS.exists(), reason="../shared/data/mr-vendor-series is not here")
@pytest.mark.parametrize("series", ["ge_epi_0005", "philips_fmri_201"])
def test_coarse_echo_planar_series_of_real_heads_come_through(tmp_path: Path, series: str) -> None:
    lines = taken_across(VENDORS / series, tmp_path)
    assert {line.status for line in lines} == {"ok"}, {line.reason for line in lines}


def test_other_anatomy_and_small_fields_stay_bit_for_bit(tmp_path: Path) -> None:
    head = make("axial", "CT", seed=7, gap=6.0, pixel=4.0)
    for path in write_classic(head, tmp_path / "in"):
        ds = pydicom.dcmread(path)
        ds.BodyPartExamined, ds.SeriesDescription = "CHEST", "thorax"
        ds.save_as(path)
    lines = taken_across(tmp_path / "in", tmp_path / "out")
    assert {line.status for line in lines} == {"ok"}
    assert np.array_equal(after(head, tmp_path / "out"), head.values)
    assert not any("RecognizableVisualFeatures" in pydicom.dcmread(p) for p in (tmp_path / "out").glob("*.dcm"))


@pytest.mark.parametrize(
    ("part", "said", "expected"),
    [
        ("HEAD", "", "head"),
        ("", "MRT Schädel nativ", "head"),
        ("BRAIN", "chest", "head"),
        ("CHEST", "routine", ""),
        ("CHEST", "ct head and chest", "maybe"),
        ("", "", "maybe"),
        ("NECK", "", "maybe"),
        ("", "abdomen pelvis", ""),
        ("WHOLEBODY", "PET", "maybe"),
        ("", "T1 MPRAGE", "head"),
    ],
)
def test_the_header_says_what_may_show_a_face(part: str, said: str, expected: str) -> None:
    for sop_class in (CT, MR, f"{MR}.1", "1.2.840.10008.5.1.4.1.1.128"):
        assert may_show_face(sop_class, "ORIGINAL\\PRIMARY", part, frozenset(), said) == expected
    assert may_show_face("1.2.840.10008.5.1.4.1.1.1", "", part, frozenset(), said) == ""


def test_a_region_code_and_a_scout_are_heeded() -> None:
    assert may_show_face(CT, "ORIGINAL\\PRIMARY\\LOCALIZER", "HEAD", frozenset(), "") == ""
    assert may_show_face(CT, "ORIGINAL\\PRIMARY", "", frozenset({"69536005"}), "abdomen") == "head"


def test_the_site_may_look_at_the_surface_before_and_after(tmp_path: Path) -> None:
    head = make("axial", "MR", seed=3, gap=4.0, pixel=3.0)
    write_classic(head, tmp_path / "in")
    refused = CliRunner().invoke(
        app(), [str(tmp_path / "in"), "--out", str(tmp_path / "o"), "--face-preview", str(tmp_path / "o/p")]
    )
    assert refused.exit_code == 2 and not (tmp_path / "o").exists()
    arguments = [
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
        "--face-preview",
        str(tmp_path / "seen"),
        "--workers",
        "1",
    ]
    shown = CliRunner().invoke(app(), arguments)
    assert shown.exit_code == 0, shown.output
    (picture,) = (tmp_path / "seen").iterdir()
    uid = str(pydicom.dcmread(next((tmp_path / "out").glob("*.dcm"))).SeriesInstanceUID)
    assert picture.name == f"{uid}-1.png"
    assert picture.stat().st_mode & 0o077 == 0 and (tmp_path / "seen").stat().st_mode & 0o077 == 0
    pixels = np.asarray(Image.open(picture)).astype(int)
    before, after = np.split(pixels, 2)
    third = before.shape[1] // 3
    low = slice(before.shape[0] // 2, before.shape[0] * 4 // 5)  # where nose and mouth are
    assert np.abs(before - after)[low, third : 2 * third].mean() > 15  # from the front the face is another
    top = slice(20, before.shape[0] // 4)
    assert np.abs(before - after)[top, third : 2 * third].mean() < 2  # the vertex is the same
    assert not list((tmp_path / "out").rglob("*.png")) and not list(tmp_path.rglob("*.before"))


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(deid)
    return made
