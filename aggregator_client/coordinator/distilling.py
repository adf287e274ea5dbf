"""Trains one student on what the ensemble says about the reference studies (Hinton et al. 2015; FedDF, Lin et al. 2020).

An ensemble needs every site's answer for each new study for ever; the student needs nobody's. It learns from the ensemble's
probabilities alone, never from a label or a site's model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from aggregator_client.errors import FederationError
from trainer import networks, weights
from trainer.local.augment import augment
from trainer.local.data import epoch_order
from trainer.spec import LocalSpec, NetworkSpec, lr_at_round


def train_student(
    network: NetworkSpec, images: np.ndarray, targets: np.ndarray, local: LocalSpec, epochs: int, seed: int
) -> weights.Weights:
    """The student's weights. images [N, C, H, W]; targets: probabilities [N, classes]. Deterministic with a seed.

    The learning rate falls by a half cosine over the epochs. Raises FederationError when training diverges.
    """
    model = networks.build(network.name, network.args)
    weights.into_module(model, networks.initial_weights(network.name, network.args, seed))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=local.lr, weight_decay=local.weight_decay)
    pictures, labels = torch.from_numpy(np.array(images)).float(), torch.from_numpy(np.array(targets)).float()
    model.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr_at_round(local.lr, epoch, epochs)
        for rows in epoch_order(len(pictures), local.batch, generator):
            at = torch.from_numpy(rows)
            said = model(augment(pictures[at], local.augment, generator))
            loss = functional.cross_entropy(said, labels[at])
            if not torch.isfinite(loss):
                raise FederationError("The student's training diverged: lower local.lr in the project.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights.from_module(model.eval())
