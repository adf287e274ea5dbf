"""What noisy steps spend: published figures, closed forms, and the laws any bound must keep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from trainer.privacy import accountant
from trainer.privacy.accountant import PLD, RDP, Spend, privacy_loss, rdp_loss


def test_known_figures_of_dp_sgd():
    """q 0.008, sigma 1, 2500 steps, delta 1e-5; and Abadi et al. 2016's q 0.01, sigma 4, 10 000 steps (1.26)."""
    spend = [Spend(1.0, 0.008, 2500)]
    assert privacy_loss(spend, 1e-5).epsilon == pytest.approx(2.265, abs=0.005)
    assert rdp_loss(spend, 1e-5).epsilon == pytest.approx(2.514, abs=0.005)
    published = [Spend(4.0, 0.01, 10_000)]
    assert 0.9 < privacy_loss(published, 1e-5).epsilon <= rdp_loss(published, 1e-5).epsilon < 1.26


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
def test_the_plain_gaussian_is_bounded_closely_by_its_closed_form(sigma):
    """Balle and Wang 2018: delta of one Gaussian mechanism, exactly."""
    epsilon = privacy_loss([Spend(sigma, 1.0, 1)], 1e-5).epsilon
    exact = norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)
    assert 0.98e-5 < exact <= 1e-5 * (1 + 1e-6)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.8, 4.0), st.floats(0.01, 0.5), st.integers(1, 60), st.integers(1, 60), st.floats(1.05, 2.0))
def test_more_steps_spend_more_and_more_noise_less(sigma, rate, steps, further, louder):
    here = privacy_loss([Spend(sigma, rate, steps)], 1e-5).epsilon
    assert privacy_loss([Spend(sigma, rate, steps + further)], 1e-5).epsilon >= here
    assert privacy_loss([Spend(sigma * louder, rate, steps)], 1e-5).epsilon <= here
    assert here <= rdp_loss([Spend(sigma, rate, steps)], 1e-5).epsilon * 1.001 + 1e-3


def test_rounds_add_up_as_one_training_would():
    whole = privacy_loss([Spend(1.0, 0.1, 30)], 1e-5)
    assert privacy_loss([Spend(1.0, 0.1, 10)] * 3, 1e-5) == whole
    assert privacy_loss([Spend(1.0, 0.1, 30), Spend(2.0, 0.1, 1)], 1e-5).epsilon > whole.epsilon
    assert privacy_loss([], 1e-5).epsilon == 0


def test_what_the_first_accountant_cannot_do_the_second_bounds(monkeypatch):
    def fails(*_):
        raise OverflowError

    spend = [Spend(1.0, 0.008, 2500)]
    accountant._loss.cache_clear()
    with monkeypatch.context() as broken:
        broken.setattr(accountant, "PLDAccountant", fails)
        found = privacy_loss(spend, 1e-5)
    accountant._loss.cache_clear()
    assert found.accountant == RDP and found.epsilon == rdp_loss(spend, 1e-5).epsilon
    assert privacy_loss(spend, 1e-5).accountant == PLD


@pytest.mark.parametrize("wrong", [(0.0, 0.1, 1), (math.inf, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0)])
def test_a_spend_without_meaning_is_refused(wrong):
    with pytest.raises(ValueError, match=r"noise_multiplier|rate"):
        Spend(*wrong)
    with pytest.raises(ValueError, match="delta"):
        privacy_loss([], 1.0)
