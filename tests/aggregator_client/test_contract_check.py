"""A contract for each study: who passes, why the others fail, with pictures; the same studies are left out of a round."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from aggregator_client.cli.project import app
from aggregator_client.contract import at_hospital, require_ready
from aggregator_client.contract_check import check, landmarks
from aggregator_client.errors import RefusedError
from aggregator_client.project import ProjectDraft
from aggregator_client.sheet import plain_words
from dicom_node.config import NodeConfig, load_config
from dicom_node.records import Catalogue
from dicom_node.setup import write_default_config
from tests.aggregator_client import hospital  # noqa: F401 - puts tests/trainer on the path
from tests.aggregator_client.test_contract import DRAFT
from trainer.cohort import load_cohort
from trainer.contract import failure
from trainer.measured import MeasuredStudies, StudyFacts
from trainer.spec import JobSpec, LandmarkScale, StudyContract

from side import CLASSES, Side, disc  # isort: skip

CONTRACT = {"spacing_mm": [0.2, 1.0], "intensity": [0, 2000]}


def draft(**contract: Any) -> ProjectDraft:
    task = {"classes": CLASSES, "label": "finding", "size": 32}
    cohort = {"modalities": ["DX"], "min_patients": 3}
    return ProjectDraft.model_validate({**DRAFT, "task": task, "cohort": cohort, "contract": contract})


def spaced(side: Side, number: int, spacing: float | None) -> None:
    (path,) = side.dataset.glob(f"2.25.{number}0/*.dcm")
    ds = pydicom.dcmread(path)
    if spacing is not None:
        ds.ImagerPixelSpacing = [spacing, spacing]
    ds.save_as(path)


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """Four studies that fit, one too coarse, one without a spacing, one too bright, one without a label, one opted out."""
    found = load_config(write_default_config(tmp_path / "node"))
    side, random = Side(found.root), np.random.default_rng(0)
    with closing(Catalogue(side.catalogue, side.dataset)) as catalogue:
        for number in range(1, 10):
            pixels = disc(number % 3, random) + np.uint16(1500 if number == 7 else 0)
            side.add(catalogue, number, pixels, CLASSES[number % 3] if number != 8 else None, partition="train")
        catalogue.withdraw_patient("patient9")
    for number in range(1, 10):
        spaced(side, number, {5: 3.0, 6: None}.get(number, 0.5))
    return found


def test_studies_outside_the_contract_are_left_out_with_their_reason(config: NodeConfig) -> None:
    free, bound = at_hospital(config, draft()), at_hospital(config, draft(**CONTRACT))
    assert (free.patients, bound.patients) == (7, 4)
    assert bound.failures == {
        "pixel spacing is outside 0.2 to 1 mm": 1,
        "pixel spacing is not told": 1,
        "intensities are outside 0 to 2000": 1,
        "no label 'finding'": 1,
        "withdrawn: the patient opted out": 1,
    }
    require_ready(config, draft(**CONTRACT))
    with pytest.raises(RefusedError):
        require_ready(config, draft(**CONTRACT, min_train_images=5))
    with pytest.raises(RefusedError):
        require_ready(config, draft(min_slices=2))


def test_the_trainer_leaves_out_the_same_studies(config: NodeConfig, tmp_path: Path) -> None:
    bound = draft(**CONTRACT)
    values = {"catalogue": config.storage.catalogue, "dataset": config.storage.dataset, "cache": tmp_path / "cache",
              "network": {"name": "small_resnet"}, "task": bound.task, "out": tmp_path / "out",
              "cohort": bound.cohort_rule.model_dump(mode="json")}  # fmt: skip
    loaded = load_cohort(JobSpec(**values, contract=bound.contract.of_study))
    assert len(loaded.samples["train"]) == 4 and loaded.failures == at_hospital(config, bound).failures
    assert len(load_cohort(JobSpec(**values)).samples["train"]) == 7


def test_the_check_tells_and_shows_who_passes_and_why_others_fail(config: NodeConfig, tmp_path: Path) -> None:
    lines = ["task.size = 32", 'task.label = "finding"', f"task.classes = {json.dumps(CLASSES)}"]
    lines += ["contract.spacing_mm = [0.2, 1.0]", "contract.intensity = [0, 2000]"]
    lines += ['cohort.modalities = ["DX"]', 'network.name = "small_resnet"', "rounds = 3", 'name = "chest"']
    (tmp_path / "draft.toml").write_text(
        "\n".join([*lines, 'version = "1"', f"purpose = {json.dumps(DRAFT['purpose'])}"])
    )
    argv = ["check", str(tmp_path / "draft.toml"), "--config", str(config.path)]
    done = CliRunner().invoke(app, [*argv, "--out", str(tmp_path / "page"), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["passing"], facts["failing"]) == (4, 5)
    by_reason = {one["why"]: (one["studies"], one["patients"]) for one in facts["reasons"]}
    assert by_reason["pixel spacing is outside 0.2 to 1 mm"] == (["2.25.50"], ["patient5"])
    assert facts["landmarks"] is None  # of four patients only
    html = Path(facts["page"]).read_text()
    assert html.count("<figure>") == 5 and html.count("data:image/png;base64,") >= 7  # and plots; none of who opted out
    shown = re.search("<h2>One study of each</h2>(.*)</div>", html, re.DOTALL)
    assert shown and "2.25.50" in shown[1] and "2.25.90" not in shown[1]
    assert not re.search(r"(src|href)='?\"?https?:|<script", html)
    told = CliRunner().invoke(app, argv)
    assert told.exit_code == 0 and "4 of 9 patients pass" in told.stdout and "no label 'finding'" in told.stdout


def test_mean_landmarks_are_told_of_enough_patients_and_only_of_those_that_pass(config: NodeConfig) -> None:
    found = check(config, draft(**CONTRACT))
    assert landmarks(found, 5) is None
    told = landmarks(found, 4)
    assert told is not None and set(told) == {"all", "above_mean"}
    passing = [found.facts[entry.study.study_uid] for entry in found.cohort.entries]
    assert len(passing) == 4 < len(found.facts)
    assert np.allclose(told["all"], np.mean([one.landmarks for one in passing], axis=0), atol=6e-4)
    assert np.allclose(told["above_mean"], np.mean([one.landmarks_above_mean for one in passing], axis=0), atol=6e-4)
    assert (told["all"][0], told["all"][-1]) == (0, 1) and told["all"] == sorted(told["all"])


def test_each_clause_judges_the_edges_of_its_range() -> None:
    contract = StudyContract(min_slices=3, spacing_mm=(0.5, 1.0), slice_mm=(1.0, 3.0), intensity=(-1000, 3000))
    fits = StudyFacts(3, (0.5, 1.0), 3.0, (-1000.0, 3000.0))
    assert failure(fits, contract) is None
    for change in (
        {"slices": 2}, {"spacing_mm": (0.49, 1.0)}, {"spacing_mm": (0.5, 1.01)}, {"spacing_mm": None}, {"slice_mm": 3.1},
        {"slice_mm": None}, {"intensity": (-1001.0, 0.0)}, {"intensity": (0.0, 3001.0)}, {"fault": "x"},
    ):  # fmt: skip
        assert failure(StudyFacts(**{**vars(fits), **change}), contract), change


@pytest.mark.parametrize(
    "wrong", [{"spacing_mm": [1, 0.5]}, {"slice_mm": [-1, 2]}, {"intensity": [5, 5]}, {"min_slices": 0}]
)
def test_a_contract_that_nothing_can_fulfil_is_no_project(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        draft(**wrong)


def test_the_sheet_tells_each_clause() -> None:
    told = plain_words(draft(**CONTRACT, min_slices=8, slice_mm=[1, 5]))
    assert "at least 8 slices" in told and "0.2 to 1 mm apart" in told and "between 0 and 2000" in told
    assert "slices 1 to 5 mm apart" in " ".join(told.split())


def test_the_sheet_tells_of_harmonisation() -> None:
    asked = draft()
    scale = LandmarkScale(at=tuple(float(k) for k in range(11)))
    moved = asked.model_copy(update={"task": asked.task.model_copy(update={"harmonise": scale})})
    assert "histogram" in plain_words(moved) and "histogram" not in plain_words(asked)


def test_a_changed_file_is_measured_again_and_a_withdrawn_study_forgotten(config: NodeConfig, tmp_path: Path) -> None:
    with closing(Catalogue(config.storage.catalogue, config.storage.dataset)) as catalogue:
        entry = catalogue.cohort(draft().cohort_rule).entries[0]
    measured = MeasuredStudies(tmp_path / "cache", config.storage.dataset, "image")
    first = measured.of(entry)
    path = config.storage.dataset / entry.instances[0].path
    path.rename(path.with_suffix(".away"))
    assert measured.of(entry) == first and not first.fault  # remembered
    other = replace(entry, instances=[replace(entry.instances[0], sha256="1" * 64)])
    assert measured.of(other).fault and measured.of(entry).fault  # of another file, and of the one that is gone
    assert measured.forget({entry.study.study_uid}) == 1 == 1 - measured.forget({entry.study.study_uid})
