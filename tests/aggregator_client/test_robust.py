"""Robust rules: each equals its definition on a small case, and none is carried off by a bad minority."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_client.coordinator.strategies import Update, choose
from aggregator_client.coordinator.strategies import robust as robust_module
from tests.aggregator_client.test_strategies import aggregate

ROWS = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, -1.0], [100.0, -50.0]])
START = {"w": np.array([10.0, 20.0], np.float32), "n.num_batches_tracked": np.array(3)}
RULES = ["median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centred_clipping"]


def updates(rows, counts=None):
    return [
        Update(
            chr(97 + i),
            {"w": (START["w"] + row).astype(np.float32), "n.num_batches_tracked": np.array(7 if counts is None else counts[i])},
            1 + 1000 * i,
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def change(name, args, rows=ROWS):
    return aggregate(choose(name, args), START, *updates(rows))["w"] - START["w"]


def test_median_and_trimmed_mean_look_at_each_coordinate():
    assert np.allclose(change("median", {}), [2, 0])
    assert np.allclose(change("trimmed_mean", {"trim": 0.2}), [2, 0])
    assert np.allclose(change("trimmed_mean", {"trim": 0.0}), ROWS.mean(0), atol=1e-5)
    assert np.allclose(change("trimmed_mean", {"trim": 0.4}), np.median(ROWS, 0))


def test_krum_takes_the_row_with_the_nearest_neighbours():
    squared = ((ROWS[:, None] - ROWS[None]) ** 2).sum(2)
    scores = [np.sort(row)[1:3].sum() for row in squared]  # K - f - 2 = 2 nearest others
    best = np.argsort(scores, kind="stable")
    assert np.allclose(change("krum", {"bad": 0.2}), ROWS[best[0]])
    assert np.allclose(change("multi_krum", {"bad": 0.2, "keep": 2}), ROWS[best[:2]].mean(0))
    assert np.allclose(change("multi_krum", {"bad": 0.2}), ROWS[best[:4]].mean(0))


def test_geometric_median_has_the_least_sum_of_distances():
    found = change("geometric_median", {"steps": 500})
    total = lambda point: np.linalg.norm(ROWS - point, axis=1).sum()  # noqa: E731
    generator = np.random.default_rng(0)
    around = [total(found + offset) for offset in generator.normal(scale=0.05, size=(200, 2))]
    assert total(found) <= min(around) + 1e-4
    assert np.allclose(change("geometric_median", {"steps": 500}, np.array([[0.0, 0], [0, 0], [9, 9]])), 0, atol=1e-3)


def test_centred_clipping_pulls_each_change_within_the_radius_of_the_last_one():
    strategy = choose("centred_clipping", {"radius": 2.0, "steps": 1})
    first = aggregate(strategy, START, *updates(ROWS))["w"] - START["w"]
    scale = np.minimum(1, 2.0 / np.linalg.norm(ROWS, axis=1))[:, None]
    assert np.allclose(first, (ROWS * scale).mean(0), atol=1e-5)
    resumed = choose("centred_clipping", {"radius": 2.0, "steps": 1})
    resumed.restore(strategy.state())
    second = aggregate(resumed, START, *updates(ROWS))["w"] - START["w"]
    off = ROWS - first
    off = off * np.minimum(1, 2.0 / np.linalg.norm(off, axis=1))[:, None]
    assert np.allclose(second, first + off.mean(0), atol=1e-5)


def test_without_a_radius_the_median_distance_is_taken():
    norms = np.linalg.norm(ROWS, axis=1)
    scale = np.minimum(1, np.median(norms) / np.maximum(norms, 1e-12))[:, None]
    assert np.allclose(change("centred_clipping", {"steps": 1}), (ROWS * scale).mean(0), atol=1e-5)


def test_norm_bound_scales_whole_changes_down():
    scale = np.minimum(1, 2.0 / np.linalg.norm(ROWS, axis=1))[:, None]
    assert np.allclose(change("norm_bound", {"bound": 2.0}), (ROWS * scale).mean(0), atol=1e-5)
    assert np.allclose(change("norm_bound", {"bound": 1e6}), ROWS.mean(0), atol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_blocks_of_columns_change_nothing_and_a_wild_count_is_outvoted(name, monkeypatch):
    rows = np.random.default_rng(1).normal(size=(7, 2))
    whole = change(name, {}, rows)
    monkeypatch.setattr(robust_module, "BLOCK", 7)  # one column at a time
    assert np.allclose(change(name, {}, rows), whole, atol=1e-6)
    found = aggregate(choose(name, {}), START, *updates(rows, counts=[5, 5, 6, 6, 6, 2**40, 2**40]))
    assert found["n.num_batches_tracked"] == 6 and found["n.num_batches_tracked"].dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1, 1e6), st.sampled_from(RULES))
def test_three_bad_sites_of_ten_cannot_carry_a_rule_off(seed, size, name):
    """Good changes lie within a ball; whatever three of ten send, the result stays near it (the mean does not)."""
    generator = np.random.default_rng(seed)
    good, bad = generator.normal(scale=0.1, size=(7, 2)), generator.normal(size=(3, 2))
    rows = np.concatenate([good, bad / np.linalg.norm(bad, axis=1)[:, None] * size])
    far = np.linalg.norm(change(name, {}, rows) - good.mean(0))
    # rounding of the float32 model at this size; centred clipping may move by the bad share of the radius a step
    assert far <= 1.5 + 1e-5 * size


def test_the_mean_is_carried_off_where_the_rules_are_not():
    rows = np.concatenate([np.zeros((7, 2)), np.full((3, 2), 1000.0)])
    assert np.linalg.norm(change("fedavg", {"weighting": "equal"}, rows)) > 400
    assert all(np.linalg.norm(change(name, {}, rows)) < 1.5 for name in RULES)
