"""The yardsticks train as much as the federation does, and the judge is fair: same images, same code, textbook AUC."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aggregator_client.demo import cohort, compare, images, wrap, yardsticks
from dicom_node.records import Catalogue, InstanceRecord, LabelRecord, StudyRecord
from trainer import networks, weights
from trainer.evaluation.classification import predict

JOB: dict[str, Any] = {
    "network": {"name": "small_resnet", "args": {"classes": 3, "widths": [4, 8]}},
    "task": {"classes": list(images.FINDINGS), "label": "finding", "size": 32},
    "cohort": {"label": "finding"},
    "local": {"epochs": 2, "batch": 8, "lr": 1e-3, "augment": "none"},
}
ROUNDS = 2


def add(catalogue: Catalogue, dataset: Path, exam: cohort.Exam) -> None:
    """One study as it stands right of the wall, identified values and all left out of account here."""
    records = []
    for data in wrap.instances(exam):
        file = dataset / f"{data.SOPInstanceUID}.dcm"
        data.save_as(file, enforce_file_format=True)
        facts = [
            str(data[key].value) for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")
        ]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        records.append(
            InstanceRecord(*facts, str(data.file_meta.TransferSyntaxUID), data.Rows, data.Columns, 1, file.name, digest)
        )
    uid = records[0].study_uid
    catalogue.add_study(StudyRecord(uid, exam.person.patient_id, exam.hospital.scanner.modality), records)
    catalogue.set_labels([LabelRecord(uid, "finding", exam.finding), LabelRecord(uid, "partition", exam.partition)])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> yardsticks.Plan:
    root = tmp_path_factory.mktemp("sides")
    sites = []
    for number, exams in enumerate(cohort.deal(images.load_pack(), 2)):
        dataset = root / str(number)
        dataset.mkdir()
        catalogue = Catalogue(root / f"{number}.db", dataset)
        for finding in images.FINDINGS:
            for partition, count in (("train", 6), ("test", 4)):
                wanted = [exam for exam in exams if (exam.finding, exam.partition) == (finding, partition)]
                for exam in wanted[: count + number]:
                    add(catalogue, dataset, exam)
        catalogue.close()
        sites.append({"name": f"site {number}", "catalogue": root / f"{number}.db", "dataset": dataset})
    start = networks.initial_weights("small_resnet", JOB["network"]["args"], 5)
    weights.save(root / "global.safetensors", start)
    return yardsticks.Plan(
        sites=sites, job=JOB, rounds=ROUNDS, federated=[root / "global.safetensors"], out=root / "out"
    )


def test_both_yardsticks_pass_over_each_image_as_often_as_the_federation(plan: yardsticks.Plan) -> None:
    found = {**yardsticks.train_local(plan), **yardsticks.train_cds(plan)}
    counts = {name: result["samples"] for name, result in found.items()}
    assert counts["cds"] == counts["site 0"] + counts["site 1"]
    for name, result in found.items():
        batches = math.ceil(counts[name] / 8) - (counts[name] % 8 == 1)
        assert result["steps"] == batches * ROUNDS * JOB["local"]["epochs"], name


def test_the_judge_agrees_with_scikit_learn_on_everybodys_held_out_images(plan: yardsticks.Plan) -> None:
    yardsticks.train_local(plan)
    yardsticks.train_cds(plan)
    judged = yardsticks.judge(plan)
    held_out = [yardsticks._held_out(plan, site) for site in plan.sites]
    model = networks.build("small_resnet", JOB["network"]["args"])
    weights.into_module(model, weights.load(plan.federated[0]))
    probabilities = np.concatenate([predict(model, part) for part in held_out])
    labels = np.concatenate([part.labels for part in held_out])
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert judged["federated"][0]["auc"] == pytest.approx(expected)
    assert judged["images"] == len(labels)
    assert set(judged["local"]) == {"site 0", "site 1"}
    assert judged["cds"]["auc"] != judged["federated"][0]["auc"]


def test_local_is_the_mean_of_the_hospitals_models_on_the_union() -> None:
    judged = {
        "local": {
            "a": {"auc": 0.6, "per_site": {"a": 0.9, "b": 0.5}},
            "b": {"auc": 0.8, "per_site": {"a": 0.4, "b": 0.7}},
        },
        "federated": [{"auc": 0.5, "per_site": {}}, {"auc": 0.85, "per_site": {"a": 0.8, "b": 0.9}}],
        "cds": {"auc": 0.9, "per_site": {"a": 0.9, "b": 0.9}},
    }
    seconds = {"local": 1.0, "cds": 2.0, "fedavg": 3.0}
    found = compare.algorithms(judged, seconds, {"fedavg": 7, "cds": 9}, 1)
    assert found["local"].auc == pytest.approx(0.7)
    assert found["local"].per_site == {"a": 0.9, "b": 0.7}
    assert (found["fedavg"].auc, found["fedavg"].bytes, found["local"].bytes) == (0.85, 7, 0)
    assert [point.round for point in compare.curve(judged)] == [0, 1]


def test_a_plan_with_a_typing_mistake_is_refused(plan: yardsticks.Plan, tmp_path: Path) -> None:
    facts = json.loads(plan.model_dump_json()) | {"round": 3}
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="round"):
        yardsticks.main([str(tmp_path / "plan.json"), "judge"])
