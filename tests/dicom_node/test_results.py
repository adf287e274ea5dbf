"""Results made of de-identified images go back under the original patient and study, once, and nothing else does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, generate_uid

from dicom_node import cli
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.errors import InputError, RefusedError, UnreachableError
from dicom_node.optout import opt_out
from dicom_node.results import Results
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from dicom_node.worker.__main__ import open_pipeline
from tests.interop.studies import ct_instance, planted

WHO = planted(7)
pytestmark = pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent the intended person name")


class Pacs:
    """Stands for an Orthanc: keeps by SOP Instance UID, and may break after it has stored."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.breaks = False
        self.has_study = True
        self.asked = self.stored = 0

    def find_study(self, study_uid: str, patient_id: str) -> str | None:
        assert (study_uid, patient_id) == (WHO.study_uid, WHO.patient_id)
        return "study" if self.has_study else None

    def holds(self, study_uid: str, sop_uid: str) -> bool:
        self.asked += 1
        return sop_uid in self.kept

    def store(self, data: bytes) -> str:
        self.stored += 1
        uid = str(read(data).SOPInstanceUID)
        self.kept[uid] = data
        if self.breaks:
            raise UnreachableError("Orthanc does not answer")
        return "orthanc-" + uid


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> NodeConfig:
    """A node with one de-identified study of three images; tests that change it ask for a copy."""
    config = load_config(write_default_config(tmp_path_factory.mktemp("results") / "node"))
    deidentify(config)
    return config


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    config = load_config(write_default_config(tmp_path / "node"))
    deidentify(config)
    return config


def deidentify(config: NodeConfig) -> None:
    with Spool(config.storage.spool) as spool:
        for number in (1, 2, 3):
            spool.add_file(ct_instance(WHO, number), source="TEST")
        (key,) = spool.complete_studies(9e12, 0)
        pipeline = open_pipeline(config)
        assert pipeline.process(spool.study(key)).state == "deidentified"
        spool.finish_study(key, spool.study(key).generation, "deidentified")
        pipeline.close()


def images(config: NodeConfig) -> list[Dataset]:
    found = [pydicom.dcmread(path) for path in config.storage.dataset.rglob("*.dcm")]
    return sorted(found, key=lambda ds: int(ds.InstanceNumber))


def segmentation(config: NodeConfig, change: Callable[[Any], None] = lambda seg: None) -> bytes:
    sources = images(config)
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="lung",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Lung,
        algorithm_type="MANUAL",
    )
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ones((3, 16, 16), np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[description],
        series_instance_uid="2.25.77001",
        series_number=900,
        sop_instance_uid="2.25.77002",
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    seg.SeriesDescription = "lung binary"
    change(seg)
    return written(seg)


def report(config: NodeConfig) -> bytes:
    """A small Comprehensive SR with one image reference and its evidence."""
    source = images(config)[0]
    image, sop, series, study = Dataset(), Dataset(), Dataset(), Dataset()
    sop.ReferencedSOPClassUID, sop.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    image.RelationshipType, image.ValueType, image.ReferencedSOPSequence = "CONTAINS", "IMAGE", [sop]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.SeriesInstanceUID, [sop]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.StudyInstanceUID, [series]
    sr = Dataset()
    sr.SOPClassUID, sr.SOPInstanceUID = ComprehensiveSRStorage, "2.25.77004"
    sr.StudyInstanceUID, sr.SeriesInstanceUID = source.StudyInstanceUID, "2.25.77003"
    sr.PatientID, sr.PatientName, sr.Modality = source.PatientID, source.PatientName, "SR"
    sr.CurrentRequestedProcedureEvidenceSequence, sr.ContentSequence = [study], [image]
    sr.file_meta = FileMetaDataset()
    sr.file_meta.MediaStorageSOPClassUID, sr.file_meta.MediaStorageSOPInstanceUID = sr.SOPClassUID, sr.SOPInstanceUID
    sr.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return written(sr)


def written(ds: Dataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture
def results(node: NodeConfig) -> Iterator[Results]:
    opened = Results(node)
    yield opened
    opened.close()


def test_a_segmentation_lands_on_the_original_images(node: NodeConfig, results: Results) -> None:
    given = segmentation(node)
    assert not [token for token in WHO.tokens() if token.encode() in given], "nothing identified went in"
    taken, new = results.take(given, "tester")
    assert new and (taken.kind, taken.title, taken.state) == ("SEG", "lung binary", "waiting")
    pacs = Pacs()
    assert results.deliver(pacs, "http://pacs") == 1
    (stored,) = pacs.kept.values()
    seg = read(stored)
    original = read(ct_instance(WHO, 1))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert seg[keyword].value == original[keyword].value, keyword
    assert seg.FrameOfReferenceUID == original.FrameOfReferenceUID
    assert "PatientIdentityRemoved" not in seg and "DeidentificationMethod" not in seg
    originals = {f"{WHO.study_uid}.1.{n}" for n in (1, 2, 3)}
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == original.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == originals
    frames = seg.PerFrameFunctionalGroupsSequence
    derived = {f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in frames}
    assert derived == originals
    everything = {str(e.value) for e in seg.iterall() if e.VR == "UI"}
    assert not everything & {str(i.SOPInstanceUID) for i in images(node)}, "no de-identified UID is left"
    assert not everything & {"2.25.77001", "2.25.77002"}, "its own UIDs cannot be linked with those right of the wall"
    assert np.array_equal(seg.pixel_array, read(given).pixel_array)
    assert results.ours([seg.SOPInstanceUID, "1.2.3"]) == {seg.SOPInstanceUID}


def test_a_report_lands_with_its_evidence(node: NodeConfig, results: Results) -> None:
    results.take(report(node), "tester")
    pacs = Pacs()
    results.deliver(pacs, "http://pacs")
    sr = read(next(iter(pacs.kept.values())))
    evidence = sr.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == sr.StudyInstanceUID == WHO.study_uid
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == f"{WHO.study_uid}.1"
    assert sr.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{WHO.study_uid}.1.1"


def test_it_is_stored_once_whatever_is_repeated_or_breaks(node: NodeConfig, results: Results) -> None:
    given = segmentation(node)
    assert [results.take(given, "tester")[1] for _ in range(2)] == [True, False]
    pacs = Pacs()
    pacs.has_study = False
    assert results.deliver(pacs, "http://pacs") == 0
    assert results.all()[0].reason == "no followed PACS has the study"
    pacs.has_study, pacs.breaks = True, True
    with pytest.raises(UnreachableError):  # it has stored, and its answer was lost
        results.deliver(pacs, "http://pacs")
    pacs.breaks = False
    assert results.deliver(pacs, "http://pacs") == 1
    assert results.deliver(pacs, "http://pacs") == 0
    assert len(pacs.kept) == 1 and (pacs.stored, pacs.asked) == (1, 1), "what came is not sent again"
    assert [r.state for r in results.all()] == ["stored"] and not list(results.folder.iterdir())
    audit = AuditLog(node.storage.audit)
    assert [len(list(audit.records(kind))) for kind in ("result.reidentified", "result.returned")] == [1, 1]
    assert audit.verify().ok
    assert not [t for t in WHO.tokens() if t.encode() in node.storage.audit.read_bytes()]


def _foreign_instance(seg: Any) -> None:
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = generate_uid()


def _foreign_series(seg: Any) -> None:
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()


def _other_class(seg: Any) -> None:
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def _foreign_frame(seg: Any) -> None:
    seg.FrameOfReferenceUID = generate_uid()


def _foreign_study(seg: Any) -> None:
    seg.StudyInstanceUID = generate_uid()


def _foreign_patient(seg: Any) -> None:
    seg.PatientID = "NOBODY"


@pytest.mark.parametrize(
    "change", [_foreign_instance, _foreign_series, _other_class, _foreign_frame, _foreign_study, _foreign_patient]
)
def test_what_does_not_belong_to_the_study_is_refused(made: NodeConfig, change: Callable[[Any], None]) -> None:
    results = Results(made)
    with pytest.raises(RefusedError, match="not taken back"):
        results.take(segmentation(made, change), "tester")
    assert results.all() == []
    results.close()


def test_only_results_are_taken(made: NodeConfig) -> None:
    results = Results(made)
    with pytest.raises(InputError, match="must be a DICOM-SEG or SR"):
        results.take(written(images(made)[0]), "tester")
    with pytest.raises(InputError, match="not a DICOM file"):
        results.take(b"x" * 300, "tester")
    results.close()


def test_a_result_of_a_patient_who_opted_out_is_refused(node: NodeConfig, results: Results) -> None:
    given = segmentation(node)
    opt_out(node, WHO.patient_id, "tester")
    with pytest.raises(RefusedError, match="opted out"):
        results.take(given, "tester")


def test_when_the_spool_has_erased_the_images_the_pacs_is_asked(node: NodeConfig, results: Results) -> None:
    with Spool(node.storage.spool) as spool:
        spool.purge(spool.studies()[0].study_key)
    given = segmentation(node)
    with pytest.raises(InputError, match="Neither spool nor PACS"):
        results.take(given, "tester")
    asked: list[str] = []

    def fetch(uid: str) -> bytes:
        asked.append(uid)
        return ct_instance(WHO, 1)

    assert results.take(given, "tester", fetch)[1]
    assert asked == [f"{WHO.study_uid}.1.1"], "one image for each series"


def test_the_command_takes_a_folder_and_tells_what_it_could_not(
    node: NodeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "good.dcm").write_bytes(segmentation(node))
    (folder / "predictions.jsonl").write_text("{}")
    arguments = ["node", "results", "give", str(folder), "--config", str(node.path), "--json"]
    assert cli.run(arguments) == 0
    assert [one["new"] for one in json.loads(capsys.readouterr().out)["taken"]] == [True]
    (folder / "bad.dcm").write_bytes(segmentation(node, _foreign_patient).replace(b"2.25.77002", b"2.25.77009"))
    assert cli.run(arguments) == 10
    assert cli.run(["node", "results", "list", "--config", str(node.path), "--json"]) == 0
