"""Federated algorithms in one process, with the trainer's own local steps: what benchmarks/algorithms.py times and
scores.

No transport, sealing or processes here: those have their own benchmarks. Every function takes prepared samples and
returns weights or probabilities, so that all algorithms share data, network and local compute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import networks, weights
from trainer.evaluation.classification import macro_auc, predict
from trainer.local.algorithms import Scaffold, choose
from trainer.local.data import Samples, pool
from trainer.local.training import reestimate_norm, train
from trainer.segmentation import dice_metrics
from trainer.spec import LocalSpec, lr_at_round

Weights = weights.Weights


@dataclass(frozen=True)
class Site:
    """One hospital's prepared samples."""

    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True)
class Settings:
    """What every algorithm shares."""

    network: str = "small_resnet"
    args: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    rounds: int = 12
    local: LocalSpec = field(default_factory=LocalSpec)
    cosine: bool = True
    ema: float = 0.0
    momentum: float = 0.0

    def at_round(self, number: int) -> LocalSpec:
        """The local settings of a round: a cosine from lr to lr / 20 over the rounds."""
        if not self.cosine:
            return self.local
        return self.local.model_copy(update={"lr": lr_at_round(self.local.lr, number, self.rounds)})

    def build(self) -> nn.Module:
        return networks.build(self.network, self.args)

    def classes(self) -> int:
        return int(self.args["classes"])


def local_step(settings: Settings, start: Weights, samples: Samples, spec: LocalSpec, seed: int) -> Weights:
    """One site's training from `start`."""
    model = settings.build()
    weights.into_module(model, start)
    train(model, samples, spec, classes=settings.classes(), seed=seed, algorithm=choose(spec))
    return weights.from_module(model)


def centralised(settings: Settings, sites: list[Site], seed: int) -> Weights:
    """CDS: pooled samples, as many epochs (or as many steps in sum) as the sites run in all their rounds."""
    if settings.local.steps:
        local = settings.local.model_copy(update={"steps": settings.local.steps * len(sites)})
        settings = Settings(**(vars(settings) | {"local": local}))
    return alone(settings, pool([site.train for site in sites]), seed)


def alone(settings: Settings, samples: Samples, seed: int, start: Weights | None = None) -> Weights:
    """Local-only (or centralised): the same rounds without any exchange."""
    current = start or networks.initial_weights(settings.network, settings.args, seed)
    for number in range(settings.rounds):
        current = local_step(settings, current, samples, settings.at_round(number), seed * 1000 + number)
    return current


def fedavg(settings: Settings, sites: list[Site], seed: int, trace: list[float] | None = None) -> Weights:
    """FedAvg weighted by samples (FedProx when the local settings say so); optional server momentum and smoothing."""
    current = networks.initial_weights(settings.network, settings.args, seed)
    smooth, velocity = current, None
    for number in range(settings.rounds):
        spec = settings.at_round(number)
        updates = [
            local_step(settings, current, site.train, spec, seed * 1000 + number * 10 + i)
            for i, site in enumerate(sites)
        ]
        mean = weights.average(updates, [len(site.train) for site in sites])
        if settings.momentum:
            current, velocity = _with_momentum(current, mean, velocity, settings.momentum)
        else:
            current = mean
        smooth = current if not settings.ema or number < 2 else _mix(smooth, current, settings.ema)
        if trace is not None:
            trace.append(score(settings, smooth, [site.validation for site in sites]))
    return smooth


def fedbn(settings: Settings, sites: list[Site], seed: int) -> list[Weights]:
    """FedBN (Li et al. 2021): norm layers stay at the site, everything else is averaged; one model a site."""
    kept = networks.norm_keys(settings.build())
    models = [networks.initial_weights(settings.network, settings.args, seed) for _ in sites]
    for number in range(settings.rounds):
        spec = settings.at_round(number)
        updates = [
            local_step(settings, model, site.train, spec, seed * 1000 + number * 10 + i)
            for i, (model, site) in enumerate(zip(models, sites, strict=True))
        ]
        mean = weights.average(updates, [len(site.train) for site in sites])
        models = [{n: (update if n in kept else mean)[n] for n in mean} for update in updates]
    return models


def scaffold(settings: Settings, sites: list[Site], seed: int) -> Weights:
    """SCAFFOLD (Karimireddy et al. 2020) with full participation; local steps must be SGD."""
    current = networks.initial_weights(settings.network, settings.args, seed)
    model = settings.build()
    trainable = {name for name, _ in model.named_parameters()}
    whole = {name: np.zeros_like(current[name]) for name in trainable}
    own = [dict(whole) for _ in sites]
    for number in range(settings.rounds):
        spec = settings.at_round(number)
        updates, deltas = [], []
        for i, site in enumerate(sites):
            control = {f"global.{n}": w for n, w in whole.items()} | {f"local.{n}": w for n, w in own[i].items()}
            weights.into_module(model, current)
            seed_here = seed * 1000 + number * 10 + i
            algorithm = Scaffold(control)
            done = train(model, site.train, spec, classes=settings.classes(), seed=seed_here, algorithm=algorithm)
            updates.append(weights.from_module(model))
            own[i] = {n: done.state[f"local.{n}"] for n in trainable}
            deltas.append({n: done.state[f"delta.{n}"] for n in trainable})
        current = weights.average(updates, [len(site.train) for site in sites])
        change = weights.average(deltas, [1] * len(sites))
        whole = {n: whole[n] + change[n] for n in trainable}
    return current


def cyclic(settings: Settings, sites: list[Site], seed: int) -> Weights:
    """Cyclic weight transfer (Chang et al. 2018): one model visits the sites in turn, every round."""
    current = networks.initial_weights(settings.network, settings.args, seed)
    for number in range(settings.rounds):
        for i, site in enumerate(sites):
            current = local_step(
                settings, current, site.train, settings.at_round(number), seed * 1000 + number * 10 + i
            )
    return current


def single(settings: Settings, sites: list[Site], seed: int) -> Weights:
    """Single weight transfer: the model is trained fully at one site after the other, once."""
    current = networks.initial_weights(settings.network, settings.args, seed)
    for i, site in enumerate(sites):
        current = alone(settings, site.train, seed * 100 + i, start=current)
    return current


def ensemble_score(settings: Settings, models: list[Weights], parts: list[Samples]) -> float:
    """The merit of the mean of the sites' probabilities over the pooled samples."""
    model = settings.build()
    total: list[np.ndarray] = []
    for part in parts:
        probabilities = []
        for current in models:
            weights.into_module(model, current)
            probabilities.append(_probabilities(model, part))
        total.append(np.mean(probabilities, axis=0))
    return _merit(parts, total)


def _with_momentum(old: Weights, mean: Weights, velocity: Weights | None, beta: float) -> tuple[Weights, Weights]:
    """FedAvgM (Hsu et al. 2019): the mean change gathers momentum; running statistics and integers are taken as they
    are.
    """
    new, moved = {}, {}
    for name, value in mean.items():
        if value.dtype.kind != "f" or "running_" in name:
            new[name] = value
            continue
        change = value - old[name]
        moved[name] = change if velocity is None else beta * velocity[name] + change
        new[name] = old[name] + moved[name]
    return new, moved


def _mix(old: Weights, new: Weights, share: float) -> Weights:
    return weights.average([old, new], [share, 1 - share])


def score(
    settings: Settings,
    current: Weights | list[Weights],
    parts: list[Samples],
    reestimate: list[Samples] | None = None,
) -> float:
    """Macro AUC, or Dice for masks, over the pooled samples of all sites; a list holds one model a site (FedBN).

    With `reestimate`, norm statistics are renewed on each site's own samples first.
    """
    model = settings.build()
    probabilities = []
    for i, part in enumerate(parts):
        weights.into_module(model, current[i] if isinstance(current, list) else current)
        if reestimate is not None:
            reestimate_norm(model, reestimate[i])
        probabilities.append(_probabilities(model, part))
    return _merit(parts, probabilities)


@torch.no_grad()
def _probabilities(model: nn.Module, part: Samples) -> np.ndarray:
    """[N, classes] or, for masks, [N, classes, H, W]."""
    if not part.masks:
        return predict(model, part)
    model.eval()
    return np.concatenate([torch.softmax(model(images), 1).numpy() for images, _ in part.batches(32)])


def _merit(parts: list[Samples], probabilities: list[np.ndarray]) -> float:
    if parts[0].masks:
        truth = np.concatenate([masks.numpy() for part in parts for _, masks in part.batches(64)])
        groups = pool(parts).groups
        said = np.concatenate([p.argmax(1) for p in probabilities])
        classes = [str(k) for k in range(probabilities[0].shape[1])]
        found = dice_metrics(truth, said, np.asarray(groups), classes)["dice"]
    else:
        found = macro_auc(np.concatenate([part.labels for part in parts]), np.concatenate(probabilities))
    return float("nan") if found is None else float(found)
