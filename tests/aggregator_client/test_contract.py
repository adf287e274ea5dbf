"""A hospital whose data do not fulfil the contract sits the project out, and only its own staff learn why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aggregator_client.contract import at_hospital, readiness, require_ready
from aggregator_client.errors import RefusedError
from aggregator_client.project import ProjectDraft
from dicom_node.config import load_config
from dicom_node.records import Catalogue, InstanceRecord, LabelRecord, StudyRecord
from dicom_node.setup import write_default_config

DRAFT: dict[str, Any] = {
    "name": "chest",
    "version": "1",
    "purpose": "Tell pneumonia from normal on chest X-rays.",
    "rounds": 3,
    "task": {"classes": ["normal", "viral"], "label": "finding"},
    "cohort": {"modalities": ["DX"], "min_patients": 3},
    "network": {"name": "small_resnet"},
}


def fill(catalogue: Catalogue, labels: list[str | None], modality: str = "DX") -> None:
    for number, label in enumerate(labels):
        uid = f"2.25.{1 if modality == 'DX' else 2}{number}"
        study = StudyRecord(uid, f"p{number}", modality, "CHEST", "Acme", "F", 40, 1, "eligible", "", "h", 0.0)
        instance = InstanceRecord(uid + ".1", uid, uid + ".2", "1.2", "1.2", 8, 8, 1, f"{uid}.dcm", "0" * 64)
        catalogue.add_study(study, [instance])
        found = [LabelRecord(uid, "partition", "train", "csv")]
        catalogue.set_labels(found + ([LabelRecord(uid, "finding", label, "csv")] if label else []))


@pytest.mark.parametrize(
    ("labels", "contract", "faults"),
    [
        (["normal", "viral", "viral"], {}, []),
        (["normal", "viral"], {}, ["2 patients qualify and the project asks for 3."]),
        (["normal"] * 4, {"min_classes": 2}, ["1 classes occur here and the project asks for 2."]),
        (["normal"] * 3, {"min_train_images": 4}, ["3 training images qualify and the project asks for 4."]),
        (
            ["normal", "viral", "viral", None],
            {"max_unlabelled_share": 0.2},
            ["25% of the matching studies have no label 'finding' and the project allows 20%."],
        ),
        (["normal", "viral", "viral", None], {"max_unlabelled_share": 0.25}, []),
    ],
)
def test_each_clause_is_judged(tmp_path: Path, labels: list[str | None], contract: Any, faults: list[str]) -> None:
    config = load_config(write_default_config(tmp_path / "node"))
    catalogue = Catalogue(config.storage.catalogue, config.storage.dataset)
    fill(catalogue, labels)
    fill(catalogue, ["normal"] * 5, modality="CT")  # not asked for
    draft = ProjectDraft.model_validate({**DRAFT, "contract": contract})
    found = readiness(draft, catalogue.cohort(draft.cohort_rule))
    catalogue.close()
    assert found.faults == faults == at_hospital(config, draft).faults
    assert found.failures["modality is not one of DX"] == 5
    if not faults:
        require_ready(config, draft)
        return
    with pytest.raises(RefusedError) as caught:
        require_ready(config, draft)
    assert not any(character.isdigit() for character in str(caught.value))
