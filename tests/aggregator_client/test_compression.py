"""Compression: each form within its bound, unbiased where it claims to be, and nothing lost over rounds with feedback."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_client.compression import BLOCK, TransferSettings, compress, decompress
from aggregator_client.errors import MessageError
from trainer.weights import from_bytes, to_bytes

GENERATOR = np.random.default_rng(0)
GIVEN = {
    "conv.weight": GENERATOR.normal(size=(64, 16, 3, 3)).astype(np.float32),
    "head.weight": GENERATOR.normal(size=(5, 333)).astype(np.float32),
    "head.bias": np.zeros(5, np.float32),
    "norm.running_var": np.ones(200, np.float32),
    "norm.num_batches_tracked": np.array(3),
}
CHANGE = {
    n: (0.01 * GENERATOR.normal(size=v.shape)).astype(np.float32) for n, v in GIVEN.items() if v.dtype.kind == "f"
}
TRAINED = {n: v + CHANGE[n] if n in CHANGE else v + 4 for n, v in GIVEN.items()}
KINDS = ["none", "fp16", "bf16", "int8", "int4", "topk", "lowrank"]
RAW = len(to_bytes(TRAINED))


def there_and_back(kind, seed=0, **changes):
    setting = TransferSettings(compression=kind, **changes)
    data, _ = compress(TRAINED, GIVEN, setting, seed)
    return data, decompress(data, GIVEN, setting)


@pytest.mark.parametrize(
    ("kind", "ratio", "error"),
    [("none", 1.02, 1e-6), ("fp16", 0.55, 2e-5), ("bf16", 0.55, 2e-4), ("int8", 0.32, 5e-4), ("int4", 0.22, 8e-3)],
)
def test_rounded_forms_are_as_small_and_as_near_as_they_say(kind, ratio, error):
    data, found = there_and_back(kind)
    assert len(data) <= ratio * RAW
    assert found.keys() == TRAINED.keys()
    for name, value in TRAINED.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert np.abs(found[name] - value).max() <= error
    assert found["norm.num_batches_tracked"] == 7
    assert np.array_equal(found["norm.running_var"], TRAINED["norm.running_var"])
    assert np.array_equal(found["head.bias"], TRAINED["head.bias"])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_stochastic_rounding_is_right_on_average(kind):
    truth = CHANGE["conv.weight"]
    step = np.abs(truth).max() / (127 if kind == "int8" else 7)
    found = (
        np.mean([there_and_back(kind, seed)[1]["conv.weight"] for seed in range(200)], axis=0) - GIVEN["conv.weight"]
    )
    assert np.abs(found - truth).max() < step * 5 * 0.5 / np.sqrt(200)  # five standard errors
    nearest = np.round(truth / step) * step
    assert np.abs(nearest - truth).max() > step * 5 * 0.5 / np.sqrt(200)  # which rounding to the nearest would break


@pytest.mark.parametrize("kind", ["topk", "lowrank"])
def test_error_feedback_loses_nothing_over_the_rounds(kind):
    setting = TransferSettings(compression=kind, share=0.1, rank=2)
    arrived, left = {n: np.zeros_like(c) for n, c in CHANGE.items()}, None
    for number in range(60):
        data, left = compress(TRAINED, GIVEN, setting, number, left)
        found = decompress(data, GIVEN, setting)
        arrived = {n: total + found[n] - GIVEN[n] for n, total in arrived.items()}
        if number == 0:
            assert len(data) < 0.5 * RAW
            once = np.linalg.norm(found["conv.weight"] - TRAINED["conv.weight"])
    for name, total in arrived.items():
        wanted = 60 * CHANGE[name]
        assert np.allclose(total + left.get(name, 0), wanted, atol=2e-3)
    rate = np.linalg.norm(arrived["conv.weight"] / 60 - CHANGE["conv.weight"])
    assert rate < 0.5 * once  # without feedback every round would lose the same again


def test_topk_sends_the_largest_and_lowrank_a_low_rank_change_exactly():
    _, found = there_and_back("topk", share=0.1)
    moved = np.flatnonzero((found["conv.weight"] - GIVEN["conv.weight"]).ravel())
    size = np.abs(CHANGE["conv.weight"]).ravel()
    assert set(moved) <= set(np.argsort(size)[-len(moved) - 1 :]) and len(moved) >= 0.09 * size.size
    flat = np.outer(np.arange(64), np.ones(144)).reshape(64, 16, 3, 3).astype(np.float32) / 64
    setting = TransferSettings(compression="lowrank", rank=1)
    model = {"conv.weight": np.zeros_like(flat)}
    data, _ = compress({"conv.weight": flat}, model, setting, 0)
    assert np.allclose(decompress(data, model, setting)["conv.weight"], flat, atol=1e-3) and len(data) < 700


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 3 * BLOCK))
def test_equal_arguments_give_equal_bytes_for_any_size(kind, seed, size):
    generator = np.random.default_rng(size)
    before, after = ({"w": generator.normal(size=size).astype(np.float32)} for _ in range(2))
    setting = TransferSettings(compression=kind)
    data, _ = compress(after, before, setting, seed)
    assert data == compress(after, before, setting, seed)[0]
    assert decompress(data, before, setting)["w"].shape == (size,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_that_does_not_fit_the_model_is_refused(kind):
    setting = TransferSettings(compression=kind)
    data, _ = compress(TRAINED, GIVEN, setting, 0)
    sent = from_bytes(data)
    for name in sent:
        for change in (
            {n: v for n, v in sent.items() if n != name},
            {**sent, name: sent[name].ravel()[:-1]} if sent[name].size > 64 else {**sent, "more": sent[name]},
        ):
            with pytest.raises(MessageError):
                decompress(to_bytes(change), GIVEN, setting)
    if kind == "topk":
        with pytest.raises(MessageError):
            decompress(to_bytes({**sent, "conv.weight#at": sent["conv.weight#at"][::-1].copy()}), GIVEN, setting)
        beyond = sent["conv.weight#at"].copy()
        beyond[-1] = 2**31
        with pytest.raises(MessageError):
            decompress(to_bytes({**sent, "conv.weight#at": beyond}), GIVEN, setting)


def test_what_stays_at_the_site_is_not_missed():
    setting = TransferSettings(compression="fp16")
    own = frozenset({"head.weight", "head.bias"})
    data, _ = compress({n: v for n, v in TRAINED.items() if n not in own}, GIVEN, setting, 0)
    assert decompress(data, GIVEN, setting, own).keys() == GIVEN.keys() - own
