"""Histogram landmarks are moved to the project's scale: in order, the same whatever the scanner's gain, in every kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer import segmentation, volumetric
from trainer.cohort import load_cohort
from trainer.geometry import Plane, stack
from trainer.harmonise.landmarks import PERCENTILES, foreground, harmonised, landmarks_of, mapped
from trainer.pixels.prepare import Preparation, prepare_frame
from trainer.pixels.read import read_frames
from trainer.pixels.series import prepare_series
from trainer.spec import LANDMARKS, JobSpec, LandmarkScale, TaskSpec
from trainer.volumes import Volume

from side import CLASSES, build, spec  # isort: skip

SCALE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.6, 0.8, 0.9, 1.0)
seeds = st.integers(0, 2**32 - 1)


def image(seed: int, size: int = 48) -> np.ndarray:
    """Air at 0 and tissue of two kinds."""
    random = np.random.default_rng(seed)
    values = np.abs(random.normal(0, 8, (size, size)))
    values[8:40, 8:40] = random.normal(200, 30, (32, 32))
    values[16:24, 16:32] = random.normal(420, 20, (8, 16))
    return values.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans())
def test_the_landmarks_land_on_the_scale_and_no_two_values_change_places(seed: int, above_mean: bool) -> None:
    values = image(seed)
    out = harmonised(values, SCALE, above_mean)
    own = landmarks_of(out[values > values.mean()] if above_mean else out)
    assert out.dtype == np.float32 and out.shape == values.shape
    assert np.allclose(own, SCALE, atol=0.03)  # a percentile between two values is interpolated
    assert (np.diff(out.ravel()[np.argsort(values, axis=None)]) >= -1e-5).all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.1, 50), st.floats(-2000, 2000), st.booleans())
def test_gain_and_offset_of_a_scanner_leave_no_trace(seed: int, gain: float, offset: float, above_mean: bool) -> None:
    values = image(seed).astype(np.float64)
    assert np.allclose(
        harmonised(values * gain + offset, SCALE, above_mean), harmonised(values, SCALE, above_mean), atol=1e-3
    )


@pytest.mark.parametrize("gamma", [0.5, 0.7, 1.5, 2.0])
def test_a_scanner_s_contrast_curve_is_mostly_undone_where_z_scores_keep_it(gamma: float) -> None:
    values = image(1)
    other = (values / values.max()) ** gamma * 900
    plain, moved = Preparation(size=48), Preparation(size=48, landmarks=SCALE)
    apart = [float(np.abs(prepare_frame(values, one) - prepare_frame(other, one)).mean()) for one in (plain, moved)]
    assert apart[1] < apart[0] / 2, apart


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=LANDMARKS, max_size=LANDMARKS), seeds)
def test_ties_and_images_without_contrast_stay_finite_and_ordered(own: list[int], seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).uniform(-5, 8, 50))
    out = mapped(values, np.sort(np.array(own, np.float64)), np.array(SCALE))
    assert np.isfinite(out).all() and (np.diff(out) >= -1e-5).all()
    assert np.isfinite(prepare_frame(np.full((40, 40), 7.0, np.float32), Preparation(size=32, landmarks=SCALE))).all()


@pytest.mark.parametrize("at", [SCALE[:-1], (*SCALE[:-1], 0.9), tuple(reversed(SCALE)), (*SCALE[:-1], float("nan"))])
def test_a_scale_that_is_none_is_refused(at: tuple[float, ...]) -> None:
    assert len(PERCENTILES) == LANDMARKS
    with pytest.raises(ValidationError):
        LandmarkScale(at=at)


def volume(values: np.ndarray) -> Volume:
    axial = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    planes = [
        Plane(f"2.25.{k}", 1, (0.0, 0.0, 3.0 * k), axial, (1.0, 1.0), values[0].shape) for k in range(len(values))
    ]
    return Volume(values, stack(planes), "2.25.1")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_segmentation_s_volume_is_harmonised_as_a_whole(dimensions: Any) -> None:
    values = np.stack([image(seed) * (1 + seed) for seed in range(4)])
    asked: dict[str, Any] = {
        "name": "segmentation",
        "classes": ["background", "x"],
        "size": 48,
        "dimensions": dimensions,
    }
    prepare = volumetric.prepare_whole if dimensions == 3 else segmentation.prepare_volume
    scale = LandmarkScale(at=SCALE)
    said = prepare(volume(values), TaskSpec(**asked, harmonise=scale))
    by_hand = prepare(volume(harmonised(values, SCALE)), TaskSpec(**asked))
    assert np.allclose(said, by_hand, atol=1e-4) and not np.allclose(said, prepare(volume(values), TaskSpec(**asked)))


def test_a_job_trains_on_harmonised_images_and_keeps_both_kinds_apart(tmp_path: Path) -> None:
    side = build(tmp_path, count=12)
    task = {"name": "classification", "classes": CLASSES, "label": "finding", "size": 32}
    scale = {"at": SCALE}
    plain, moved = (
        load_cohort(JobSpec.model_validate(spec(side, tmp_path / "out", task=task | more))).samples["train"]
        for more in ({}, {"harmonise": scale})
    )
    first = np.asarray(moved.images[moved.rows], np.float32)
    assert len(first) == len(plain.rows) and not np.allclose(first, np.asarray(plain.images[plain.rows], np.float32))
    preparation = Preparation.of(TaskSpec.model_validate(task | {"harmonise": scale}))
    frames = [read_frames(path, "").values[0] for path in sorted(side.dataset.rglob("*.dcm"))]
    made = np.stack([prepare_frame(frame, preparation) for frame in frames])
    for one in first:
        assert np.abs(made - one).reshape(len(made), -1).max(1).min() < 0.01


def test_planes_of_a_series_share_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.stack([image(seed) * (1 + seed) for seed in range(4)])
    monkeypatch.setattr("trainer.pixels.series.read_volume", lambda paths: volume(values))
    said = prepare_series([], Preparation(size=48, landmarks=SCALE), 4)
    monkeypatch.setattr("trainer.pixels.series.read_volume", lambda paths: volume(harmonised(values, SCALE)))
    assert np.allclose(said, prepare_series([], Preparation(size=48), 4), atol=1e-4)
    assert torch.from_numpy(said).isfinite().all() and foreground(values).min() > values.mean()
