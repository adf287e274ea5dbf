"""Gradient inversion: images made from nothing but an update.

Zhu et al. 2019 ("Deep leakage from gradients") search images whose gradient is the one that was seen; Geiping et al. 2020
("Inverting gradients") compare directions (cosine), step by the sign and prefer smooth images. The attacker here knows the
network, the weights it was given, the labels and how images are normalised; an update of many steps is taken for one gradient.

Whether what was found is the image: trainer.attacks.recognition.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from trainer.local.loss import loss_of


@dataclass(frozen=True)
class Search:
    """How long and how the attacker searches. `smooth` is the weight of total variation."""

    steps: int = 300
    lr: float = 0.1
    smooth: float = 1e-3


def frozen_norm(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorm layers normalise each batch by itself and keep no statistics, as in a training step."""
    made = copy.deepcopy(model).train()
    for layer in made.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    return made


class Gradients:
    """Gradients of the mean loss of small batches, many batches at once, as one vector each in the parameters' order."""

    def __init__(self, model: nn.Module, smoothing: float = 0.0) -> None:
        self.model, self.smoothing = frozen_norm(model), smoothing
        self.values = {name: p.detach() for name, p in self.model.named_parameters()}

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """images [T, K, C, H, W], labels [T, K, ...] → float32 [T, P], differentiable in the images."""

        def loss(values: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return loss_of(functional_call(self.model, values, (image,)), label, None, self.smoothing)

        made = vmap(grad(loss), in_dims=(None, 0, 0))(self.values, images, labels)
        return torch.cat([made[name].flatten(1) for name in self.values], 1)


def invert(
    model: nn.Module,
    seen: torch.Tensor,
    labels: torch.Tensor,
    shape: tuple[int, ...],
    search: Search,
    seed: int = 0,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Images float32 [T, K, *shape] whose gradients point where `seen` [T, P] does; labels [T, K, ...] are known.

    `seen` is a gradient, or the change of the weights with its sign turned. The start is chance, from `seed`.
    """
    gradients = Gradients(model, smoothing)
    generator = torch.Generator().manual_seed(seed)
    images = (0.1 * torch.randn(*labels.shape[:2], *shape, generator=generator)).requires_grad_()
    wanted = torch.nn.functional.normalize(seen.detach().float(), dim=1)
    optimizer = torch.optim.Adam([images], lr=search.lr)
    for step in range(search.steps):
        for group in optimizer.param_groups:
            group["lr"] = search.lr * (1.0 if step < search.steps * 0.6 else 0.3 if step < search.steps * 0.85 else 0.1)
        made = torch.nn.functional.normalize(gradients(images, labels), dim=1)
        apart = (1 - (made * wanted).sum(1)).sum()
        (slope,) = torch.autograd.grad(apart + search.smooth * _variation(images), images)
        images.grad = slope.sign()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(-4, 4)  # images are normalised to mean 0 and deviation 1
    return images.detach()


def _variation(images: torch.Tensor) -> torch.Tensor:
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean(dim=(-1, -2, -3, -4)).sum()
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().mean(dim=(-1, -2, -3, -4)).sum()
    return down + across
