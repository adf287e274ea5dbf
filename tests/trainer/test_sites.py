"""The simulated hospitals of the benchmarks: whole patients, every image once, held-out patients nowhere in training."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sites
from benchmarks.algorithms import SETTINGS, megabytes

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


def test_bytes_sent_are_those_of_the_weights_file() -> None:
    assert megabytes(SETTINGS, "fedavg") == pytest.approx(16 * megabytes(SETTINGS, "single"), rel=0.01)
    assert megabytes(SETTINGS, "local") == 0 < megabytes(SETTINGS, "single") < 0.4
