"""The simulated hospitals of the benchmarks: whole patients, every image once, held-out patients nowhere in training."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sites
from benchmarks.algorithms import CHEST, megabytes, summary
from trainer import weights
from trainer.local.training import train

pytestmark = pytest.mark.skipif(not sites.DATA.exists(), reason="the shared test data is not beside this checkout")


@pytest.fixture(scope="module")
def patients() -> sites.Patients:
    return sites.load()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_patients_are_never_torn_apart(patients: sites.Patients, seed: int) -> None:
    parts = sites.split(patients, seed)
    assert sum(map(len, parts)) == len(patients.labels) == 1199
    owners = [set(patients.patients[part]) for part in parts]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    for rows, dealt in (
        (parts[0], sites.dirichlet(patients, parts[0], 4, 0.3, seed)),
        (parts[2], sites.evenly(patients, parts[2], 4, seed)),
    ):
        assert sorted(np.concatenate(dealt)) == sorted(rows)
        seen = [set(patients.patients[part]) for part in dealt]
        assert len(set.union(*seen)) == sum(map(len, seen))


def test_dirichlet_sites_differ_and_held_out_ones_do_not(patients: sites.Patients) -> None:
    train, _, test = sites.split(patients, 0)

    def spread(dealt: list[np.ndarray]) -> float:
        shares = [np.bincount(patients.labels[part], minlength=3) / len(part) for part in dealt]
        return float(np.ptp(shares, axis=0).max())

    assert spread(sites.dirichlet(patients, train, 4, 0.3, 0)) > 0.4 > 0.15 > spread(sites.evenly(patients, test, 4, 0))


def test_a_style_changes_the_look_and_none_changes_nothing(patients: sites.Patients) -> None:
    random = np.random.default_rng(0)
    image = patients.pixels[0]
    assert np.array_equal(sites.Style().apply(image, random), image)
    for style in sites.STYLES[1:]:
        assert np.abs(style.apply(image, random).astype(int) - image).mean() > 3


def test_a_simulated_round_is_the_strategy_s_and_its_bytes_are_counted(patients: sites.Patients) -> None:
    from dataclasses import replace

    from aggregator_client.coordinator.strategies import choose
    from benchmarks import simulation as sim

    network = {"in_channels": 1, "classes": 3, "widths": [4, 8], "norm": "batch"}
    settings = replace(CHEST, args=network, size=32, rounds=2).but(epochs=1, augment="none")
    two = [sim.Site(*(sites.prepare(patients, rows, sites.Style(), 32, 0),) * 3) for rows in (range(24), range(24, 64))]
    done = sim.federate(settings, two, choose("fedavg", {}), 0)
    assert done.sent == [2 * int(1e6 * megabytes(settings))] * 2 and len(done.trace) == 2
    models = []
    for i, site in enumerate(two):  # the first round by hand
        model = settings.build()
        weights.into_module(model, settings.start(0))
        train(model, site.train, settings.at(0, 2), classes=3, seed=10 + i)
        models.append(weights.from_module(model))
    first = sim.federate(replace(settings, rounds=2), two, choose("fedavg", {}), 0, rounds=1, trace_every=9)
    by_hand = weights.average(models, [24, 40])
    assert first.models.keys() == by_hand.keys()
    again = sim.federate(settings, two, choose("fedavg", {}), 0)
    assert all(np.array_equal(again.models[n], done.models[n]) for n in by_hand)
    assert all(np.allclose(first.models[n], by_hand[n], atol=1e-5) for n in by_hand)


def test_the_summary_compares_with_pooled_data() -> None:
    common = {"task": "chest", "scenario": "iid", "seconds": 1.0, "sent": [2_000_000, 4_000_000]}
    rows = [
        {**common, "algorithm": "cds", "seed": 0, "test": 0.9, "validation": 0.8, "per_site": [0.9, 0.9], "trace": []},
        {**common, "algorithm": "fedavg", "seed": 0, "test": 0.81, "validation": 0.78, "per_site": [0.7, 0.9],
         "trace": [0.5, 0.75, 0.77]},
    ]  # fmt: skip
    found = summary(rows)["fedavg"]
    assert found["percent_of_cds"] == 90 and found["rounds_to_95_percent"] == [3] and found["mb_sent_per_site"] == 3
    assert found["worst_site"] == 0.7 and found["bias_last_minus_first"] == found["spread"] == 0.2
