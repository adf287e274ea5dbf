"""Federated rounds in one process, with the product's own strategies and the trainer's own local steps.

No transport, sealing or processes here: those have their own benchmarks. All algorithms share data, network, local compute and
the schedule of learning rates; what a site sends is counted as the bytes of its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from aggregator_client.compression import TransferSettings, compress, decompress
from aggregator_client.coordinator.strategies import Strategy, Update
from aggregator_client.coordinator.strategies.fedbn import FedBN, KeepsLayers
from aggregator_client.schedule import round_lr
from trainer import networks, weights
from trainer.evaluation.classification import macro_auc, predict
from trainer.local.algorithms import choose
from trainer.local.data import Samples, pool
from trainer.local.loss import loss_of
from trainer.local.training import reestimate_norm, train
from trainer.segmentation import dice_metrics
from trainer.spec import LocalSpec

Weights = weights.Weights
Models = Weights | list[Weights]
Tamper = Callable[[int, Weights, list[Weights]], list[Weights]]
"""(round, the model it began with, every site's honest update in order) → what the sites send instead."""


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

    def at(self, number: int, rounds: int, name: str = "", args: Mapping[str, Any] | None = None) -> LocalSpec:
        """The local settings of round `number` (from 0) of `rounds`, with the learning rate that a project would have."""
        return self.local.model_copy(update={"lr": round_lr(self.local.lr, number + 1, rounds, name, args or {})})

    def build(self) -> nn.Module:
        """The network with its channels last in memory, which convolutions of few channels on a CPU are quickest with."""
        model: nn.Module = networks.build(self.network, self.args).to(memory_format=torch.channels_last)
        return model

    def start(self, seed: int) -> Weights:
        return networks.initial_weights(self.network, self.args, seed)

    def classes(self) -> int:
        return int(self.args["classes"])

    def but(self, **local: Any) -> Settings:
        """The same with some local settings changed."""
        return replace(self, local=self.local.model_copy(update=local))


@dataclass
class Outcome:
    """A finished run. `models`: the global model, or one a site; `trace`: the validation metric after each round."""

    models: Models
    trace: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    """Bytes each site sent in the whole run."""


def federate(
    settings: Settings,
    sites: list[Site],
    strategy: Strategy,
    seed: int,
    *,
    rounds: int = 0,
    tamper: Tamper | None = None,
    transfer: TransferSettings | None = None,
    trace_every: int = 1,
) -> Outcome:
    """Run `strategy` for `rounds` (settings.rounds unless given) as the coordinator's server does."""
    rounds = rounds or settings.rounds
    names = [f"site-{i:03d}" for i in range(len(sites))]
    current, outcome = settings.start(seed), Outcome({}, sent=[0] * len(sites))
    homes: list[Weights] = [{} for _ in sites]  # what each site keeps
    left: list[Weights] = [{} for _ in sites]  # what compression left out
    scores: dict[int, dict[str, float]] = {}
    for number in range(1, rounds + 1):
        chosen = strategy.participants(number, names, scores)
        spec = settings.at(number - 1, rounds, strategy.name, vars(strategy))
        scores[number], updates = {}, []
        for name in chosen:
            i = names.index(name)
            given = {**current, **homes[i]} if isinstance(strategy, KeepsLayers) else current
            if getattr(strategy, "patience", 0):
                scores[number][name] = score(settings, given, [sites[i].validation])
            update, homes[i] = _visit(
                settings, strategy, given, sites[i], spec, seed * 1000 + number * 10 + i, homes[i]
            )
            if transfer is None:
                outcome.sent[i] += sum(len(weights.to_bytes(part)) for part in (update.weights, update.extra) if part)
            else:
                data, left[i] = compress(update.weights, current, transfer, seed * 1000 + number * 10 + i, left[i])
                outcome.sent[i] += len(data)
                update = replace(update, weights=decompress(data, current, transfer))
            updates.append(replace(update, site=name))
        if tamper is not None:
            sent = tamper(number, current, [update.weights for update in updates])
            updates = [replace(update, weights=said) for update, said in zip(updates, sent, strict=True)]
        strategy.begin(current)
        for update in updates:
            strategy.check(update, current)
            strategy.add(update)
        current = strategy.finish()
        outcome.models = current
        if isinstance(strategy, KeepsLayers):
            outcome.models = [{**current, **kept} for kept in homes]
        if isinstance(strategy, FedBN):  # as a site does before it evaluates
            outcome.models = [renewed(settings, m, s.train) for m, s in zip(outcome.models, sites, strict=True)]
        if number % trace_every == 0:
            outcome.trace.append(score(settings, outcome.models, [site.validation for site in sites]))
    return outcome


def _visit(
    settings: Settings, strategy: Strategy, given: Weights, site: Site, spec: LocalSpec, seed: int, home: Weights
) -> tuple[Update, Weights]:
    """One site's round: what it sends and what it keeps."""
    known = strategy.name if strategy.name in ("fedprox", "scaffold") else "fedavg"
    spec = spec.model_copy(update={"algorithm": known, "mu": float(getattr(strategy, "mu", spec.mu))})
    model = settings.build()
    weights.into_module(model, given)
    loss = mean_loss(model, site.validation) if strategy.name in ("qfedavg", "agnostic") else None
    algorithm = choose(spec, {**strategy.extra(), **home})
    done = train(model, site.train, spec, classes=settings.classes(), seed=seed, algorithm=algorithm)
    trained = weights.from_module(model)
    extra = {name: value for name, value in done.state.items() if name.startswith("delta.")}
    kept = {name: value for name, value in done.state.items() if name.startswith("local.")}
    if isinstance(strategy, KeepsLayers):
        own = strategy.own(trained)
        kept = {name: trained[name] for name in own}
        trained = {name: value for name, value in trained.items() if name not in own}
    return Update("", trained, len(site.train), extra, done.steps, loss), kept


@torch.no_grad()
def mean_loss(model: nn.Module, samples: Samples) -> float:
    """The unweighted loss of a model in evaluation mode."""
    model.eval()
    losses = [float(loss_of(model(images), labels, None, 0.0)) * len(images) for images, labels in samples.batches(64)]
    return sum(losses) / max(len(samples), 1)


def alone(settings: Settings, samples: Samples, seed: int, start: Weights | None = None, rounds: int = 0) -> Weights:
    """Local-only (or centralised): the same rounds without any exchange."""
    current, rounds = start or settings.start(seed), rounds or settings.rounds
    for number in range(rounds):
        model = settings.build()
        weights.into_module(model, current)
        spec = settings.at(number, rounds)
        train(model, samples, spec, classes=settings.classes(), seed=seed * 1000 + number, algorithm=choose(spec))
        current = weights.from_module(model)
    return current


def centralised(settings: Settings, sites: list[Site], seed: int) -> Weights:
    """CDS: pooled samples, as many epochs (or as many steps in sum) as the sites run in all their rounds."""
    if settings.local.steps:
        settings = settings.but(steps=settings.local.steps * len(sites))
    return alone(settings, pool([site.train for site in sites]), seed)


def renewed(settings: Settings, current: Weights, samples: Samples) -> Weights:
    """The same weights with the norm layers' statistics re-estimated on these samples."""
    model = settings.build()
    weights.into_module(model, current)
    reestimate_norm(model, samples)
    return weights.from_module(model)


def probabilities(settings: Settings, current: Weights, part: Samples) -> np.ndarray:
    """[N, classes] or, for masks, [N, classes, H, W]."""
    model = settings.build()
    weights.into_module(model, current)
    if not part.masks:
        return predict(model, part)
    model.eval()
    with torch.no_grad():
        return np.concatenate([torch.softmax(model(images), 1).numpy() for images, _ in part.batches(32)])


def score(settings: Settings, current: Models, parts: list[Samples]) -> float:
    """Macro AUC, or Dice for masks, over the pooled samples of all sites; a list holds one model a site."""
    said = [
        probabilities(settings, current[i] if isinstance(current, list) else current, part)
        for i, part in enumerate(parts)
    ]
    return merit(parts, said)


def merit(parts: list[Samples], said: list[np.ndarray]) -> float:
    """The metric of given probabilities over the pooled samples."""
    if parts[0].masks:
        truth = np.concatenate([masks.numpy() for part in parts for _, masks in part.batches(64)])
        groups = pool(parts).groups
        chosen = np.concatenate([p.argmax(1) for p in said])
        found = dice_metrics(truth, chosen, np.asarray(groups), [str(k) for k in range(said[0].shape[1])])["dice"]
    else:
        found = macro_auc(np.concatenate([part.labels for part in parts]), np.concatenate(said))
    return float("nan") if found is None else float(found)
