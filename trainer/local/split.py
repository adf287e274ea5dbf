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
from trainer.local.data import Samples
from trainer.networks.resnet import SmallResNet
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


class SplitSite:
    """One site. Call `forward`, `loss`, `backward` in that order for each batch."""

    def __init__(self, front: nn.Module, head: nn.Module, samples: Samples, optimizer: torch.optim.Optimizer) -> None:
        self.front, self.head, self.samples, self.optimizer = front, head, samples, optimizer
        self._activations: torch.Tensor | None = None
        self._labels = torch.zeros(0, dtype=torch.int64)

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """Activations of a batch after the front layers."""
        self.front.train()
        self.head.train()
        images, self._labels = self.samples.batch(rows)
        self.optimizer.zero_grad()
        self._activations = self.front(images)
        return np.asarray(self._activations.detach().numpy())

    def loss(self, features: np.ndarray) -> tuple[np.ndarray, float]:
        """The gradient of the loss with respect to what the middle made of the batch, and the loss itself."""
        check_batch(features, len(self._labels))
        inside = torch.from_numpy(np.array(features)).requires_grad_()
        loss = functional.cross_entropy(self.head(inside), self._labels)
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
        """This site's own layers as named arrays."""
        return {f"{side}.{n}": v for side, part in self._sides() for n, v in from_module(part).items()}

    def adopt(self, arrays: Weights) -> None:
        """Take layers over. Errors: WeightsError when they are not this site's."""
        for side, part in self._sides():
            into_module(part, {n.removeprefix(f"{side}."): v for n, v in arrays.items() if n.startswith(f"{side}.")})

    def _sides(self) -> tuple[tuple[str, nn.Module], ...]:
        return (("front", self.front), ("head", self.head))


def check_batch(values: np.ndarray, count: int) -> None:
    """Raise WeightsError unless `values` are float32, finite and of `count` samples."""
    if values.dtype != np.float32 or len(values) != count or not np.isfinite(values).all():
        raise WeightsError("Activations of a split network hold NaN, another batch or another type: they are not used.")
