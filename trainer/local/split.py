"""A site's end of U-shaped split learning: the first and last layers, images and labels stay; only activations leave.

    site   front(images) ──a──▶                    head(b), loss, d loss/d b ──g──▶                      front backward with h
    server                  middle(a) ──b──▶                                    middle backward ──h──▶

Two messages each way a step (Vepakomma et al. 2018, "U-shaped"). With the same batches and plain gradient steps the three parts
together move exactly as the whole network does on one machine. Activations travel sealed; a curious server still sees them, and
activations of early layers can show the image they come from: this method hides labels and weights, not pictures.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trainer.errors import SpecError, WeightsError
from trainer.local.augment import augment
from trainer.local.data import Samples, epoch_order
from trainer.local.loss import loss_of
from trainer.local.training import class_weights, make_optimizer, total_steps
from trainer.networks.resnet import SmallResNet
from trainer.spec import LocalSpec
from trainer.weights import Weights, from_module, into_module


def parts_of(network: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """(front, middle, head) of an installed network that can be cut: small_resnet. SpecError for another.

    front: the stem and first block; middle: the other blocks; head: normalisation, mean over the image, linear layer.
    """
    if not isinstance(network, SmallResNet) or len(network.stages) < 2:
        raise SpecError(
            "This network cannot be split into front, middle and head: use small_resnet with two widths or more."
        )
    return nn.Sequential(network.stem, network.stages[0]), network.stages[1:], _Head(network.norm, network.head)


class _Head(nn.Module):
    """The last layers of SmallResNet: [N, C, H, W] → [N, classes]."""

    def __init__(self, norm: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(functional.relu(self.norm(x)).mean(dim=(2, 3))))


def own_layers(network: nn.Module) -> set[str]:
    """The state names of a splittable network's first and last layers: what a site holds. SpecError for another network."""
    parts_of(network)
    return {name for name in network.state_dict() if not name.startswith("stages.") or name.startswith("stages.0.")}


def own_optimizer(network: nn.Module, local: LocalSpec) -> torch.optim.Optimizer:
    """The optimiser of a site's layers."""
    front, _, head = parts_of(network)
    return make_optimizer(nn.ModuleList([front, head]), local)


class SplitSite:
    """One site's half of a splittable network. Call `forward`, `loss`, `backward` in that order for each batch.

    `network` is the whole one, of which the site uses and trains the first and last layers only.
    `class_weights` float32 [classes].
    """

    def __init__(
        self,
        network: nn.Module,
        samples: Samples,
        optimizer: torch.optim.Optimizer,
        class_weights: torch.Tensor | None = None,
        smoothing: float = 0.0,
        strength: str = "none",
        seed: int = 0,
    ) -> None:
        self.network, self.samples, self.optimizer = network, samples, optimizer
        self.front, _, self.head = parts_of(network)
        self._weights, self._smoothing, self._strength = class_weights, smoothing, strength
        self._generator = torch.Generator().manual_seed(seed)
        self._activations: torch.Tensor | None = None
        self._labels = torch.zeros(0, dtype=torch.int64)

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """Activations of an (augmented) batch after the front layers: float32 [N, C, H, W]."""
        self.front.train()
        self.head.train()
        images, self._labels = self.samples.batch(rows)
        self.optimizer.zero_grad()
        self._activations = self.front(augment(images, self._strength, self._generator))
        return np.asarray(self._activations.detach().numpy())

    def loss(self, features: np.ndarray) -> tuple[np.ndarray, float]:
        """The gradient of the loss with respect to what the middle made of the batch, and the loss itself."""
        check_batch(features, len(self._labels))
        inside = torch.from_numpy(np.array(features)).requires_grad_()
        loss = loss_of(self.head(inside), self._labels, self._weights, self._smoothing)
        loss.backward()
        assert inside.grad is not None
        return inside.grad.numpy(), float(loss.detach())

    def backward(self, gradient: np.ndarray) -> None:
        """Finish the step with the gradient that came back through the middle."""
        if self._activations is None or tuple(gradient.shape) != tuple(self._activations.shape):
            raise WeightsError("The gradient belongs to no batch under way, or has another shape: it is not used.")
        check_batch(gradient, len(self._labels))
        self._activations.backward(torch.from_numpy(np.array(gradient)))
        nn.utils.clip_grad_norm_([*self.front.parameters(), *self.head.parameters()], 5.0)
        self.optimizer.step()
        self._activations = None

    def weights(self) -> Weights:
        """This site's own layers under their names in the whole network."""
        own = own_layers(self.network)
        return {name: value for name, value in from_module(self.network).items() if name in own}

    def adopt(self, arrays: Weights) -> None:
        """Take layers over. Errors: WeightsError when they are not this site's."""
        if set(arrays) != own_layers(self.network):
            raise WeightsError("The layers given are not those of a site in this network: they are not used.")
        into_module(self.network, {**from_module(self.network), **arrays})


def half_of(network: nn.Module, samples: Samples, local: LocalSpec, classes: int, seed: int) -> SplitSite:
    """A site's half as its local settings say; `network` holds the starting layers or gets them by `adopt`."""
    if local.precision != "float32":
        raise SpecError("Split learning trains in float32: leave local.precision out of the project.")
    balanced = local.class_weighted and samples.labels.ndim == 1
    scales = class_weights(samples.class_counts(classes)) if balanced else None
    optimizer = own_optimizer(network, local)
    return SplitSite(network, samples, optimizer, scales, local.label_smoothing, local.augment, seed)


def batches_of(samples: Samples, local: LocalSpec, seed: int) -> list[np.ndarray]:
    """The rows of every batch of one round."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[np.ndarray] = []
    while len(batches) < total_steps(len(samples), local):
        batches += epoch_order(len(samples), local.batch, generator)
    return batches[: total_steps(len(samples), local)]


def check_batch(values: np.ndarray, count: int) -> None:
    """Raise WeightsError unless `values` are float32, finite and of `count` samples."""
    if values.dtype != np.float32 or len(values) != count or not np.isfinite(values).all():
        raise WeightsError("Activations of a split network hold NaN, another batch or another type: they are not used.")
