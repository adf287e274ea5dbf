"""Drift: silent between samples of one population, loud when a scanner changes, and told by the job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from side import build, disc, spec

from dicom_node.records import Catalogue
from trainer import job
from trainer.evaluation import drift
from trainer.local.data import Samples
from trainer.spec import JobSpec


def images(count: int, seed: int, blur: bool = False) -> Samples:
    random = np.random.default_rng(seed)
    out = np.stack([disc(int(random.integers(3)), random).astype(np.float32) for _ in range(count)])
    if blur:
        out = (out + np.roll(out, 1, 1) + np.roll(out, 1, 2)) / 3
    out = (out - out.mean((1, 2), keepdims=True)) / out.std((1, 2), keepdims=True)
    return Samples(out[:, None], np.zeros(count, np.int64))


def test_psi_by_hand() -> None:
    reference = np.arange(100.0)
    assert drift.psi(reference, reference) == 0
    shares = np.array([10.5, 10.5]) / 21
    moved = np.array([0.5, 20.5]) / 21
    expected = float(((moved - shares) * np.log(moved / shares)).sum())
    assert drift.psi(np.arange(20.0), np.full(20, 30.0), bins=2) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_two_sample_test_is_symmetric_in_scale_and_sees_a_shift(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(60, 3)), random.normal(size=(60, 3))
    assert drift.two_sample(a, b + 3) < 0.01
    assert drift.two_sample(a, b) == drift.two_sample(a * [1, 8, 128], b * [1, 8, 128])  # exact in binary


def test_false_alarms_are_rare_and_another_scanner_is_seen() -> None:
    reference = drift.features(images(120, 0))
    quiet = [drift.compare(reference, drift.features(images(100, seed)), drift.FEATURES) for seed in range(1, 9)]
    assert sum(one["warning"] is not None for one in quiet) <= 1
    seen = drift.compare(reference, drift.features(images(100, 50, blur=True)), drift.FEATURES)
    assert seen["warning"] and "sharpness" in seen["warning"]
    assert seen["columns"]["sharpness"]["psi"] > 0.25 and seen["two_sample_p"] < 0.01
    few = drift.compare(reference[:20], drift.features(images(100, 50, blur=True)), drift.FEATURES)
    assert few == {"reference": 20, "current": 100, "warning": None}


def test_the_job_tells_drift_against_its_first_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    side = build(tmp_path, 150)
    facts = spec(side, tmp_path / "m", local={"epochs": 1})
    first = job.run(JobSpec.model_validate(facts))
    assert first["drift"] == {"inputs": None, "scores": None, "warning": None}
    catalogue = Catalogue(side.catalogue, side.dataset)
    random = np.random.default_rng(9)
    for n in range(60):  # a new scanner: half the resolution
        pixels = disc(n % 3, random)[::2, ::2].repeat(2, 0).repeat(2, 1)
        side.add(catalogue, 500 + n, pixels, ["normal", "bacterial", "viral"][n % 3], partition="test")
    catalogue.close()
    capsys.readouterr()
    evaluate = facts | {
        "kind": "evaluate",
        "weights_in": str(tmp_path / "m/model.safetensors"),
        "out": str(tmp_path / "e"),
    }
    again = job.run(JobSpec.model_validate(evaluate))
    torch.set_num_threads(before)
    assert again["drift"]["inputs"]["reference"] == 30 and again["drift"]["inputs"]["current"] == 90
    assert "sharpness" in again["drift"]["warning"] and "warning" not in again["drift"]["scores"]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["warning"] for one in events if one["event"] == "drift"] == [again["drift"]["warning"]]


def test_a_damaged_reference_is_renewed(tmp_path: Path) -> None:
    file = tmp_path / "a" / "reference.safetensors"
    inputs, scores = np.ones((40, 6)), np.ones((40, 2))
    for _ in range(2):
        assert drift.against_reference(file, inputs, scores, ["a", "b"])["warning"] is None
    file.write_bytes(b"no")
    assert drift.against_reference(file, inputs, scores, ["a", "b"])["inputs"] is None
    assert drift.against_reference(file, inputs, scores, ["a", "b"])["inputs"]["two_sample_p"] == 1.0
