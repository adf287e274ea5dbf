"""Combines what several sites' models say about the same reference studies; the models stay at home.

Outputs are class probabilities of any shape with the classes in axis 1, or of fractional segmentations. Agreement between the
sites is told as predictive entropy, which is high where they disagree or all are unsure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aggregator_client.errors import MessageError

HOW = ("mean", "vote")


def combine(outputs: Sequence[np.ndarray], how: str = "mean", scores: Sequence[float] | None = None) -> np.ndarray:
    """The ensemble's probabilities, float64 with the shape of each output.

    how: "mean" of the probabilities, or "vote": the share of the sites whose most probable class it is. scores: each site's
    validation metric, by which it is weighted. Raises MessageError for outputs that differ in shape or are no probabilities.
    """
    if not outputs or any(one.shape != outputs[0].shape for one in outputs):
        raise MessageError("The sites' outputs differ in shape, or there are none: ask for them again.")
    if how not in HOW:
        raise MessageError(f"The way to combine outputs {how!r} is unknown: use {' or '.join(HOW)}.")
    shares = np.ones(len(outputs)) if scores is None else np.maximum(np.asarray(scores, np.float64), 0.0)
    if len(shares) != len(outputs) or shares.sum() <= 0:
        raise MessageError("The sites' scores do not fit their outputs: give one above zero for each.")
    total = np.zeros(outputs[0].shape)
    for output, share in zip(outputs, shares / shares.sum(), strict=True):
        check_probabilities(output)
        total += share * (output if how == "mean" else one_hot(output))
    return total


def one_hot(probabilities: np.ndarray) -> np.ndarray:
    """1 at the most probable class (axis 1), 0 elsewhere."""
    classes = np.arange(probabilities.shape[1]).reshape((1, -1) + (1,) * (probabilities.ndim - 2))
    return np.asarray(np.expand_dims(probabilities.argmax(1), 1) == classes, np.float64)


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """Predictive entropy over the classes (axis 1), from 0 (sure) to 1 (all classes alike)."""
    safe = np.clip(probabilities, 1e-12, 1.0)
    return np.asarray(-(safe * np.log(safe)).sum(1) / np.log(probabilities.shape[1]))


def check_probabilities(output: np.ndarray) -> None:
    """Raise MessageError unless every value lies in 0 to 1 and the classes sum to 1."""
    whole = output.ndim >= 2 and output.shape[1] >= 2 and bool(np.isfinite(output).all())
    if not whole or output.min() < -1e-3 or output.max() > 1 + 1e-3 or np.abs(output.sum(1) - 1).max() > 0.02:
        raise MessageError("A site's output is not class probabilities that sum to one: it is not used.")
