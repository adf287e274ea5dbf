"""Re-identification by matching: which of the images that the attacker holds was in the update.

The attacker has the candidates, their labels, the network and the weights it was given; the gradient of each candidate is
compared with what was seen. That is more than a coordinator knows. It is one attack and no proof: privacy.dp's epsilon is.
"""

from __future__ import annotations

import torch

from trainer.attacks.inversion import Gradients


def matches(gradients: Gradients, seen: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """float32 [N] in -1..1: how `seen` [P] lies to the gradient of each of images [N, C, H, W] with labels [N, ...]."""
    made = [
        gradients(image[None, None], label[None, None])[0].detach() for image, label in zip(images, labels, strict=True)
    ]
    return torch.nn.functional.cosine_similarity(torch.stack(made), seen[None].float(), dim=1)


def rank(scores: torch.Tensor, own: int) -> int:
    """How many candidates score at least as high as image `own`, which is 1 where it is told from all others."""
    return int((scores >= scores[own]).sum())
