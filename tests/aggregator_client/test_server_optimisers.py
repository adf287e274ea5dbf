"""The algorithms that take their own step at the coordinator: each against its paper's formula, written out."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator_client.coordinator.strategies import Update, choose
from aggregator_client.coordinator.strategies.agnostic import onto_simplex
from aggregator_client.errors import MessageError, ProjectError
from tests.aggregator_client.test_strategies import aggregate


def arrays(*values, statistic=0.0):
    return {"w": np.array(values, np.float32), "n.running_mean": np.array([statistic], np.float32)}


def update(site, *values, statistic=0.0, **facts):
    return Update(site, arrays(*values, statistic=statistic), facts.pop("samples", 1), **facts)


def test_fednova_normalises_each_change_by_its_steps():
    current = arrays(1.0, statistic=5.0)
    sites = [update("a", 3.0, statistic=1, samples=1, steps=2), update("b", -7.0, statistic=3, samples=3, steps=8)]
    found = aggregate(choose("fednova", {}), current, *sites)
    tau, direction = 0.25 * 2 + 0.75 * 8, 0.25 * (1 - 3) / 2 + 0.75 * (1 + 7) / 8
    assert np.isclose(found["w"][0], 1 - tau * direction)
    assert np.isclose(found["n.running_mean"][0], 0.25 * 1 + 0.75 * 3)  # statistics are averaged, not stepped along


def test_fednova_is_fedavg_when_all_sites_step_alike_and_counts_momentum_as_the_paper_does():
    current = arrays(1.0, 2.0)
    sites = [update("a", 3.0, 1.0, samples=2, steps=4), update("b", -7.0, 0.0, samples=3, steps=4)]
    nova, mean = (aggregate(choose(name, {}), current, *sites)["w"] for name in ("fednova", "fedavg"))
    assert np.allclose(nova, mean)
    rho, steps = 0.9, 5
    by_hand = sum((1 - rho ** (steps - i)) / (1 - rho) for i in range(steps))  # ‖a‖₁ of heavy-ball momentum
    assert np.isclose(choose("fednova", {"momentum": rho}).effective_steps(steps), by_hand)


def test_fedavgm_gathers_momentum_and_goes_on_after_a_restart():
    one, current = choose("fedavgm", {"momentum": 0.5, "server_lr": 2.0}), arrays(0.0, statistic=0)
    first = aggregate(one, current, update("a", 1.0, statistic=4))
    assert first["w"][0] == 2.0 and first["n.running_mean"][0] == 4
    resumed = choose("fedavgm", {"momentum": 0.5, "server_lr": 2.0})
    resumed.restore(one.state())
    second = aggregate(resumed, first, update("a", 5.0))
    assert np.isclose(second["w"][0], 2 + 2.0 * (0.5 * 1 + (5 - 2)))


@pytest.mark.parametrize(
    ("name", "squared"),
    [
        ("fedadam", lambda v, d: 0.9 * v + 0.1 * d**2),
        ("fedyogi", lambda v, d: v - 0.1 * d**2 * np.sign(v - d**2)),
        ("fedadagrad", lambda v, d: v + d**2),
    ],
)
def test_adaptive_optimisers_take_the_paper_s_step_twice(name, squared):
    args = {"server_lr": 0.3, "beta1": 0.6, "beta2": 0.9, "tau": 0.01}
    strategy, w, m, v = choose(name, args), 1.0, 0.0, 0.01**2
    for target in (2.0, -1.5):
        change = target - w
        m, v = 0.6 * m + 0.4 * change, squared(v, change)
        found = aggregate(strategy, arrays(w, statistic=1), update("a", target, statistic=7))
        w = w + 0.3 * m / (np.sqrt(v) + 0.01)
        assert np.isclose(found["w"][0], w, rtol=1e-5) and found["n.running_mean"][0] == 7
        kept = strategy.state()
        strategy = choose(name, args)
        strategy.restore(kept)
        w = float(found["w"][0])
    assert choose("fedadagrad", {}).beta1 == 0


def test_qfedavg_weighs_by_loss_to_the_q():
    current, L, q = arrays(0.0, 0.0), 10.0, 2.0
    sites = [update("a", 1.0, 0.0, loss=0.5), update("b", 0.0, -2.0, loss=2.0)]
    found = aggregate(choose("qfedavg", {"q": q, "lipschitz": L}), current, *sites)["w"]
    steps, losses = [np.array([-1.0, 0.0]) * L, np.array([0.0, 2.0]) * L], [0.5, 2.0]
    h = sum(q * f ** (q - 1) * (s @ s) + L * f**q for f, s in zip(losses, steps, strict=True))
    assert np.allclose(found, -sum(f**q * s for f, s in zip(losses, steps, strict=True)) / h)
    equal = aggregate(choose("qfedavg", {"q": 0}), current, *sites)["w"]
    assert np.allclose(equal, [0.5, -1.0])
    with pytest.raises(MessageError, match="no loss"):
        choose("qfedavg", {}).check(update("a", 1.0, 1.0), current)


def test_agnostic_weights_follow_the_losses_on_the_simplex():
    strategy, current = choose("agnostic", {"mixture_lr": 0.1}), arrays(0.0)
    sites = [update("a", 1.0, loss=1.0, samples=90), update("b", 3.0, loss=3.0, samples=10)]
    assert np.isclose(aggregate(strategy, current, *sites)["w"][0], 2.0)  # equal at first, whatever the samples
    assert np.isclose(strategy.mixture["a"], 0.4) and np.isclose(strategy.mixture["b"], 0.6)  # (.6, .8) projected
    resumed = choose("agnostic", {"mixture_lr": 0.1})
    resumed.restore(strategy.state())
    assert np.isclose(aggregate(resumed, current, *sites)["w"][0], 0.4 * 1 + 0.6 * 3)
    assert np.isclose(sum(resumed.mixture.values()), 1)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    assert np.allclose(onto_simplex(np.array([0.6, 0.8])), [0.4, 0.6])
    assert np.allclose(onto_simplex(np.array([2.0, 0.1, -1.0])), [1, 0, 0])
    generator = np.random.default_rng(0)
    for _ in range(50):
        point = generator.normal(size=4)
        nearest = onto_simplex(point)
        others = generator.dirichlet([1] * 4, size=200)
        assert np.isclose(nearest.sum(), 1) and (nearest >= 0).all()
        assert ((others - point) ** 2).sum(1).min() >= ((nearest - point) ** 2).sum() - 1e-9


def test_fedper_keeps_the_heads_at_the_sites():
    current = {"body.w": np.zeros(1, np.float32), "head.w": np.full(1, 9.0, np.float32)}
    sites = [Update(s, {"body.w": np.array([v], np.float32)}, 1) for s, v in (("a", 1.0), ("b", 3.0))]
    merged = aggregate(choose("fedper", {}), current, *sites)
    assert merged["body.w"][0] == 2 and merged["head.w"][0] == 9
    with pytest.raises(MessageError, match=r"unknown array 'head\.w'"):
        choose("fedper", {}).check(Update("a", current, 1), current)
    with pytest.raises(ProjectError, match="head must be a list"):
        choose("fedper", {"head": "head."})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fednova", {"momentum": 1.0}),
        ("fedavgm", {"momentum": 1.0}),
        ("fedadam", {"server_lr": 0.0}),
        ("qfedavg", {"q": -1}),
        ("agnostic", {"mixture_lr": -1}),
        ("norm_bound", {"bound": 0}),
        ("trimmed_mean", {"trim": 0.5}),
        ("multi_krum", {"bad": 0.6}),
        ("geometric_median", {"steps": 0}),
        ("centred_clipping", {"radius": -1}),
        ("single_transfer", {"patience": -1}),
    ],
)
def test_a_setting_out_of_range_is_refused(name, args):
    with pytest.raises(ProjectError):
        choose(name, args)
