"""Multi-label and 2.5D classification, from the catalogue to a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from side import Side
from test_segmentation import files, needs_data
from test_segmentation import side as hippocampus_side

from dicom_node.records import Catalogue, LabelRecord
from trainer import job
from trainer.errors import PixelError, SpecError
from trainer.modelcard import load_model
from trainer.pixels.prepare import Preparation
from trainer.pixels.series import prepare_series
from trainer.predict import predict
from trainer.spec import JobSpec, load_spec

CLASSES = ["square", "stripes"]


def several(root: Path) -> Side:
    """Forty images with a square, stripes, both or neither; one names a class nobody knows."""
    side = Side(root)
    random = np.random.default_rng(0)
    catalogue = Catalogue(side.catalogue, side.dataset)
    for n in range(40):
        pixels = random.normal(1000, 60, (32, 32))
        said = [name for name, shown in zip(CLASSES, (n % 2, n // 2 % 2), strict=True) if shown]
        if "square" in said:
            pixels[8:24, 8:24] += 300
        if "stripes" in said:
            pixels[:, ::8] += 400
        partition = "test" if n >= 28 else "train"
        label = "; ".join(said) or "none"
        side.add(catalogue, n + 1, np.clip(pixels, 0, 4095).astype(np.uint16), label, partition=partition)
    side.add(catalogue, 99, np.zeros((32, 32), np.uint16), "square;comet", partition="train")
    catalogue.close()
    return side


def spec(side: Side, out: Path, **task: object) -> JobSpec:
    facts = {
        "catalogue": side.catalogue, "dataset": side.dataset, "cache": side.root / "cache", "out": out, "threads": 1,
        "network": {"name": "small_resnet", "args": {"classes": 2, "widths": [8, 16]}}, "evaluate_on": "test",
        "task": {"classes": CLASSES, "label": "finding", "size": 32, "multilabel": True} | task,
        "local": {"epochs": 14, "batch": 7, "lr": 1e-2, "augment": "none"},
    }  # fmt: skip
    return JobSpec.model_validate(facts)


def test_several_findings_a_study_are_learned_and_predicted(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    side = several(tmp_path)
    result = job.run(spec(side, tmp_path / "model"))
    torch.set_num_threads(before)
    assert result["samples"] == 28 and result["class_counts"] == [14, 14]
    assert result["metrics"]["auc"] > 0.9 and result["metrics"]["per_class"]["stripes"]["cases"] == 6, result["metrics"]
    assert (
        list(result["set_aside"]) == ["2.25.990"] and "outside the project's classes" in result["set_aside"]["2.25.990"]
    )
    assert result["failures"] == {"label 'finding' names an unknown class": 1}
    done = predict(
        load_model(tmp_path / "model"), [side.dataset / "2.25.400", side.dataset / "2.25.370"], tmp_path / "out"
    )
    both, neither = (row["probabilities"] for row in done.outputs)  # number 40 is n = 39, number 37 n = 36
    assert min(both.values()) > 0.5 > max(neither.values()), done.outputs


def test_a_class_that_cannot_be_told_in_a_list_is_refused(tmp_path: Path) -> None:
    for classes in (["none", "a"], ["a;b", "c"]):
        facts = json.loads(spec(Side(tmp_path), tmp_path).model_dump_json())
        facts["task"]["classes"] = classes
        (tmp_path / "spec.json").write_text(json.dumps(facts))
        with pytest.raises(SpecError, match="multilabel is for classification"):
            load_spec(tmp_path / "spec.json")


@needs_data
def test_a_series_is_one_sample_of_evenly_spread_planes(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    catalogue_path, dataset = hippocampus_side(tmp_path)
    catalogue = Catalogue(catalogue_path, dataset)
    studies = catalogue.studies()
    catalogue.set_labels([LabelRecord(s.study_uid, "finding", CLASSES[n % 2]) for n, s in enumerate(studies)])
    catalogue.close()
    given = spec(Side(tmp_path), tmp_path / "model", multilabel=False, slices=5)
    network = {"name": "small_resnet", "args": {"classes": 2, "widths": [8], "in_channels": 5}}
    result = job.run(JobSpec.model_validate(given.model_dump() | {"network": network, "local": {"batch": 2}}))
    torch.set_num_threads(before)
    assert result["samples"] == 3 and result["set_aside"] == {} and result["metrics"]["cases"] == 1
    done = predict(load_model(tmp_path / "model"), [files()[0].parent], tmp_path / "out")
    assert len(done.outputs) == 1 and sum(done.outputs[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    shuffled = prepare_series(list(reversed(files())), Preparation(size=32), 5)
    assert shuffled.shape == (5, 32, 32) and np.array_equal(shuffled, prepare_series(files(), Preparation(size=32), 5))
    assert abs(shuffled.mean()) < 1e-4 and abs(shuffled.std() - 1) < 1e-3
    with pytest.raises(PixelError, match="planes and the task needs 400"):
        prepare_series(files(), Preparation(size=32), 400)
