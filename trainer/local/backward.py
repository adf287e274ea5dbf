"""Forward and backward pass of one batch: in parts when memory is short, in half precision when asked, shared among processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainer.errors import MemoryLimitError
from trainer.local.loss import check_finite, loss_of
from trainer.local.parallel import ALONE, Team

Report = Callable[[dict[str, object]], None]
HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}
"""The type that mixed precision computes in; a CPU has no quick float16, and needs none of the scaling either."""


class Precision:
    """float32, or mixed precision: autocast in the forward pass and a loss scaled so that small gradients do not vanish.

    Micikevicius et al. 2018. Weights, optimiser state, BatchNorm statistics and the loss stay float32. A step whose scaled
    gradients overflow is left out and the scale halved.
    """

    def __init__(self, device: torch.device | str, mixed: bool) -> None:
        self.kind = torch.device(device).type
        self.mixed = mixed
        self.scaler = torch.amp.GradScaler(self.kind, enabled=mixed)

    def forward(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """float32 logits."""
        with torch.autocast(self.kind, HALF.get(self.kind, torch.bfloat16), enabled=self.mixed):
            return torch.as_tensor(model(images)).float()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size back, before anything looks at them."""
        if self.mixed:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """The optimiser's step, unless a gradient overflowed; whether it was made."""
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale  # an overflow halves it

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold of the scaling: plain numbers, {} for float32."""
        return dict(self.scaler.state_dict())

    def restore(self, state: dict[str, float]) -> None:
        """Take back what `state` gave."""
        if self.mixed and state:
            self.scaler.load_state_dict(state)


class Backward:
    """Leaves a batch's gradients in the model, in as many parts as the memory asks for.

    When the device runs out of memory the parts are halved, for good, and it is said in a report; each part's loss is
    weighed so that the gradients add up to the whole batch's (exactly so for networks without BatchNorm and for
    classification; soft Dice is taken over a part). A team's processes each work through their share of the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: torch.Tensor | None,
        smoothing: float,
        report: Report | None,
        parts: int = 1,
        precision: Precision | None = None,
        team: Team = ALONE,
        seed: int = 0,
    ) -> None:
        self.model, self.weights, self.smoothing, self.report = model, weights, smoothing, report
        self.precision, self.team, self.seed = precision or Precision("cpu", False), team, seed
        self.parts = -(-parts // team.size)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> float:
        """images [N, C, ...] and labels of the whole batch → its loss. Errors: DivergedError, MemoryLimitError."""
        share, whole = self.team.share(len(images)), self._mass(labels)
        self.team.reseed(self.seed, step)
        self.model.zero_grad(set_to_none=True)
        loss = self._within_memory(images[share], labels[share], whole, step) if share.stop else 0.0
        return self.team.add_up(self.model, loss)

    def _within_memory(self, images: torch.Tensor, labels: torch.Tensor, whole: float, step: int) -> float:
        while True:
            try:
                return self._run(images, labels, whole, step)
            except torch.OutOfMemoryError as err:
                self.parts *= 2
                if len(images) // self.parts < 2:
                    raise MemoryLimitError(
                        "the device has too little memory even for two images at once;"
                        " choose a smaller network or image size"
                    ) from err
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.report is not None:
                self.report({"event": "smaller-batch", "parts": self.parts, "images": len(images) // self.parts})

    def _run(self, images: torch.Tensor, labels: torch.Tensor, whole: float, step: int) -> float:
        self.model.zero_grad(set_to_none=True)
        parts = max(1, min(self.parts, len(images) // 2))  # BatchNorm needs two images
        total = 0.0
        for part, truth in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            logits = self.precision.forward(self.model, part)
            loss = loss_of(logits, truth, self.weights, self.smoothing) * (self._mass(truth) / max(whole, 1e-12))
            check_finite(loss, step)
            self.precision.scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    def _mass(self, labels: torch.Tensor) -> float:
        """What a mean over these labels divides by: their number, or the sum of their class weights."""
        return float(len(labels)) if self.weights is None else float(self.weights[labels].sum())
