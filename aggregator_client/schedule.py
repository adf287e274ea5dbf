"""The learning rate of a round under a project's algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.spec import lr_at_round


def round_lr(lr: float, number: int, rounds: int, algorithm: str, args: Mapping[str, Any]) -> float:
    """Of round `number` (from 1): a half cosine over the run, down to lr / 20.

    In single weight transfer each visit is a training of its own, so the cosine begins anew at each site; where a visit ends at a
    plateau its length is not known beforehand, and the rate stays.
    """
    if algorithm == "single_transfer":
        visits = int(args.get("visits", 1))
        return lr if args.get("patience") or visits == 1 else lr_at_round(lr, (number - 1) % visits, visits)
    return lr_at_round(lr, min(number, rounds) - 1, rounds)
