"""Metrics against scikit-learn and by hand; absent classes have no AUC."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from trainer.evaluation import classification as c


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_auc_is_scikit_learns_with_ties(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    truth, scores = random.integers(0, 2, count), random.integers(0, 8, count) / 8
    if truth.min() == truth.max():
        assert c.auc(truth == 1, scores) is None
    else:
        assert c.auc(truth == 1, scores) == pytest.approx(roc_auc_score(truth, scores))


def test_macro_auc_is_scikit_learns_and_leaves_absent_classes_out() -> None:
    random = np.random.default_rng(0)
    truth, p = random.integers(0, 3, 90), random.dirichlet([1, 1, 1], 90)
    assert c.macro_auc(truth, p) == pytest.approx(roc_auc_score(truth, p, multi_class="ovr"))
    two = truth.copy()
    two[two == 2] = 0
    known = [c.auc(two == k, p[:, k]) for k in (0, 1)]
    assert c.macro_auc(two, p) == pytest.approx(np.mean(known))
    assert c.macro_auc(np.zeros(5, int), p[:5]) is None


def test_counts_by_hand() -> None:
    truth = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    got = c.metrics(truth, p, ["a", "b"], draws=0)
    assert got["accuracy"] == 0.75 and got["cases"] == 4 and got["auc_interval"] is None
    points = got["per_class"]["a"].pop("set_points")
    assert got["per_class"]["a"] == {
        "cases": 3,
        "auc": pytest.approx(2 / 3, abs=1e-6),
        "sensitivity": pytest.approx(2 / 3, abs=1e-6),
        "specificity": 1.0,
    }
    assert got["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.3, 0.6]).mean(), abs=1e-6)
    absent = c.metrics(np.zeros(4, int), p, ["a", "b"], draws=0)
    assert points["sensitivity_at_specificity_0.9"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    nothing = absent["per_class"]["b"].pop("set_points")
    assert nothing["sensitivity_at_specificity_0.9"] == {"value": None, "interval": None}
    assert absent["auc"] is None and absent["per_class"]["b"] == {
        "cases": 0,
        "auc": None,
        "sensitivity": None,
        "specificity": 0.5,
    }


def test_calibration_error() -> None:
    truth = np.array([0] * 80 + [1] * 20)
    sure = np.tile([0.8, 0.2], (100, 1))
    assert c.calibration_error(truth, sure) == pytest.approx(0.0, abs=1e-9)
    assert c.calibration_error(truth, np.tile([1.0, 0.0], (100, 1))) == pytest.approx(0.2)


def test_the_interval_holds_the_estimate_and_narrows_with_cases() -> None:
    random = np.random.default_rng(1)

    def span(count: int) -> float:
        truth = random.integers(0, 2, count)
        one = np.clip(0.5 + 0.2 * (truth - 0.5) + random.normal(0, 0.2, count), 0.01, 0.99)
        p = np.stack([1 - one, one], 1)
        low, high = c.interval(truth, p) or (0, 0)
        assert low < (c.macro_auc(truth, p) or 0) < high
        return high - low

    assert span(2000) < span(60)


@pytest.mark.parametrize("seed", range(5))
def test_set_points_are_those_of_the_roc_curve(seed: int) -> None:
    from sklearn.metrics import roc_curve

    random = np.random.default_rng(seed)
    positive = random.random(60) > 0.6
    score = np.round(random.random(60) + 0.3 * positive, 1)  # with ties
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    for point in (0.5, 0.8, 0.9, 0.95, 1.0):
        assert c.sensitivity_at(positive, score, point) == pytest.approx(true[1 - false >= point - 1e-9].max())
        assert c.specificity_at(positive, score, point) == pytest.approx(1 - false[true >= point - 1e-9].min())
    assert c.sensitivity_at(positive | True, score, 0.9) is None


def test_several_labels_a_sample_have_their_own_figures() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]] * 5)
    probabilities = np.tile([[0.9, 0.2], [0.8, 0.9], [0.1, 0.6], [0.6, 0.7]], (5, 1))
    got = c.metrics(labels, probabilities, ["a", "b"], draws=20)
    assert got["accuracy"] == 0.75 and got["auc"] == 1.0 and got["cases"] == 20
    assert got["per_class"]["a"]["cases"] == 10 and got["per_class"]["a"]["specificity"] == 0.5
    point = got["per_class"]["b"]["set_points"]["sensitivity_at_specificity_0.9"]
    assert point == {"value": 1.0, "interval": [1.0, 1.0]}
    assert got["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.8, 0.9, 0.9, 0.4, 0.4, 0.7]).mean(), abs=1e-5)
    perfect = c.calibration_error(labels, labels.astype(float))
    assert perfect == 0 and 0 < got["ece"] < 1
