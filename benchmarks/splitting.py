"""Split learning in one process with the product's own sealed messages: what the row "split" of benchmarks/algorithms.py runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aggregator_client.coordinator.strategies.split import SplitCoordinator, SplitServer
from aggregator_client.keys import coordinator_keys, node_keys
from aggregator_client.split_site import SplitMember
from benchmarks import simulation as sim
from trainer import weights
from trainer.local.augment import augment
from trainer.local.data import Samples, epoch_order
from trainer.local.split import SplitSite, parts_of
from trainer.local.training import make_optimizer

DIGEST = "0" * 64


class Augmented(Samples):
    """Samples whose batches are augmented, as in the trainer's own loop."""

    strength = "none"
    generator = torch.Generator()

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = super().batch(rows)
        return augment(images, self.strength, self.generator), labels


def train_split(settings: sim.Settings, sites: list[sim.Site], seed: int) -> tuple[sim.Weights, list[float], list[int]]:
    """(the joined model, validation after each round, bytes each site sent)."""
    start, names = settings.start(seed), [f"site-{i:03d}" for i in range(len(sites))]
    passes = settings.rounds * settings.local.epochs
    with tempfile.TemporaryDirectory(prefix="fedpacs-split-") as root:
        coordinator = coordinator_keys(Path(root) / "coordinator")
        keys = {name: node_keys(Path(root) / name) for name in names}
        publics = (coordinator.sealing_public, coordinator.signing_public)
        wholes = [settings.build() for _ in sites]
        members = {}
        for i, (name, whole) in enumerate(zip(names, wholes, strict=True)):
            weights.into_module(whole, start)
            front, _, head = parts_of(whole)
            samples = _samples(sites[i].train, settings.local.augment, seed * 100 + i)
            site = SplitSite(front, head, samples, make_optimizer(nn.ModuleList([front, head]), settings.local))
            rows = _batches(len(samples), settings.local.batch, seed * 1000 + i)
            members[name] = SplitMember(name, keys[name], publics, site, rows, DIGEST)
        central = settings.build()
        weights.into_module(central, start)
        middle = parts_of(central)[1]
        optimizer = make_optimizer(middle, settings.local)
        server = SplitServer(middle, optimizer)
        public = {name: (keys[name].sealing_public, keys[name].signing_public) for name in names}
        split = SplitCoordinator(server, coordinator, public, lambda site, blob: members[site].handle(blob), DIGEST)
        trace, model = [], start
        for number in range(passes):
            lr = settings.at(number, passes).lr
            for one in (optimizer, *(member.site.optimizer for member in members.values())):
                for group in one.param_groups:
                    group["lr"] = lr
            split.one_pass(number + 1)
            if (number + 1) % settings.local.epochs == 0:
                model = {**weights.from_module(central), **_own(wholes[0])}
                trace.append(sim.score(settings, model, [site.validation for site in sites]))
        return model, trace, [split.received[name] for name in names]


def _own(whole: nn.Module) -> sim.Weights:
    """A site's layers under the names of the whole network; after a pass they are equal at all sites."""
    return {
        n: v for n, v in weights.from_module(whole).items() if n.startswith(("stem.", "stages.0.", "norm.", "head."))
    }


def _samples(train: Samples, strength: str, seed: int) -> Augmented:
    made = Augmented(train.images, train.labels, train.rows, train.groups)
    object.__setattr__(made, "strength", strength)
    object.__setattr__(made, "generator", torch.Generator().manual_seed(seed))
    return made


def _batches(count: int, batch: int, seed: int) -> Callable[[int], list[np.ndarray]]:
    return lambda number: epoch_order(count, batch, torch.Generator().manual_seed(seed + 7919 * number))
