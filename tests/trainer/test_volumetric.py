"""The 3D task: volume cache, class-balanced patches, sliding window, and a training on real MR from DICOM."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_segmentation import CLASSES, HIPPOCAMPUS, files, job_spec, needs_data, side
from typer.testing import CliRunner

from trainer import job, networks, volumetric
from trainer.cli import app
from trainer.errors import PixelError
from trainer.evaluation.segmentation import case_scores, hd95, summary
from trainer.geometry import from_canonical, to_canonical
from trainer.labels.segmentation import read_segmentation
from trainer.local.patches import Patches
from trainer.local.training import train
from trainer.pixels.cache import Wanted
from trainer.pixels.volume_cache import StoredVolume, VolumeCache
from trainer.spec import LocalSpec, TaskSpec
from trainer.volumes import read_volume

TASK = {"name": "segmentation", "classes": CLASSES, "spacing": 1.0, "dimensions": 3, "patch": [32, 48, 32]}


def volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Noise with a bright cube of class 1 and one voxel of class 2."""
    random = np.random.default_rng(seed)
    out = np.zeros((2, *shape), np.float32)
    out[0] = random.normal(size=shape)
    out[0, 2:6, 2:6, 2:6] += 4
    out[1, 2:6, 2:6, 2:6] = 1
    out[1, -1, -1, -1] = 2
    return out


def stored(tmp_path: Path, *shapes: tuple[int, int, int]) -> list[StoredVolume]:
    wanted = [Wanted(f"2.25.{n}", "s", partial(volume, shape, n)) for n, shape in enumerate(shapes)]
    found, failures = VolumeCache(tmp_path, "d").fill(wanted)
    assert failures == {} and None not in found
    return [one for one in found if one]


def test_the_cache_makes_once_notices_damage_and_forgets(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(1)
        return volume((8, 9, 10))

    cache = VolumeCache(tmp_path, "d")
    first = cache.fill([Wanted("2.25.7", "a", make)])[0][0]
    assert first and first.shape == (8, 9, 10) and sorted(first.places) == [0, 1, 2]
    assert np.array_equal(first.open(), volume((8, 9, 10)).astype(np.float16))
    cache.fill([Wanted("2.25.7", "a", make)])
    assert len(made) == 1
    data = bytearray(first.path.read_bytes())
    data[-5] ^= 1
    first.path.write_bytes(data)
    again = cache.fill([Wanted("2.25.7", "a", make)])[0][0]
    assert len(made) == 2 and again and np.array_equal(again.open(), volume((8, 9, 10)).astype(np.float16))
    cache.fill([Wanted("2.25.7", "b", make)])
    assert len(made) == 3  # another source
    assert cache.forget({"2.25.8"}) == 0 and cache.forget({"2.25.7"}) == 1
    assert [p.name for p in cache.folder.iterdir()] == ["lock"]


def test_a_volume_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    def spoiled() -> np.ndarray:
        raise PixelError("instance 2.25.1 cannot be decoded; send it again")

    wanted = [Wanted("2.25.1", "s", spoiled), Wanted("2.25.2", "s", lambda: np.full((2, 4, 4, 4), np.nan))]
    found, failures = VolumeCache(tmp_path, "d").fill([*wanted, Wanted("2.25.3", "s", lambda: volume((8, 8, 8)))])
    assert found[:2] == [None, None] and found[2] is not None
    assert "cannot be decoded" in failures["2.25.1"] and "no finite volume" in failures["2.25.2"]


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(7, 24)] * 3), st.integers(0, 9))
def test_patches_are_cut_where_the_voxels_are_and_padded_outside(tmp_path_factory, shape, seed) -> None:
    one = stored(tmp_path_factory.mktemp("v"), shape)[0]
    samples = Patches.of([one], (12, 12, 12), 3)
    images, masks = samples.draw(np.array([0, 1, 2]), torch.Generator().manual_seed(seed))
    assert images.shape == (3, 1, 12, 12, 12) and masks.shape == (3, 12, 12, 12) and len(samples) == 3
    whole = one.open()[0].astype(np.float32)
    for image, mask in zip(images.numpy()[:, 0], masks.numpy(), strict=True):
        assert set(np.unique(image)) <= set(np.unique(whole))
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert (image[mask == 1] > whole[one.open()[1] != 1].min()).all()
        inside = np.prod([min(12, side) for side in shape])
        assert (image != one.low).sum() <= inside
    again = samples.draw(np.array([0, 1, 2]), torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], images) and torch.equal(again[1], masks)


def test_patches_are_balanced_over_classes(tmp_path: Path) -> None:
    """Class 2 is one voxel of 27,000 and stands in a third of the patches all the same."""
    one = stored(tmp_path, (30, 30, 30))[0]
    samples = Patches.of([one], (8, 8, 8), 1)
    generator = torch.Generator().manual_seed(0)
    shown = [set(samples.draw(np.array([0]), generator)[1].unique().tolist()) for _ in range(400)]
    for index in (1, 2):
        assert 0.25 < np.mean([index in found for found in shown]) < 0.55
    assert samples.class_counts(4).tolist() == [1, 1, 1, 0]


def test_the_window_slides_over_the_whole_volume_and_back_to_the_scanners_grid() -> None:
    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2:] == (16, 16, 16)
            return torch.cat([-x, x], 1) * 50

    random = np.random.default_rng(0)
    data = torch.from_numpy(random.normal(size=(1, 40, 21, 9)).astype(np.float32))
    task = TaskSpec(name="segmentation", classes=["b", "bright"], dimensions=3, patch=(16, 16, 16))
    got = volumetric.slide(Bright(), data, task, "cpu")
    clear = data[0].abs() > 0.05
    assert got.shape == (2, 40, 21, 9) and torch.equal(got.argmax(0)[clear] == 1, data[0][clear] > 0)


@needs_data
def test_prediction_is_laid_back_on_the_series_own_planes() -> None:
    found = read_volume(files())
    task = TaskSpec.model_validate({**TASK, "classes": ["b", "bright"], "spacing": None})

    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-x, x], 1) * 50

    got = volumetric.predict_volume(Bright(), found, task)
    z = (found.values - found.values.mean()) / found.values.std()
    assert got.shape == (2, *found.values.shape)
    assert np.array_equal(got.argmax(0)[np.abs(z) > 0.05], (z > 0)[np.abs(z) > 0.05])


@settings(max_examples=40, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3), st.integers(0, 99))
def test_whole_volumes_come_to_one_orientation_from_any_plane(order, signs, seed) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * np.array(signs) * random.uniform(0.5, 3, 3)
    affine[:3, :3] += random.uniform(-0.05, 0.05, (3, 3))
    values = random.normal(size=(3, 4, 5))
    moved, new = to_canonical(values, affine, whole=True)
    assert np.array_equal(from_canonical(moved, affine, whole=True), values)
    assert [int(np.abs(new[:3, axis]).argmax()) for axis in range(3)] == [2, 1, 0]
    assert all(new[2 - axis, axis] > 0 for axis in range(3))
    for index in np.ndindex(*moved.shape):
        back = np.round(np.linalg.solve(affine, new @ [*index, 1])[:3]).astype(int)
        assert values[tuple(back)] == moved[index]


def test_a_seed_decides_a_3d_training(tmp_path: Path) -> None:
    samples = Patches.of(stored(tmp_path, (20, 20, 20), (16, 24, 18)), (16, 16, 16), 4)
    local = LocalSpec(epochs=3, batch=4, lr=5e-3, augment="style")
    args = {"classes": 3, "dimensions": 3, "widths": [8, 16], "units": 1}
    arrays = []
    for _ in range(2):
        model = networks.build("monai_unet", args)
        from trainer import weights

        weights.into_module(model, networks.initial_weights("monai_unet", args, 0))
        done = train(model, samples, local, classes=3, seed=1)
        arrays.append(weights.from_module(model))
    assert done.steps == 6 and all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


@needs_data
@pytest.mark.slow
def test_hippocampus_trains_in_3d_from_dicom_and_predicts_a_segmentation(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    side(tmp_path)
    network = {
        "name": "monai_unet",
        "args": {"classes": 3, "dimensions": 3, "widths": [8, 16, 32], "units": 1},
    }
    local = {"epochs": 16, "batch": 4, "lr": 1e-2, "schedule": "cosine"}
    result = job.run(job_spec(tmp_path, tmp_path / "model", task=TASK, network=network, local=local))
    torch.set_num_threads(before)
    metrics = result["metrics"]
    assert result["samples"] == 12 and metrics["cases"] == 1 and metrics["dice"] > 0.3, metrics  # untrained: under 0.1
    assert 0 < metrics["hd95"] < 40 and set(result["subgroups"]) >= {"sex", "age", "manufacturer"}
    arguments = ["predict", str(HIPPOCAMPUS / "hippocampus_033"), "--model", str(tmp_path / "model")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)["outputs"][0]
    found = read_volume(files("hippocampus_033"))
    ours = read_segmentation(tmp_path / "out" / said["output"], found.stack, found.frame_of_reference, CLASSES)
    truth = read_segmentation(HIPPOCAMPUS / "hippocampus_033/seg_binary.dcm", found.stack, "", CLASSES)
    native = summary([case_scores(truth, ours, CLASSES)], CLASSES)["dice"]
    assert native == pytest.approx(metrics["dice"], abs=0.03)


def test_memory_does_not_grow_with_the_volumes(tmp_path: Path) -> None:
    """Twenty-four volumes of 4 MB each are drawn from in a process whose peak grows by less than 40 MB."""
    code = f"""
import resource, sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from functools import partial
from pathlib import Path
import numpy as np, torch
from trainer.local.patches import Patches
from trainer.pixels.cache import Wanted
from trainer.pixels.volume_cache import VolumeCache
def make(n):
    return np.random.default_rng(n).normal(size=(2, 64, 128, 128)).astype(np.float16).round()
def fill(count):
    wanted = [Wanted(f"2.25.{{n}}", "s", partial(make, n)) for n in range(count)]
    found, _ = VolumeCache(Path({str(tmp_path)!r}), "d").fill(wanted)
    samples = Patches.of(found, (16, 16, 16), 1)
    generator = torch.Generator().manual_seed(0)
    for rows in range(0, count, 2):
        samples.draw(np.array([rows, rows + 1]), generator)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
few = fill(4)
print(few, fill(24))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    few, many = map(int, done.stdout.split())
    assert (many - few) / 1024 < 40, (few, many)


def test_hd95_by_hand_and_as_monai_says() -> None:
    a, b = np.zeros((2, 20, 20, 20), bool)
    a[5:10, 5:10, 5:10] = True
    b[7:12, 5:10, 5:10] = True
    assert hd95(a, b, (2.0, 1.0, 1.0)) == 4.0 and hd95(a, a, (1, 1, 1)) == 0.0
    assert hd95(a, np.zeros_like(a), (1, 1, 1)) is None
    from monai.metrics import compute_hausdorff_distance

    random = np.random.default_rng(0)
    for _ in range(3):
        a = np.pad(random.random((6, 7, 8)) > 0.6, 2)
        b = np.pad(random.random((6, 7, 8)) > 0.6, 2)
        tensors = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (a, b)]
        theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=[2.0, 1.0, 0.5])
        assert hd95(a, b, (2.0, 1.0, 0.5)) == pytest.approx(float(theirs), abs=1e-5)


def test_a_class_only_one_reader_saw_is_missed_not_left_out() -> None:
    truth, said = np.zeros((2, 4, 4, 4), int)
    truth[0, 0, :2] = 1
    said[0, 0, 1:3] = 1
    truth[3] = 2
    got = summary([case_scores(truth, said, ["b", "x", "y", "z"], (1, 1, 1))] * 3, ["b", "x", "y", "z"])
    assert got["per_class"]["y"] == {"cases": 3, "dice": 0.0, "hd95": None, "missed": 3}
    assert got["per_class"]["z"]["cases"] == 0 and got["dice"] == 0.25 and got["dice_interval"] == [0.25, 0.25]
