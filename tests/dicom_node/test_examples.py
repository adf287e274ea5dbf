"""Example predictions: a real DICOM Segmentation drawn over the image it belongs to, and only held-out patients chosen."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.coding import Code

from aggregator_client import approvals
from aggregator_client.coordinator import settings
from dicom_node import examples
from dicom_node.errors import InputError, RefusedError
from dicom_node.records import Catalogue, CohortRule
from tests.aggregator_client import hospital
from tests.interop.studies import ct_instance, planted

SIZE = 64


@pytest.fixture
def series(tmp_path: Path) -> dict[str, Path]:
    """Three slices, by SOP Instance UID."""
    found = {}
    for number in (1, 2, 3):
        file = tmp_path / f"{number}.dcm"
        file.write_bytes(ct_instance(planted(1), number, SIZE))
        found[str(dcmread(file).SOPInstanceUID)] = file
    return found


def segmentation(series: dict[str, Path], masks: np.ndarray, out: Path) -> Path:
    """A BINARY Segmentation of two segments, as highdicom writes it; masks [slices, rows, columns] of labels."""
    sources = [dcmread(io.BytesIO(file.read_bytes())) for file in series.values()]
    tissue = Code("85756007", "SCT", "Tissue")
    described = [
        hd.seg.SegmentDescription(number, name, tissue, tissue, "AUTOMATIC",
                                  hd.AlgorithmIdentificationSequence("test", tissue, "1"))
        for number, name in ((1, "one"), (2, "two"))
    ]  # fmt: skip
    seg = hd.seg.Segmentation(
        sources, masks, "BINARY", described, hd.UID(), 1, hd.UID(), 1, "fedpacs", "test", "1", "1"
    )  # fmt: skip
    seg.save_as(out)
    return out


def test_the_slice_with_the_largest_mask_is_shown_with_it_over_the_image(
    series: dict[str, Path], tmp_path: Path
) -> None:
    masks = np.zeros((3, SIZE, SIZE), np.uint8)
    masks[0, 10:12, 10:12] = 1
    masks[1, 16:32, 16:32] = 1
    masks[1, 40:48, 8:24] = 2
    picture = np.asarray(examples._over(series, segmentation(series, masks, tmp_path / "seg.dcm"))).astype(int)
    scale = picture.shape[1] / SIZE
    assert picture.shape[1] >= 320 and picture.shape[2] == 3

    def at(row: int, column: int) -> np.ndarray:
        return picture[int((row + 0.5) * scale), int((column + 0.5) * scale)]

    def coloured(row: int, column: int) -> bool:
        return int(np.ptp(at(row, column))) > 20

    assert coloured(24, 24) and coloured(44, 16), "both segments are tinted"
    assert not coloured(4, 4) and not coloured(60, 60) and not coloured(24, 50), "the rest stays the image"
    first, second = at(24, 24), at(44, 16)
    assert first[0] - first[2] > 20 and second[2] - second[0] > 20, "each segment in its own colour"


def test_only_patients_that_are_not_trained_on_are_shown(tmp_path: Path) -> None:
    coordinator = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    north = hospital.hospital(tmp_path / "north", "North", coordinator, 30)
    project = hospital.project(coordinator)
    with pytest.raises(InputError, match="known here"):
        examples.require_model(north.config, project.digest)
    approvals.offer(north.config, project)
    with pytest.raises(RefusedError, match="first round"):
        examples.require_model(north.config, project.digest)
    chosen = examples.held_out(north.config, project.digest)
    storage = north.config.storage
    with closing(Catalogue(storage.catalogue, storage.dataset)) as catalogue:
        rule = CohortRule.model_validate(project.document.cohort_rule.model_dump())
        trained_on = {
            entry.study.patient for entry in catalogue.cohort(rule).split(project.document.split.salt)["train"]
        }
        shown = {entry.study.patient for entry in chosen}
        assert len(chosen) == len(shown) == examples.MOST and not shown & trained_on
        for patient in shown | trained_on:
            catalogue.withdraw_patient(patient)
    assert not {entry.study.patient for entry in examples.held_out(north.config, project.digest)} & shown, (
        "an opt-out counts here too"
    )
