"""The contract check of a segmentation on real MR: slices and their distance, and label objects that do not fit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aggregator_client.contract_check import Checked, check
from aggregator_client.project import ProjectDraft
from aggregator_client.sheet import plain_words
from dicom_node.config import NodeConfig, load_config
from dicom_node.records import Catalogue, StudyRecord
from dicom_node.setup import write_default_config
from tests.aggregator_client import hospital  # noqa: F401 - puts tests/trainer on the path
from tests.aggregator_client.test_contract import DRAFT

from test_segmentation import CLASSES, HIPPOCAMPUS, needs_data, side  # isort: skip

pytestmark = needs_data


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """A node with the four patients of the shared MR series, each with a segmentation."""
    found = load_config(write_default_config(tmp_path / "node"))
    catalogue, dataset = side(tmp_path)
    for old, new in ((catalogue, found.storage.catalogue), (dataset, found.storage.dataset)):
        new.parent.mkdir(parents=True, exist_ok=True)
        if new.is_dir():
            new.rmdir()
        old.rename(new)
    return found


def checked(config: NodeConfig, classes: list[str] = CLASSES, **contract: Any) -> Checked:
    task = {"name": "segmentation", "classes": classes, "size": 64}
    cohort = {"modalities": ["MR"], "min_patients": 1}
    network = {"name": "monai_unet", "args": {"classes": len(classes)}}
    facts: dict[str, Any] = {**DRAFT, "task": task, "cohort": cohort, "network": network, "contract": contract}
    draft = ProjectDraft.model_validate(facts)
    assert f"contours of {', '.join(classes[1:])}." in " ".join(plain_words(draft).split())
    return check(config, draft)


def test_slices_and_their_distance_are_those_of_the_files(config: NodeConfig) -> None:
    found = checked(config)
    assert len(found.passing) == 4 and not found.reasons
    counts = {path.name: len(list(path.glob("mr/*.dcm"))) for path in HIPPOCAMPUS.iterdir() if path.is_dir()}
    for entry in found.cohort.entries:
        facts = found.facts[entry.study.study_uid]
        assert facts.slices == counts[entry.study.patient] and facts.slice_mm == pytest.approx(1.0)
    least = max(counts.values())
    strict = checked(config, min_slices=least)
    assert set(strict.passing) == {patient for patient, count in counts.items() if count == least}
    assert {reason.why for reason in strict.reasons} <= {f"fewer than {least} slices"}
    thick = checked(config, slice_mm=[2, 5])
    assert not thick.passing and [one.why for one in thick.reasons] == ["distance between slices is outside 2 to 5 mm"]


def test_equal_faults_of_label_objects_count_together_and_name_no_study(config: NodeConfig) -> None:
    with closing(Catalogue(config.storage.catalogue, config.storage.dataset)) as catalogue:
        bare = catalogue.studies()[0]
        images = [one for one in catalogue.instances(bare.study_uid) if one.frames == 1]
        catalogue.add_study(StudyRecord(bare.study_uid, bare.patient, "MR", content_hash="x"), images)
    assert [(one.why, one.studies) for one in checked(config).reasons] == [
        ("study holds no segmentation; attach one or leave it out", [bare.study_uid])
    ]
    unknown = checked(config, CLASSES[:2])
    assert unknown.passing == [] and sorted(len(one.studies) for one in unknown.reasons) == [1, 3]
    assert "is none of the classes" in unknown.reasons[0].why
    assert not any(one.study.study_uid in why.why for why in unknown.reasons for one in unknown.cohort.left_out)


def test_faults_that_name_a_file_name_it_no_more(config: NodeConfig) -> None:
    with closing(Catalogue(config.storage.catalogue, config.storage.dataset)) as catalogue:
        for study in catalogue.studies():
            label = next(one for one in catalogue.instances(study.study_uid) if one.frames > 1)
            (config.storage.dataset / label.path).write_bytes(b"no DICOM")
    (reason,) = checked(config).reasons
    assert len(reason.studies) == 4 and ".dcm" not in reason.why and "not a readable DICOM segmentation" in reason.why
