"""Clipped gradients by record or patient, summed with memory that does not grow with the batch.

Abadi et al. 2016, "Deep learning with differential privacy". The gradients of a chunk of units are made at once by torch.func
(vmap over grad), clipped and added up; a network that vmap cannot batch goes unit by unit through plain autograd, with the same
result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from trainer.errors import MemoryLimitError, SpecError
from trainer.local.loss import loss_of

CHUNK_BYTES = 48 << 20
"""Memory for the gradients of one chunk of units."""
MAX_CHUNK = 32
_MARGIN = 1 - 1e-5
"""Keeps a norm rounded in float32 below the bound."""


def require_private(model: nn.Module) -> None:
    """Raises SpecError for a network in which one record's gradient depends on the others of its batch."""
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise SpecError(
            "the network has BatchNorm layers, which mix the images of a batch, so no patient's share can be bounded; use"
            ' GroupNorm for differential privacy (network.args.norm = "group")'
        )
    if any(
        isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats
        for layer in model.modules()
    ):
        raise SpecError(
            "the network keeps running statistics of its training images, which no noise covers; use GroupNorm"
        )


class ClippedSum:
    """Sums over units of the gradient of a unit's mean loss, each clipped to the norm `clip`."""

    def __init__(self, model: nn.Module, clip: float, smoothing: float = 0.0, chunk: int | None = None) -> None:
        self.model, self.clip, self.smoothing = model, clip, smoothing
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.chunk = chunk or max(1, min(MAX_CHUNK, CHUNK_BYTES // (4 * max(self.size, 1))))
        self.batched = True
        """Whether vmap is used; False after a network turned out to be beyond it."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, units: np.ndarray) -> tuple[torch.Tensor, float]:
        """(float32 [P]: the clipped gradients' sum in parameter order, the sum of the units' losses).

        units int [N] numbers the unit of each image. A gradient that is not finite counts as zero. Errors: MemoryLimitError.
        """
        groups = [torch.from_numpy(np.flatnonzero(units == one)) for one in np.unique(units)]
        device = next(self.model.parameters()).device
        total, loss = torch.zeros(self.size, device=device), 0.0
        by_length: dict[int, list[torch.Tensor]] = {}
        for rows in groups:
            by_length.setdefault(len(rows), []).append(rows)
        for same in by_length.values():
            at = 0
            while at < len(same):
                part = torch.stack(same[at : at + self.chunk]).to(device)
                try:
                    loss += self._add(images[part], labels[part], total)
                except torch.OutOfMemoryError as err:
                    self._shrink(err)
                    continue
                at += len(part)
        return total, loss

    def _shrink(self, err: torch.OutOfMemoryError) -> None:
        if self.chunk == 1:
            raise MemoryLimitError(
                "the device has too little memory for the gradient of a single unit; choose a smaller network or image size"
            ) from err
        self.chunk //= 2
        torch.cuda.empty_cache()

    def _add(self, images: torch.Tensor, labels: torch.Tensor, total: torch.Tensor) -> float:
        """Adds the units images [U, K, C, ...] to `total` and returns their losses' sum."""
        if self.batched:
            try:
                gradients, losses = self._by_vmap(images, labels)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation without a batching rule, or one that changes its input in place
                self.batched = False
            else:
                return self._clip_into(gradients, losses, total)
        loss = 0.0
        for one in range(len(images)):
            loss += self._clip_into(*self._by_autograd(images[one], labels[one]), total)
        return loss

    def _by_vmap(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        fixed = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        fixed |= {name: b.detach() for name, b in self.model.named_buffers()}

        def loss(values: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return loss_of(functional_call(self.model, (values, fixed), (image,)), label, None, self.smoothing)

        made, losses = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")(trained, images, labels)
        return [made[name].flatten(1) for name in self.names], losses

    def _by_autograd(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        loss = loss_of(self.model(images), labels, None, self.smoothing)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        made = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return [one.reshape(1, -1) for one in made], loss.detach()[None]

    def _clip_into(self, gradients: Sequence[torch.Tensor], losses: torch.Tensor, total: torch.Tensor) -> float:
        norms = torch.stack([one.norm(dim=1) for one in gradients]).norm(dim=0)
        sound = torch.isfinite(norms)
        factors = torch.where(sound, (self.clip * _MARGIN / norms.clamp_min(1e-12)).clamp_max(1.0), 0.0)
        if not bool(sound.all()):  # 0 · NaN is NaN
            gradients = [one[sound] for one in gradients]
            factors = factors[sound]
        at = 0
        for one in gradients:
            total[at : at + one.shape[1]] += factors @ one
            at += one.shape[1]
        return float(losses[torch.isfinite(losses)].sum())
