"""The noisy step against a loop written out by hand, and what a patient can change of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from trainer import networks
from trainer.errors import CohortError, SpecError
from trainer.local.data import Samples, Slices
from trainer.local.loss import loss_of
from trainer.privacy.gradients import ClippedSum, require_private
from trainer.privacy.noise import SecureRandom, add_noise
from trainer.privacy.training import train_privately, units_of
from trainer.spec import LocalSpec, PrivateSteps

RESNET = ("small_resnet", {"classes": 3, "widths": [8, 16], "norm": "group"})
UNET = ("monai_unet", {"classes": 3, "widths": [8, 16], "norm": "group"})


def network(which):
    torch.manual_seed(0)
    return networks.build(*which).train()


def data(which, count=7, size=16):
    random = torch.Generator().manual_seed(1)
    shape = (count,) if which is RESNET else (count, size, size)
    return torch.randn(count, 1, size, size, generator=random), torch.randint(0, 3, shape, generator=random)


def by_hand(model, images, labels, units, clip):
    """The definition: one backward pass a unit, clip, add."""
    total = 0
    for unit in np.unique(units):
        model.zero_grad()
        loss_of(model(images[units == unit]), labels[units == unit], None, 0.0).backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        total = total + flat * min(1.0, clip / float(flat.norm()))
    return total


@pytest.mark.parametrize("which", [RESNET, UNET], ids=["resnet", "unet"])
@pytest.mark.parametrize("units", [list(range(7)), [0, 0, 0, 1, 1, 2, 3]], ids=["records", "patients"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("clip", [0.05, 1e3])
def test_clipped_sums_are_those_of_the_definition(which, units, batched, clip):
    model, (images, labels), units = network(which), data(which), np.array(units)
    summed = ClippedSum(model, clip, chunk=2)
    summed.batched = batched
    total, _ = summed(images, labels, units)
    assert summed.batched == batched  # vmap takes these networks
    assert torch.allclose(total, by_hand(model, images, labels, units, clip), atol=1e-4 * min(clip, 1), rtol=1e-3)


def test_no_patient_moves_the_sum_by_more_than_the_bound():
    model, (images, labels) = network(RESNET), data(RESNET)
    units, clip = np.array([0, 0, 0, 1, 1, 2, 3]), 0.05
    images[:3] *= 1e4
    summed = ClippedSum(model, clip)
    whole, _ = summed(images, labels, units)
    without, _ = summed(images[3:], labels[3:], units[3:])
    assert 0.9 * clip < float((whole - without).norm()) <= clip


def test_an_image_that_gives_no_number_counts_as_nothing():
    model, (images, labels) = network(RESNET), data(RESNET)
    images[2] = float("nan")
    rest = np.arange(7) != 2
    for batched in (True, False):
        summed = ClippedSum(model, 0.1, chunk=3)
        summed.batched = batched
        total, loss = summed(images, labels, np.arange(7))
        expected, _ = summed(images[rest], labels[rest], np.arange(6))
        assert torch.allclose(total, expected, atol=1e-6) and np.isfinite(loss)


class Stubborn(torch.nn.Module):
    """A network that asks for a value, which vmap cannot do."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(256, 3)

    def forward(self, x):
        return self.layer(x.flatten(1)) * (2.0 if x.sum().item() > 0 else 1.0)


def test_a_network_beyond_vmap_falls_back_to_one_by_one():
    model, (images, labels) = Stubborn(), data(RESNET)
    summed = ClippedSum(model, 0.1)
    total, _ = summed(images, labels, np.arange(7))
    assert not summed.batched
    assert torch.allclose(total, by_hand(model, images, labels, np.arange(7), 0.1), atol=1e-5)


def test_memory_does_not_grow_with_the_batch(monkeypatch):
    model, widest = network(RESNET), []
    summed = ClippedSum(model, 0.1, chunk=4)
    made = summed._by_vmap
    monkeypatch.setattr(summed, "_by_vmap", lambda x, y: widest.append(len(x)) or made(x, y))
    images, labels = data(RESNET, 30)
    summed(images, labels, np.arange(30))
    assert max(widest) == 4 and sum(widest) == 30
    large = ClippedSum(torch.nn.Linear(4000, 4000), 0.1)  # 64 MB of gradients a unit
    assert large.chunk == 1


def test_noise_is_gaussian_of_the_deviation_the_accountant_is_told_and_on_the_grid():
    total = torch.linspace(-1, 1, 200_001)
    noisy = add_noise(total, 0.5, 3.0, SecureRandom())
    residue = (noisy - total.double()).numpy() / 1.5
    assert kstest(residue, "norm").pvalue > 1e-9  # chance once in a thousand million
    assert abs(residue.std() - 1) < 0.02 and abs(np.corrcoef(residue[:100_000], residue[100_000:-1])[0, 1]) < 0.03
    steps = noisy / (1.5 * 2.0**-30)
    assert torch.allclose(steps, steps.round(), atol=1e-4)


def test_each_unit_is_drawn_by_chance_with_the_rate():
    random = SecureRandom()
    draws = [len(random.chosen(1000, 0.1)) for _ in range(200)]
    assert 95 < np.mean(draws) < 105 and 7 < np.std(draws) < 12.5  # binomial: 100 and 9.5
    assert len(random.chosen(50, 1.0)) == 50


def steps(**changes):
    values = {"unit": "patient", "noise_multiplier": 0.5, "clip": 1.0, "rate": 0.3, "steps": 6, "expected_units": 6.0}
    return PrivateSteps(**(values | changes))


def samples(groups):
    images, labels = data(RESNET, len(groups))
    return Samples(images.numpy(), labels.numpy(), None, np.array(groups))


def test_the_same_seed_never_gives_the_same_noise():
    found = []
    for _ in range(2):
        model = network(RESNET)
        done = train_privately(model, samples(range(20)), LocalSpec(lr=0.01), steps(), seed=5)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert done.steps == 6
    assert not torch.equal(*found) and float((found[0] - found[1]).norm()) > 0.01


def test_empty_draws_are_steps_of_noise_alone():
    model = network(RESNET)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    train_privately(model, samples(range(4)), LocalSpec(lr=0.01), steps(rate=1e-9, steps=2), seed=0)
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_without_much_noise_it_learns():
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).normal(0, 0.3, (60, 1, 16, 16)).astype(np.float32)
    images[labels == 1, :, 4:12, 4:12] += 2
    images[labels == 2, :, ::4] += 2
    model = network(RESNET)
    local = LocalSpec(lr=0.01, augment="none")
    private = steps(noise_multiplier=0.05, rate=0.5, steps=40, expected_units=30.0)
    train_privately(model, Samples(images, labels, None, np.arange(60)), local, private, seed=0)
    with torch.no_grad():
        said = model.eval()(torch.from_numpy(images)).argmax(1).numpy()
    assert (said == labels).mean() > 0.8


def test_what_cannot_be_private_is_refused_with_a_sentence():
    with pytest.raises(SpecError, match=r"BatchNorm.*GroupNorm"):
        require_private(networks.build("small_resnet", {"classes": 3}))
    with pytest.raises(SpecError, match='unit = "patient"'):
        units_of(samples([0, 1, 1]), steps(unit="record"))
    with pytest.raises(SpecError, match="which patient"):
        units_of(Slices(np.zeros((2, 2, 8, 8)), np.zeros(0), np.arange(2), None), steps())
    with pytest.raises(CohortError, match="none"):
        units_of(samples([]), steps())
