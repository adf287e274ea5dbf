"""Grouped secure aggregation: the median of the sums, a bad group outvoted, a lost one left out, never fewer than three."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_client.coordinator import grouping
from aggregator_client.errors import ProjectError, TooFewSitesError
from aggregator_client.sheet import plain_words
from tests.aggregator_client import federation
from tests.aggregator_client.federation import samples, shift
from tests.aggregator_client.secagg import test_federation as one_sum
from trainer import weights

NAMES = [f"site {letter}" for letter in "abcdefghi"]


@pytest.fixture
def summing(tmp_path, monkeypatch):
    monkeypatch.setattr(one_sum, "SITES", NAMES)
    made = []

    def make(**options):
        _, keys = federation.keys_of(tmp_path / str(len(made)), *NAMES)
        terms = one_sum.privacy(keys, group_size=3, **options.pop("terms", {}))
        options = {"min_sites": 9, "rounds": 1, "privacy": terms, "deadline_s": 4.0} | options
        made.append(one_sum.Summing(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def drawn(made, number=1):
    return grouping.groups(NAMES, 3, made.project.digest, number)


def group_mean(group, number=1):
    total = sum(map(samples, group))
    return sum(shift(site, number) * samples(site) / total for site in group)


def stepped(step):
    start = one_sum.start_model()
    return {n: v + np.asarray(step, v.dtype) if v.dtype.kind == "f" else v for n, v in start.items()}


@given(st.integers(3, 9), st.integers(0, 40), st.integers(1, 50))
def test_groups_hold_every_site_once_and_none_is_small(size, more, number):
    sites = [f"s{index}" for index in range(3 * size + more)]
    found = grouping.groups(sites, size, "ab" * 32, number)
    assert sorted(site for group in found for site in group) == sorted(sites)
    assert len(found) >= 3 and min(map(len, found)) >= size
    assert found == grouping.groups(sites[::-1], size, "ab" * 32, number)  # told by project and round alone


def test_groups_are_drawn_anew_each_round():
    rounds = {str(grouping.groups(NAMES, 3, "ab" * 32, number)) for number in range(1, 9)}
    assert len(rounds) > 4
    with pytest.raises(TooFewSitesError, match="need 9"):
        grouping.groups(NAMES[:-1], 3, "ab" * 32, 1)


@given(st.integers(3, 9), st.integers(1, 300), st.data())
def test_a_minority_of_groups_cannot_carry_the_median_off(count, size, data):
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    good = generator.uniform(-1, 1, (count, size)).astype(np.float32)
    bad = (count - 1) // 2
    sent = good.copy()
    sent[:bad] = data.draw(st.sampled_from([1e30, -1e30, 5.0]))
    found = grouping.median(list(sent))
    assert np.all(found >= good[bad:].min(0)) and np.all(found <= good[bad:].max(0))


def test_a_norm_bound_scales_the_whole_change():
    vector = np.array([3.0, 4.0], np.float32)
    for most, expected in ((0.0, [3, 4]), (10.0, [3, 4]), (1.0, [0.6, 0.8])):
        found, norm = grouping.bounded(vector, most)
        assert norm == 5.0 and np.allclose(found, expected)


def test_the_median_of_the_groups_sums_makes_the_model(summing):
    made = summing()
    made.run().go()
    step = float(np.median([group_mean(group) for group in drawn(made)]))
    one_sum.assert_close(made.state.model(1), stepped(step), 2e-6)
    assert not (made.root / "run" / "summing").exists()
    # a group's sum is the least that is ever opened: every site dealt to its own group alone
    for group in drawn(made):
        for site in group:
            dealt = made.sums["sum.shares", 1][site].parts
            assert set(dealt) == {"header", "boxes"}


def test_a_bad_hospital_is_outvoted_with_its_group(summing, monkeypatch):
    made = summing()
    bad = drawn(made)[0][0]
    usual = federation.Site.usual

    def poisoned(self, context, request, **changes):
        message = usual(self, context, request, **changes)
        if self.name != bad or context.kind != "train":
            return message
        model = weights.from_bytes(request.parts["model"])
        wild = {n: v + np.asarray(0.9 if v.dtype.kind == "f" else 1, v.dtype) for n, v in model.items()}
        return type(message)(message.header, {"model": weights.to_bytes(wild)})

    monkeypatch.setattr(federation.Site, "usual", poisoned)
    made.run().go()
    means = sorted(group_mean(group) for group in drawn(made)[1:])
    found = made.state.model(1)
    before = one_sum.start_model()
    for name, value in before.items():
        if value.dtype.kind == "f":
            change = found[name] - value
            assert change.min() >= means[0] - 1e-5 and change.max() <= means[1] + 1e-5


def test_a_round_with_too_few_groups_is_not_done_with_less_protection(summing):
    made = summing(deadline_s=3.0)
    lost = drawn(made)[1][:2]
    made.away |= {("sum.masked", 1, site) for site in lost}
    with pytest.raises(TooFewSitesError, match="2 groups left and needs 3"):
        made.run().go()
    assert made.state.last_checkpoint() == 0
    made.away.clear()
    made.run().go()  # the two groups that were opened are not asked again; the third tries once more
    step = float(np.median([group_mean(group) for group in drawn(made)]))
    one_sum.assert_close(made.state.model(1), stepped(step), 2e-6)


@pytest.mark.parametrize(("size", "sites"), [(2, 9), (1, 9), (3, 8), (4, 11)])
def test_terms_that_protect_too_little_cannot_be_signed(size, sites):
    terms = {"mode": "secure_aggregation", "secure_aggregation": {"group_size": size}}
    with pytest.raises(ProjectError, match="no minority can be outvoted"):
        one_sum.draft(min_sites=sites, privacy=terms)


def test_the_sheet_tells_what_groups_mean():
    terms = {"mode": "secure_aggregation", "secure_aggregation": {"group_size": 3, "max_norm": 2.5}}
    told = " ".join(plain_words(one_sum.draft(min_sites=9, privacy=terms)).split())
    for words in ("groups of 3 or more", "sum of 3 or more hospitals", "norm of 2.5", "spoils its own group's sum"):
        assert words in told
    assert "nobody can sort out a bad one" not in told
