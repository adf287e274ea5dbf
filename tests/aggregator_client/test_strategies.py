"""Each algorithm equals its definition on a case small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_client.coordinator.strategies import Update, choose
from aggregator_client.errors import MessageError, ProjectError


def model(*values, count=0):
    return {"w": np.array(values, np.float32), "n.num_batches_tracked": np.array(count, np.int64)}


def aggregate(strategy, current, *updates):
    strategy.begin(current)
    for update in updates:
        strategy.check(update, current)
        strategy.add(update)
    return strategy.finish()


def test_fedavg_weights_by_samples_or_equally_and_keeps_integers():
    updates = [Update("a", model(1, 2, count=3), 1), Update("b", model(5, 6, count=9), 3)]
    by_samples = aggregate(choose("fedavg", {}), model(0, 0), *updates)
    equally = aggregate(choose("fedavg", {"weighting": "equal"}), model(0, 0), *updates)
    assert by_samples["w"].tolist() == [4, 5] and equally["w"].tolist() == [3, 4]
    assert by_samples["w"].dtype == np.float32
    assert by_samples["n.num_batches_tracked"] == 9 and by_samples["n.num_batches_tracked"].dtype == np.int64


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 1000)), min_size=1, max_size=8))
def test_fedavg_lies_between_the_sites_and_is_their_weighted_mean(sites):
    updates = [Update(str(i), model(value), samples) for i, (value, samples) in enumerate(sites)]
    (found,) = aggregate(choose("fedavg", {}), model(0), *updates)["w"]
    values, samples = zip(*sites, strict=True)
    assert np.isclose(found, np.average(values, weights=samples), atol=1e-3)
    assert min(values) - 1e-3 <= found <= max(values) + 1e-3


def test_scaffold_moves_by_the_mean_drift_and_renews_its_control_variate():
    strategy = choose("scaffold", {"global_lr": 0.5})
    strategy.participants(1, ["a", "b", "c", "d"])
    current = {"w": np.array([1.0], np.float32)}
    updates = [
        Update("a", {"w": np.array([2.0], np.float32)}, 10, {"delta.w": np.array([0.2], np.float32)}),
        Update("b", {"w": np.array([4.0], np.float32)}, 90, {"delta.w": np.array([0.4], np.float32)}),
    ]
    assert np.allclose(aggregate(strategy, current, *updates)["w"], 1 + 0.5 * ((1 + 3) / 2))
    assert np.allclose(strategy.control["w"], 2 / 4 * 0.3)  # |S|/N · mean of the deltas
    kept = strategy.state()
    resumed = choose("scaffold", {"global_lr": 0.5})
    resumed.restore(kept)
    assert np.allclose(resumed.extra()["global.w"], 0.15)
    with pytest.raises(MessageError, match="NaN"):
        strategy.check(Update("a", current, 1, {"delta.w": np.array([np.nan], np.float32)}), current)


def test_fedbn_keeps_the_normalisation_layers_out_of_the_mean():
    names = ("bn.weight", "bn.running_mean", "conv.weight")
    current = {name: np.zeros(1, np.float32) for name in names}
    sent = [Update(s, {"conv.weight": np.array([v], np.float32)}, 1) for s, v in (("a", 1.0), ("b", 3.0))]
    merged = aggregate(choose("fedbn", {}), current, *sent)
    assert {name: float(value[0]) for name, value in merged.items()} == {
        "bn.weight": 0, "bn.running_mean": 0, "conv.weight": 2
    }  # fmt: skip
    leaking = Update("a", {name: np.ones(1, np.float32) for name in names}, 1)
    with pytest.raises(MessageError, match="holds the unknown array 'bn"):
        choose("fedbn", {}).check(leaking, current)


def test_fedbn_may_keep_the_statistics_alone():
    names = ("bn.weight", "bn.running_mean", "bn.num_batches_tracked", "conv.weight")
    current = {name: np.zeros(1, np.int64 if "num" in name else np.float32) for name in names}
    silo = choose("fedbn", {"keep": "statistics"})
    assert silo.own(current) == {"bn.running_mean", "bn.num_batches_tracked"}
    sent = [
        Update(s, {"conv.weight": np.array([v], np.float32), "bn.weight": np.array([2 * v], np.float32)}, 1)
        for s, v in (("a", 1.0), ("b", 3.0))
    ]
    merged = aggregate(silo, current, *sent)
    assert {name: float(value[0]) for name, value in merged.items()} == {
        "bn.weight": 4, "bn.running_mean": 0, "bn.num_batches_tracked": 0, "conv.weight": 2
    }  # fmt: skip
    with pytest.raises(ProjectError, match="use 'layers' or 'statistics'"):
        choose("fedbn", {"keep": "heads"})


def test_weight_transfer_visits_the_sites_one_by_one():
    cyclic, single = choose("cyclic", {}), choose("single_transfer", {"visits": 2})
    assert [cyclic.participants(n, ["b", "a", "c"]) for n in range(1, 6)] == [["a"], ["b"], ["c"], ["a"], ["b"]]
    assert [single.participants(n, ["b", "a"]) for n in range(1, 6)] == [["a"], ["a"], ["b"], ["b"], ["b"]]
    reshuffled = choose("cyclic", {"order": "reshuffled", "seed": 3})
    for cycle in range(4):
        visited = [reshuffled.participants(cycle * 3 + n, ["a", "b", "c"])[0] for n in (1, 2, 3)]
        assert sorted(visited) == ["a", "b", "c"]
    assert aggregate(cyclic, model(0), Update("a", model(7), 5))["w"].tolist() == [7]


def test_single_transfer_moves_on_when_the_visited_site_no_longer_gains():
    single, sites = choose("single_transfer", {"visits": 6, "patience": 2}), ["a", "b"]
    # round 1 begins with no model of a's; a's metric rises to round 3, then stays
    scores = {1: {"a": 0.5}, 2: {"a": 0.7}, 3: {"a": 0.8}, 4: {"a": 0.8}, 5: {"a": 0.79}}
    assert [single.participants(n, sites, scores) for n in range(1, 8)] == [["a"]] * 5 + [["b"]] * 2
    assert [single.participants(n, sites, {}) for n in range(1, 8)] == [["a"]] * 6 + [
        ["b"]
    ]  # no score: the whole visit
    bad = {n: {"a": 0.9 - n / 100} for n in range(1, 4)}  # training only harms: two rounds of it are enough
    assert [single.participants(n, sites, bad) for n in range(1, 5)] == [["a"]] * 3 + [["b"]]


def test_a_share_of_the_sites_is_drawn_anew_each_round_and_the_same_again_after_a_restart():
    sites = list("abcdefghij")
    drawn = [choose("fedavg", {"share": 0.3, "seed": 5}).participants(n, sites) for n in range(1, 40)]
    assert drawn == [choose("fedprox", {"share": 0.3, "seed": 5}).participants(n, sites[::-1]) for n in range(1, 40)]
    assert all(len(one) == 3 and one == sorted(one) for one in drawn) and set().union(*drawn) == set(sites)
    assert choose("median", {"share": 0.31}).participants(1, sites[:4]) and len(set(map(tuple, drawn))) > 10
    with pytest.raises(ProjectError, match="share"):
        choose("fedavg", {"share": 0})


def test_an_unknown_algorithm_or_setting_is_said():
    with pytest.raises(ProjectError, match="not installed here: choose one of agnostic, centred"):
        choose("magic", {})
    with pytest.raises(ProjectError, match="does not know a setting"):
        choose("fedavg", {"wieghting": "equal"})
