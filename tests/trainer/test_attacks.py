"""The attack kit: an image is recognised from a bare gradient, and not from a noisy one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer import networks
from trainer.attacks.inversion import Search
from trainer.attacks.recognition import psnr, recognised, residual_correlations
from trainer.attacks.trial import Attack, Noise
from trainer.errors import CohortError, SpecError
from trainer.local.data import Samples


def images(count, size=16):
    """Smooth pictures of a common shape, each with its own."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 1, 5, 5, generator=generator) + 1.5 * torch.randn(1, 1, 5, 5, generator=generator)
    made = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return ((made - made.mean((2, 3), keepdim=True)) / made.std((2, 3), keepdim=True)).numpy()


def samples(count=24, groups=None):
    return Samples(images(count), np.arange(count) % 3, None, np.arange(count) if groups is None else groups)


def open_model():
    """A network that keeps what it saw: no normalisation, no pooling."""
    torch.manual_seed(1)
    first, second = torch.nn.Conv2d(1, 8, 5, 2, 2), torch.nn.Conv2d(8, 8, 5, 1, 2)
    return torch.nn.Sequential(
        first, torch.nn.Tanh(), second, torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(512, 3)
    )


def resnet(norm):
    return networks.build("small_resnet", {"in_channels": 1, "classes": 3, "widths": [8, 16], "norm": norm})


def tried(noise, batch=1, model=None, progress=None, steps=80):
    attack = Attack(batch=batch, noise=noise, targets=6, search=Search(steps=steps))
    return attack.run(model or open_model(), samples(), progress)


def test_a_bare_gradient_gives_its_image_away_and_a_noisy_one_does_not():
    steps = []
    made = tried(Noise(1.0, 1.0), progress=lambda done, total: steps.append((done, total)))
    assert made.plain.recognised == made.plain.matched == made.plain.targets == 6 and made.calibrated
    assert made.plain.correlation > 0.9 and made.plain.candidates == 24
    assert made.leaves.recognised <= 2 and made.leaves.correlation < 0.3
    assert made.leaves.psnr < made.plain.psnr - 10
    assert steps[-1] == (6, 6) and made.images.shape == made.found.shape == (6, 1, 16, 16)


def test_without_a_defence_the_step_of_one_image_is_as_open_as_its_gradient():
    made = tried(None)
    assert made.leaves.recognised == 6 and made.leaves == made.plain


def test_an_attacker_with_the_candidates_finds_an_image_in_a_batch_but_not_under_noise():
    net = resnet("group")
    bare, covered = tried(None, 4, net, steps=1), tried(Noise(1.0, 4.0), 4, net, steps=1)
    assert bare.plain.matched == 6 and bare.leaves.matched >= 4 and bare.leaves.candidates == 21
    assert covered.plain.matched == 6 and covered.leaves.matched <= 2


def test_the_mean_of_the_candidates_is_nobodys_picture():
    candidates = torch.from_numpy(images(24))
    mean = candidates.mean(0, keepdim=True)
    assert not any(recognised(residual_correlations(mean, candidates), own) for own in range(24))
    assert all(recognised(residual_correlations(candidates[own : own + 1], candidates), own) for own in range(24))
    assert psnr(candidates[0], candidates[0]) > 100 > 30 > psnr(mean[0], candidates[0])


def test_candidates_are_of_different_patients_and_too_few_are_told():
    with pytest.raises(CohortError, match="8 patients and this site has 4"):
        Attack(batch=1, noise=None).run(open_model(), samples(groups=np.arange(24) % 4))


def test_noise_with_batchnorm_is_refused():
    with pytest.raises(SpecError, match="BatchNorm"):
        tried(Noise(1.0, 1.0), model=resnet("batch"))
