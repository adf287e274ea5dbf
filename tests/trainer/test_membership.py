"""Membership inference: it finds what an overfitted model saw, and nothing in a model trained with enough noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.attacks.membership import infer, likelihood_ratio, told_apart
from trainer.errors import CohortError, SpecError
from trainer.local.data import Samples
from trainer.privacy.gradients import ClippedSum
from trainer.privacy.noise import SecureRandom, add_noise


def samples(count=240, groups=None):
    """Noise with classes by chance: there is nothing to learn but the images themselves."""
    random = np.random.default_rng(5)
    return Samples(random.normal(size=(count, 1, 8, 8)).astype(np.float32), random.integers(0, 3, count), None, groups)


def fresh(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))


def overfitted(images, labels, seed):
    model = fresh(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def noisy(images, labels, seed, multiplier=16.0, steps=20):
    """Every image in each step: mu = √20 / 16, so that no attack has a mean AUC above Φ(mu / √2) = 0.58 (Dong et al. 2022)."""
    model = fresh(seed)
    summed, random = ClippedSum(model, 1.0), SecureRandom()
    for _ in range(steps):
        total, _ = summed(images, labels, np.arange(len(images)))
        step = add_noise(total, 1.0, multiplier, random).float() / len(images)
        flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - 1.0 * step
        torch.nn.utils.vector_to_parameters(flat, model.parameters())
    return model


def test_an_overfitted_model_tells_its_members_and_a_noisy_one_does_not():
    bare, covered = infer(overfitted, samples(), 4), infer(noisy, samples(), 4)
    assert bare.members == bare.others == 120 and bare.shadows == 4
    assert bare.threshold.auc > 0.75  # one in three of the others is right by chance, and surely so
    assert bare.ratio.auc > max(0.85, bare.threshold.auc) and bare.ratio.tpr > 0.1
    for found in (covered.threshold, covered.ratio):  # 0.04 is the deviation of chance with 120 against 120
        assert 0.3 < found.auc < 0.7 and found.tpr < 0.15


def test_rates_are_those_of_the_roc_curve():
    member = np.arange(400) < 200
    assert told_apart(member.astype(float), member).auc == told_apart(member.astype(float), member).tpr == 1.0
    assert told_apart(np.zeros(400), member).auc == 0.5 and told_apart(np.zeros(400), member).tpr == 0.0
    scores = np.concatenate([np.full(200, 2.0), np.zeros(200)])
    scores[200:202] = 3.0  # two false alarms of 200 are 1 %
    assert told_apart(scores, member).tpr == 1.0
    scores[202] = 3.0
    assert told_apart(scores, member).tpr == 0.0 and told_apart(scores, member).auc == 0.985


def test_the_ratio_takes_off_what_is_easy_for_every_model():
    known = np.array([[9.0, 1.0], [8.0, 0.0], [7.0, -1.0], [6.0, -2.0]])
    inside = np.array([[True, True], [True, True], [False, False], [False, False]])
    easy, seen = likelihood_ratio(np.array([6.5, 0.5]), known, inside)
    assert easy < 0 < seen


def test_halves_are_by_patient_and_what_does_not_fit_is_told():
    sizes = []

    def fit(images, labels, seed):
        sizes.append(sorted(np.unique(images[:, 0, 0, 0].numpy(), return_counts=True)[1].tolist()))
        return fresh(seed)

    groups = np.repeat(np.arange(10), 3)
    images = np.broadcast_to(groups[:, None, None, None], (30, 1, 8, 8)).astype(np.float32)
    infer(fit, Samples(images, groups % 3, None, groups), 2)
    assert sizes == [[3] * 5] * 3
    with pytest.raises(CohortError, match="8 patients and this site has 7"):
        infer(fit, samples(70, np.arange(70) % 7))
    with pytest.raises(SpecError, match="even number"):
        infer(fit, samples(), 3)
