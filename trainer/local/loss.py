"""What training minimises, by the kind of label."""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.errors import DivergedError


def loss_of(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float) -> torch.Tensor:
    """Cross-entropy for class indices [N], binary cross-entropy for 0 and 1 [N, classes].

    For masks [N, (D,) H, W] the sum of cross-entropy and 1 - soft Dice (Milletari et al. 2016).
    """
    if labels.ndim == 2:
        soft = labels.float() * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, soft)
    entropy = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    if labels.ndim == 1:
        return entropy
    classes = torch.arange(1, logits.shape[1], device=labels.device)
    truth = (labels[:, None] == classes.view(-1, *[1] * (labels.ndim - 1))).float()  # one_hot, which vmap cannot batch
    said = torch.softmax(logits, 1)[:, 1:]
    space = (0, *range(2, said.ndim))
    overlap = (said * truth).sum(dim=space)
    dice = (2 * overlap + 1.0) / (said.sum(dim=space) + truth.sum(dim=space) + 1.0)
    return entropy + 1 - dice.mean()


def check_finite(loss: torch.Tensor, step: int) -> None:
    """Raise DivergedError when the loss of step `step` (from 0) is NaN or infinite."""
    if not torch.isfinite(loss):
        raise DivergedError(
            f"the loss became {float(loss.detach())} at step {step + 1}; lower the learning rate or look for images"
            f" without contrast"
        )
