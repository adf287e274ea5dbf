"""Local training: learns, repeats exactly with a seed, resumes exactly, says when the loss is NaN."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainer import networks, weights
from trainer.errors import CohortError, DivergedError, MemoryLimitError
from trainer.evaluation.classification import macro_auc, predict
from trainer.local import training
from trainer.local.algorithms import FedProx, Scaffold, choose
from trainer.local.augment import augment_pair
from trainer.local.backward import Precision
from trainer.local.checkpoint import Checkpoints
from trainer.local.data import Samples, epoch_order, pool
from trainer.spec import LocalSpec, lr_at_round

ARGS = {"classes": 2, "widths": [8, 16]}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(count: int, seed: int = 0) -> Samples:
    """Noise with a bright disc left (0) or right (1)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.normal(0, 1, (count, 1, 16, 16)).astype(np.float16)
    for image, label in zip(images, labels, strict=True):
        image[0, 5:11, 2 + 8 * label : 6 + 8 * label] += 1.5
    return Samples(images, labels)


def fit(samples: Samples, local: LocalSpec, seed: int = 1, **more) -> tuple[dict[str, np.ndarray], training.Trained]:
    model = networks.build("small_resnet", ARGS)
    weights.into_module(model, networks.initial_weights("small_resnet", ARGS, 0))
    more.setdefault("algorithm", choose(local))
    done = training.train(model, samples, local, classes=2, seed=seed, **more)
    return weights.from_module(model), done


def test_it_learns_held_out_images() -> None:
    ours, done = fit(blobs(128), LocalSpec(epochs=6, batch=16, lr=3e-3))
    model = networks.build("small_resnet", ARGS)
    weights.into_module(model, ours)
    held = blobs(100, seed=9)
    value = macro_auc(held.labels, predict(model, held))
    assert value is not None and value > 0.9
    assert done.samples == 128 and done.steps == 48


def test_a_seed_decides_everything() -> None:
    local = LocalSpec(epochs=2, batch=16, augment="style")
    first, again, other = (fit(blobs(40), local, seed)[0] for seed in (5, 5, 6))
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert any(not np.array_equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold"])
@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_a_training_killed_in_the_middle_resumes_to_the_same_result(tmp_path, algorithm: str, stop_at: int) -> None:
    local = LocalSpec(epochs=3, batch=16, augment="style", algorithm=algorithm, mu=0.1)
    samples = blobs(40)
    whole, done = fit(samples, local)

    class Killed(BaseException):
        pass

    def report(facts: dict[str, object]) -> None:
        if facts["step"] == stop_at:
            raise Killed

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        fit(samples, local, checkpoints=Checkpoints(path, "key", every=0), report=report)
    steps: list[object] = []
    again, resumed = fit(
        samples, local, checkpoints=Checkpoints(path, "key", 1e9), report=lambda f: steps.append(f["step"])
    )
    assert steps[0] == stop_at + 1
    assert all(np.array_equal(whole[n], again[n]) for n in whole)
    assert resumed.loss == pytest.approx(done.loss) and all(
        np.array_equal(done.state[n], resumed.state[n]) for n in done.state
    )
    fresh: list[object] = []
    fit(samples, local, checkpoints=Checkpoints(path, "other", 1e9), report=lambda f: fresh.append(f["step"]))
    assert fresh[0] == 1  # a checkpoint of other settings is ignored
    path.write_bytes(path.read_bytes()[:100])
    fresh.clear()
    fit(samples, local, checkpoints=Checkpoints(path, "key", 1e9), report=lambda f: fresh.append(f["step"]))
    assert fresh[0] == 1  # so is a damaged one


def test_mixed_precision_learns_repeats_and_resumes(tmp_path) -> None:
    local = LocalSpec(epochs=4, batch=16, lr=3e-3, precision="mixed")
    samples = blobs(96)
    whole, done = fit(samples, local)
    exact, _ = fit(samples, local.model_copy(update={"precision": "float32"}))
    assert any(not np.array_equal(whole[n], exact[n]) for n in whole)
    assert all(value.dtype != np.float16 for value in whole.values())
    model = networks.build("small_resnet", ARGS)
    weights.into_module(model, whole)
    held = blobs(100, seed=9)
    value = macro_auc(held.labels, predict(model, held))
    assert value is not None and value > 0.9

    class Killed(BaseException):
        pass

    def report(facts: dict[str, object]) -> None:
        if facts["step"] == 9:
            raise Killed

    checkpoints = Checkpoints(tmp_path / "checkpoint.safetensors", "key", every=0)
    with pytest.raises(Killed):
        fit(samples, local, checkpoints=checkpoints, report=report)
    facts = json.loads(bytes(weights.load(checkpoints.path)["facts"]))
    assert facts["scaling"]["scale"] >= 1024
    again, resumed = fit(samples, local, checkpoints=checkpoints)
    assert all(np.array_equal(whole[n], again[n]) for n in whole) and resumed.loss == pytest.approx(done.loss)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_that_overflows_in_half_precision_is_left_out(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device: float16 autocast and its loss scaling not run")
    model = torch.nn.Linear(4, 2).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precision = Precision(device, mixed=True)
    before, scale = model.weight.detach().clone(), precision.state() or precision.scaler.state_dict()
    logits = precision.forward(model, torch.ones(3, 4, device=device))
    assert logits.dtype == torch.float32
    precision.scaler.scale(logits.sum()).backward()
    assert model.weight.grad is not None
    model.weight.grad[0, 0] = torch.inf
    precision.unscale(optimizer)
    precision.step(optimizer)
    assert torch.equal(model.weight, before) and precision.state()["scale"] == scale["scale"] / 2
    optimizer.zero_grad()
    precision.scaler.scale(precision.forward(model, torch.ones(3, 4, device=device)).sum()).backward()
    precision.unscale(optimizer)
    assert torch.allclose(model.weight.grad, torch.full((2, 4), 3.0, device=device))  # their true size
    precision.step(optimizer)
    assert torch.allclose(model.weight, before - 3.0)


def test_a_loss_that_is_not_a_number_is_said() -> None:
    samples = blobs(32)
    samples.images[3] = np.nan
    with pytest.raises(DivergedError, match="the loss became nan at step"):
        fit(samples, LocalSpec(augment="none"))


def test_too_few_images_are_said() -> None:
    with pytest.raises(CohortError, match="this site has 1"):
        fit(blobs(1), LocalSpec())


def test_no_epoch_ends_in_a_batch_of_one() -> None:
    for count in (2, 16, 17, 33, 100):
        rows = epoch_order(count, 16, torch.Generator().manual_seed(0))
        assert min(len(r) for r in rows) >= 2 and sorted(np.concatenate(rows)) == list(range(count))
        assert training.total_steps(count, LocalSpec(batch=16, epochs=3)) == 3 * len(rows)


def test_class_weights_balance_within_a_limit_and_leave_absent_classes_out() -> None:
    got = training.class_weights(np.array([80, 20, 0])).numpy()
    assert got[2] == 0 and got[1] / got[0] == pytest.approx(4)
    assert (got * [80, 20, 0]).sum() == pytest.approx(100)
    assert training.class_weights(np.array([1000, 1])).numpy()[1] / training.class_weights(np.array([1000, 1])).numpy()[
        0
    ] == pytest.approx(4)


def test_fedprox_stays_nearer_to_the_start() -> None:
    start = networks.initial_weights("small_resnet", ARGS, 0)

    def drift(mu: float) -> float:
        local = LocalSpec(epochs=4, batch=16, algorithm="fedprox", mu=mu, optimizer="sgd", lr=0.05, weight_decay=0)
        ours = fit(blobs(64), local)[0]
        return float(sum(((ours[n] - start[n]) ** 2).sum() for n in ours if "running" not in n and "num" not in n))

    assert drift(1.0) < 0.8 * drift(0.0)


def test_fedprox_adds_the_gradient_of_the_squared_distance() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    prox = FedProx()
    prox.begin(model, LocalSpec(mu=0.5))
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 2.0
    model.weight.grad = torch.zeros_like(model.weight)
    prox.adjust_gradients(model)
    assert torch.allclose(model.weight.grad, 0.5 * (model.weight.detach() - start))


def test_scaffold_control_variate_is_the_mean_gradient_of_plain_sgd() -> None:
    """With zero controls and plain SGD, option II's new c_i is (w_0 - w_K) / (K lr): the mean step."""
    local = LocalSpec(
        epochs=2, batch=16, algorithm="scaffold", optimizer="sgd", lr=0.01, weight_decay=0, augment="none"
    )
    start = networks.initial_weights("small_resnet", ARGS, 0)
    ours, done = fit(blobs(32), local)
    expected = (start["head.weight"] - ours["head.weight"]) / (4 * 0.01)
    assert np.allclose(done.state["local.head.weight"], expected, atol=1e-5)
    second = fit(blobs(32), local, algorithm=Scaffold({"global.head.weight": expected, "local.head.weight": expected}))[
        1
    ]
    assert np.allclose(second.state["delta.head.weight"], second.state["local.head.weight"] - expected, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scaffold_moves_each_step_by_what_the_site_drifts_from_all(optimizer: str) -> None:
    """One step: the optimiser's own, then -lr · (c - c_i), in the step's own units and not through the optimiser."""
    local = LocalSpec(steps=1, batch=32, algorithm="scaffold", optimizer=optimizer, lr=0.01, augment="none")
    shape = networks.initial_weights("small_resnet", ARGS, 0)["head.weight"].shape
    whole, own = np.full(shape, 0.5, np.float32), np.full(shape, 0.2, np.float32)
    plain = fit(blobs(32), local)[0]["head.weight"]
    control = Scaffold({"global.head.weight": whole, "local.head.weight": own})
    moved = fit(blobs(32), local, algorithm=control)[0]["head.weight"]
    assert np.allclose(moved - plain, -0.01 * (whole - own), atol=1e-6)


def test_scaffold_does_not_correct_a_step_that_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a gradient overflowed in half precision: the weights stay where they were."""
    monkeypatch.setattr(Precision, "step", lambda precision, optimizer: False)
    local = LocalSpec(steps=1, batch=32, algorithm="scaffold", optimizer="sgd", lr=0.01, augment="none")
    start = networks.initial_weights("small_resnet", ARGS, 0)["head.weight"]
    control = Scaffold({"global.head.weight": np.full(start.shape, 0.5, np.float32)})
    assert np.array_equal(fit(blobs(32), local, algorithm=control)[0]["head.weight"], start)


def test_norm_statistics_are_re_estimated_and_weights_left() -> None:
    model = networks.build("small_resnet", ARGS)
    before = weights.from_module(model)
    training.reestimate_norm(model, blobs(64))
    after = weights.from_module(model)
    assert not np.allclose(before["norm.running_mean"], after["norm.running_mean"])
    assert all(np.array_equal(before[n], after[n]) for n in before if "running" not in n and "num_" not in n)
    assert not model.training and model.norm.momentum == 0.1


def test_pooling_keeps_rows_and_patients_apart() -> None:
    a = Samples(np.arange(4.0).reshape(4, 1, 1, 1), np.array([0, 1]), np.array([3, 1]), np.array([0, 0]))
    b = Samples(np.full((1, 1, 1, 1), 9.0), np.array([1]), None, np.array([0]))
    both = pool([a, b])
    images, labels = both.batch(np.array([0, 1, 2]))
    assert images.ravel().tolist() == [3, 1, 9] and labels.tolist() == [0, 1, 1]
    assert both.groups is not None and both.groups.tolist() == [0, 0, 1]


def test_the_learning_rate_falls_by_a_half_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *a: object, **k: object) -> object:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(blobs(32), LocalSpec(epochs=3, batch=16, lr=1.0, schedule="cosine"))
    assert seen == pytest.approx([1.0, 1.0, 0.525, 0.525, 0.05, 0.05])
    assert [lr_at_round(1.0, n, 3) for n in range(3)] == pytest.approx([1.0, 0.525, 0.05])
    assert lr_at_round(2.0, 0, 1) == 2.0


@pytest.mark.parametrize("strength", ["light", "style"])
def test_augmentation_moves_masks_with_their_images_and_keeps_the_scale(strength: str) -> None:
    masks = torch.zeros(8, 32, 32, dtype=torch.long)
    masks[:, 10:22, 6:20] = 2
    images = (masks[:, None] > 0).float() * 3 - 1
    moved, labels = augment_pair(images, masks, strength, torch.Generator().manual_seed(0))
    assert set(labels.unique().tolist()) == {0, 2} and not torch.equal(labels, masks)
    inside, outside = moved[:, 0][labels == 2], moved[:, 0][labels == 0]
    assert inside.median() > 1 > outside.median()
    assert ((moved[:, 0] > 0.6) == (labels == 2)).float().mean() > 0.9
    assert torch.allclose(moved.std(), images.std(), rtol=0.25) and torch.allclose(
        moved.mean(), images.mean(), atol=0.3
    )
    same = augment_pair(images, masks, "none", torch.Generator())
    assert same[0] is images and same[1] is masks


class Small(torch.nn.Module):
    """A device whose memory holds at most `room` images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.head = torch.nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return self.head(x.flatten(1))


@pytest.mark.parametrize("weighted", [True, False])
def test_out_of_memory_makes_smaller_batches_with_the_same_gradients_and_is_said(weighted: bool) -> None:
    samples = blobs(48)
    local = LocalSpec(epochs=2, batch=24, augment="none", class_weighted=weighted)
    results, events = [], []
    for room in (24, 7):
        torch.manual_seed(0)
        model = Small(room)
        training.train(model, samples, local, classes=2, seed=0, report=events.append)
        results.append(model.head.weight.detach().clone())
    assert torch.allclose(results[0], results[1], atol=1e-5)
    said = [e for e in events if e["event"] == "smaller-batch"]
    assert [e["parts"] for e in said] == [2, 4]
    with pytest.raises(MemoryLimitError, match="even for two images"):
        training.train(Small(1), samples, local, classes=2, seed=0)


@pytest.mark.parametrize("weighted", [True, False])
def test_accumulated_parts_give_the_whole_batches_gradients(weighted: bool) -> None:
    samples = blobs(50)
    results = []
    for parts in (1, 4, 200):
        local = LocalSpec(epochs=2, batch=24, augment="none", class_weighted=weighted, accumulate=parts)
        torch.manual_seed(0)
        model = Small(24 if parts == 1 else 12 if parts == 200 else 6)  # how many images it bears at once
        training.train(model, samples, local, classes=2, seed=0)
        results.append(model.head.weight.detach().clone())
    assert torch.allclose(results[0], results[1], atol=1e-5) and torch.allclose(results[0], results[2], atol=1e-5)
