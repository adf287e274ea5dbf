"""The site's part of each federated algorithm, as changes to plain local training.

FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks". SCAFFOLD: Karimireddy et al. 2020,
option II.
FedBN: Li et al. 2021. What crosses the wire is decided elsewhere; here is only what happens between two exchanges.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from trainer.errors import WeightsError
from trainer.spec import LocalSpec


class LocalAlgorithm:
    """Plain local training (FedAvg, FedNova, FedOpt, transfer, ensemble): changes nothing."""

    def begin(self, model: nn.Module, local: LocalSpec) -> None:
        """Called once with the starting weights loaded."""

    def adjust_gradients(self, model: nn.Module) -> None:
        """Called after each backward pass and before the optimiser step."""

    def adjust_step(self, model: nn.Module, lr: float) -> None:
        """Called after each optimiser step, which was made with the learning rate `lr`."""

    def finish(self, model: nn.Module, steps: int) -> dict[str, np.ndarray]:
        """Called once after the last step; returns arrays the site keeps or sends beside its weights."""
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that a checkpoint in the middle must hold."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""


class FedProx(LocalAlgorithm):
    """Adds mu · (w - w_global) to the gradient: the derivative of mu/2 · ‖w - w_global‖²."""

    def begin(self, model: nn.Module, local: LocalSpec) -> None:
        self.mu = local.mu
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}

    def adjust_gradients(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.grad.add_(p.detach() - self.anchor[name], alpha=self.mu)

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self.anchor)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.anchor = {name: value.clone() for name, value in state.items()}


class Scaffold(LocalAlgorithm):
    """Moves each step by -lr · (c - c_i) and renews c_i ← c_i - c + (w_global - w_local) / (steps · lr).

    With plain SGD that is the paper's w ← w - lr · (g - c_i + c). Corrected is the step and not the gradient, because the
    variates are means of steps: AdamW would scale a corrected gradient anew, and momentum would count it ten times over.

    `control` holds "global.<parameter>" and "local.<parameter>" (absent ones are zero). `finish` returns the new c_i as
    "local.<parameter>" and its change as "delta.<parameter>", which the coordinator averages.
    """

    def __init__(self, control: Mapping[str, np.ndarray]) -> None:
        self.control = control

    def begin(self, model: nn.Module, local: LocalSpec) -> None:
        self.lr = local.lr
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.whole = {name: self._array("global", name, p) for name, p in self.anchor.items()}
        self.own = {name: self._array("local", name, p) for name, p in self.anchor.items()}

    def _array(self, side: str, name: str, like: torch.Tensor) -> torch.Tensor:
        value = self.control.get(f"{side}.{name}")
        if value is None:
            return torch.zeros_like(like)
        if tuple(value.shape) != tuple(like.shape):
            raise WeightsError(
                f"control variate {side}.{name} has another shape than its parameter; start SCAFFOLD afresh"
            )
        return torch.from_numpy(np.array(value)).to(like)

    @torch.no_grad()
    def adjust_step(self, model: nn.Module, lr: float) -> None:
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.add_(self.whole[name] - self.own[name], alpha=-lr)

    def finish(self, model: nn.Module, steps: int) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, p in model.named_parameters():
            drift = (self.anchor[name] - p.detach()) / (max(steps, 1) * self.lr)
            new = self.own[name] - self.whole[name] + drift
            out[f"local.{name}"] = new.cpu().numpy()
            out[f"delta.{name}"] = (new - self.own[name]).cpu().numpy()
        return out

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self.anchor)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.anchor = {name: value.clone() for name, value in state.items()}


def choose(local: LocalSpec, control: Mapping[str, np.ndarray] | None = None) -> LocalAlgorithm:
    """The algorithm a LocalSpec names."""
    if local.algorithm == "fedprox":
        return FedProx()
    if local.algorithm == "scaffold":
        return Scaffold(control or {})
    return LocalAlgorithm()
