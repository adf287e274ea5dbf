"""Installed models run on new studies by themselves, once, and what they make goes back under the original identity."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pydicom
import pytest

from aggregator_client.inference import Inference, outbox
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.daemon import process_specs
from dicom_node.optout import opt_out
from dicom_node.pause import pause, resume
from dicom_node.results import Results
from dicom_node.results.outbox import take_in
from dicom_node.setup import write_default_config
from tests.dicom_node.test_results import WHO, deidentify
from trainer import networks, weights
from trainer.errors import SpecError
from trainer.modelcard import ModelCard, write_card

NETWORK = {"in_channels": 1, "classes": 2, "widths": [4, 8]}


def model(folder: Path, **task: object) -> Path:
    """A model folder whose network paints about half of every image."""
    folder.mkdir(parents=True)
    named = {"name": "segmentation", "classes": ["background", "lung"], "label": "lung", "size": 16} | task
    network = {"name": "monai_unet", "args": NETWORK}
    arrays = networks.initial_weights("monai_unet", NETWORK, 0)
    digest = weights.save(folder / "model.safetensors", arrays)
    write_card(
        folder, ModelCard.model_validate({"name": "lung finder", "network": network, "task": named, "sha256": digest})
    )
    return folder


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    file = write_default_config(tmp_path / "node")
    model(tmp_path / "node" / "models" / "lung")
    settings = (
        'models = [{ folder = "models/lung", modalities = ["CT"] }, { folder = "models/lung", modalities = ["MR"] }]'
    )
    file.write_text(file.read_text().replace("models = []", settings, 1))
    config = load_config(file)
    deidentify(config)
    return config


def test_a_new_study_is_predicted_once_and_its_results_get_their_identity_back(node: NodeConfig) -> None:
    assert [s.argv[2] for s in process_specs(node) if s.name == "inference"] == ["aggregator_client.inference"]
    with closing(Inference(node)) as inference:
        pause(node, "Dr. Test")
        assert inference.step() == 0, "a paused node predicts nothing"
        resume(node, "Dr. Test")
        assert inference.step() == 1, "the model for MR is not asked"
        assert inference.counts() == {"studies": 1, "results": 2, "set_aside": 0}
        assert inference.step() == 0
    waiting = sorted(outbox(node).glob("*.dcm"))
    assert [pydicom.dcmread(file).Modality for file in waiting].count("SEG") == 1 and len(waiting) == 2
    assert all(WHO.patient_id.encode() not in file.read_bytes() for file in waiting), "identity stays left of the wall"
    kept = [(file, file.read_bytes()) for file in waiting]
    assert take_in(node) == 2 and not list(outbox(node).glob("*.dcm"))
    for file, data in kept:  # a kill between taking and forgetting hands the same files in again
        file.write_bytes(data)
    assert take_in(node) == 2
    with closing(Results(node)) as results:
        assert sorted(one.kind for one in results.all()) == ["SEG", "SR"]
        files = [pydicom.dcmread(file) for file in results.folder.glob("*.dcm")]
    assert {str(ds.PatientID) for ds in files} == {WHO.patient_id} and {str(ds.StudyInstanceUID) for ds in files} == {
        WHO.study_uid
    }
    with closing(AuditLog(node.storage.audit, readonly=True)) as audit:
        (told,) = audit.records("inference.done")
        assert audit.verify().ok and told.facts["outputs"] == 2 and told.facts["reason"] == ""


def test_a_study_that_cannot_be_predicted_is_set_aside_with_its_reason(node: NodeConfig) -> None:
    for file in node.storage.dataset.rglob("*.dcm"):
        file.write_bytes(file.read_bytes()[:-100])
    with closing(Inference(node)) as inference:
        assert inference.step() == 1 and inference.counts()["set_aside"] == 1
        assert inference.step() == 0, "it is not tried for ever"
    with closing(AuditLog(node.storage.audit, readonly=True)) as audit:
        (told,) = audit.records("inference.done")
    assert told.facts["outputs"] == 0 and told.facts["reason"] and WHO.patient_id not in told.facts["reason"]


def test_results_of_a_patient_who_opted_out_meanwhile_do_not_go_back(node: NodeConfig) -> None:
    with closing(Inference(node)) as inference:
        inference.step()
    opt_out(node, WHO.patient_id, "Dr. Test")
    assert take_in(node) == 0
    assert len(list((outbox(node) / "refused").iterdir())) == 2 and not list(outbox(node).glob("*.dcm"))
    with closing(Results(node)) as results:
        assert results.all() == []


def test_a_bad_model_folder_is_told_in_a_sentence(node: NodeConfig, tmp_path: Path) -> None:
    (node.root / "models" / "lung" / "model.json").write_text("{}")
    argv = [sys.executable, "-m", "aggregator_client.inference", "--config", str(node.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=os.environ)
    assert (
        done.returncode == SpecError.exit_code
        and "is not a model card" in done.stderr
        and "Traceback" not in done.stderr
    )
    (node.root / "models" / "lung" / "model.safetensors").unlink()
    (node.root / "models" / "lung" / "model.json").unlink()
    (node.root / "models" / "lung").rmdir()
    model(node.root / "models" / "lung", name="classification", classes=["a", "b"])
    with pytest.raises(SpecError, match="runs segmentation models"):
        Inference(node)
