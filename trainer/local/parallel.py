"""Several processes that train one model together, each on its share of every batch (data parallel, Li et al. 2020, VLDB).

Every process draws the same batches from the same seed, works through its own share, and adds its gradients to the others' before
the optimiser's step, which is then the same everywhere. Gradients travel in one sum after the backward pass rather than in
DistributedDataParallel's buckets during it: a process that runs out of memory can then work its share off in smaller parts
without the others noticing. Processes meet in a file and talk over the loopback interface; nothing listens to the network.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

_PATIENCE = timedelta(
    hours=24
)  # the others wait while the first process evaluates; a round's deadline ends the job anyway


@dataclass(frozen=True)
class Team:
    """This process's number and how many there are. Alone by default, and then nothing is exchanged."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process tells, evaluates and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of a batch's `count` samples are this process's: at least two each, or none (BatchNorm needs two)."""
        workers = max(1, min(self.size, count // 2))
        if self.rank >= workers:
            return slice(0, 0)
        edges = [len(part) for part in torch.arange(count).tensor_split(workers)]
        start = sum(edges[: self.rank])
        return slice(start, start + edges[self.rank])

    def reseed(self, seed: int, step: int) -> None:
        """Give each process random numbers of its own for dropout, the same ones after a restart."""
        if self.size > 1:
            torch.manual_seed((seed * 1_000_003 + step) * self.size + self.rank)

    def add_up(self, model: nn.Module, loss: float) -> float:
        """Leave the sum of all processes' gradients in each, and the mean of their running statistics; returns the loss's sum."""
        if self.size == 1:
            return loss
        trained = [p for p in model.parameters() if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        running = [b for b in model.buffers() if b.is_floating_point()]
        parts = [*(p.grad for p in trained if p.grad is not None), *(b / self.size for b in running)]
        flat = torch.cat([part.detach().float().flatten() for part in parts] + [parts[0].new_tensor([loss]).float()])
        distributed.all_reduce(flat)
        at = 0
        for target in (*(p.grad for p in trained if p.grad is not None), *running):
            target.copy_(flat[at : at + target.numel()].view_as(target))
            at += target.numel()
        return float(flat[-1])


ALONE = Team()


def join(meeting: Path, device: torch.device) -> Team:
    """The team that torchrun started this process for, met in the file `meeting`; ALONE without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    meeting.parent.mkdir(parents=True, exist_ok=True)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(
        backend, init_method=f"file://{meeting.resolve()}", rank=rank, world_size=size, timeout=_PATIENCE
    )
    return Team(rank, size)


def leave() -> None:
    """End the exchange, if there was one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
