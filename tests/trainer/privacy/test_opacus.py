"""Opacus as an outside judge: the same clipped sums, the same step, the same privacy loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.optimizers import DPOptimizer

from trainer import networks
from trainer.local.data import Samples
from trainer.local.loss import loss_of
from trainer.local.training import make_optimizer
from trainer.privacy.accountant import Spend, privacy_loss, rdp_loss
from trainer.privacy.gradients import ClippedSum
from trainer.privacy.training import train_privately
from trainer.spec import LocalSpec, PrivateSteps

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the images need no gradient
RESNET = ("small_resnet", {"classes": 3, "widths": [8, 16], "norm": "group"})
UNET = ("monai_unet", {"classes": 3, "widths": [8, 16], "norm": "group"})
COUNT, SIZE = 7, 16
DELTA = 1e-5


def network(which):
    torch.manual_seed(0)
    return networks.build(*which).train()


def data(which):
    random = torch.Generator().manual_seed(1)
    shape = (COUNT,) if which is RESNET else (COUNT, SIZE, SIZE)
    return torch.randn(COUNT, 1, SIZE, SIZE, generator=random), torch.randint(0, 3, shape, generator=random)


def theirs(model, clip, optimizer):
    """(the model with Opacus's hooks, its optimiser, which clips each record to `clip` and adds no noise)."""
    hooked = GradSampleModule(model, loss_reduction="sum")
    private = DPOptimizer(
        optimizer, noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=COUNT, loss_reduction="mean"
    )
    return hooked, private


def backward(model, images, labels):
    """The losses of the records one by one, added: each record's own gradient and nothing else reaches the hooks."""
    said = model(images)
    sum(loss_of(said[i : i + 1], labels[i : i + 1], None, 0.0) for i in range(len(said))).backward()


@pytest.mark.parametrize("which", [RESNET, UNET], ids=["resnet", "unet"])
@pytest.mark.parametrize("batched", [True, False], ids=["vmap", "one by one"])
def test_each_record_gives_the_gradient_that_opacus_finds(which, batched):
    model, (images, labels) = network(which), data(which)
    hooked = GradSampleModule(network(which), loss_reduction="sum")
    backward(hooked, images, labels)
    expected = torch.cat([p.grad_sample.flatten(1) for p in hooked.parameters()], dim=1)
    unclipped = ClippedSum(model, 1e9)
    unclipped.batched = batched
    for one in range(COUNT):
        found, _ = unclipped(images[one : one + 1], labels[one : one + 1], np.arange(1))
        assert torch.allclose(found, expected[one], atol=1e-5, rtol=1e-3)
    assert unclipped.batched == batched


@pytest.mark.parametrize("which", [RESNET, UNET], ids=["resnet", "unet"])
@pytest.mark.parametrize("part", [0.3, 1.0, 3.0], ids=["all clipped", "some clipped", "none clipped"])
def test_clipped_sums_are_those_of_opacus(which, part):
    model, (images, labels) = network(which), data(which)
    clip = part * typical_norm(model, images, labels)
    other = network(which)
    hooked, private = theirs(other, clip, torch.optim.SGD(other.parameters(), 0.1))
    backward(hooked, images, labels)
    private.clip_and_accumulate()
    expected = torch.cat([p.summed_grad.flatten() for p in hooked.parameters()])
    found, _ = ClippedSum(model, clip, chunk=3)(images, labels, np.arange(COUNT))
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def typical_norm(model, images, labels):
    """The median of the records' gradient norms."""
    made = ClippedSum(model, 1e9)
    norms = [made(images[i : i + 1], labels[i : i + 1], np.arange(1))[0].norm() for i in range(COUNT)]
    return float(torch.stack(norms).median())


def test_a_training_with_hardly_any_noise_ends_where_that_of_opacus_ends():
    """Three steps on all records: sums, division by the expected number and the optimiser's step together."""
    images, labels = data(RESNET)
    model, local = network(RESNET), LocalSpec(lr=0.01, optimizer="sgd", augment="none")
    clip = 0.7 * typical_norm(model, images, labels)
    other = network(RESNET)
    hooked, private = theirs(other, clip, make_optimizer(other, local))
    for _ in range(3):
        private.zero_grad()
        backward(hooked, images, labels)
        private.step()
    plan = PrivateSteps(unit="record", noise_multiplier=1e-7, clip=clip, rate=1.0, steps=3, expected_units=float(COUNT))
    train_privately(model, Samples(images.numpy(), labels.numpy(), None, np.arange(COUNT)), local, plan, seed=0)
    start, ours, expected = (flat(one) for one in (network(RESNET), model, other))
    assert float((ours - expected).norm()) < 1e-3 * float((expected - start).norm())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


SPENDS = [
    [Spend(1.0, 0.008, 2500)],
    [Spend(0.8, 0.1, 40)],
    [Spend(2.0, 0.5, 60)],
    [Spend(1.0, 0.05, 100), Spend(1.5, 0.2, 30)],
]


@pytest.mark.parametrize("spends", SPENDS, ids=["long", "loud", "half", "two projects"])
def test_the_privacy_loss_is_that_of_opacus(spends):
    history = [(one.noise_multiplier, one.rate, one.steps) for one in spends]
    renyi, tight = RDPAccountant(), PRVAccountant()
    renyi.history, tight.history = list(history), list(history)
    error = 0.02
    upper = tight.get_epsilon(DELTA, eps_error=error)  # PRV: an upper bound at most 2 · error above the true one
    ours = privacy_loss(spends, DELTA).epsilon
    assert upper - 2 * error - 0.01 < ours < upper + 0.01
    assert rdp_loss(spends, DELTA).epsilon == pytest.approx(renyi.get_epsilon(DELTA), rel=0.02)
