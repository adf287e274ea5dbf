"""Randomness of differential privacy: from the operating system's entropy by AES-256-CTR, never from a seed.

A project's seed is known to the coordinator; whoever can repeat the noise can take it off again. So sampling and noise come of a
key of 32 fresh bytes a training (os.urandom), which is nowhere written down.

Floating point: a Gaussian in floating point reveals something in its lowest bits (Mironov 2012). Sums and noise are therefore
rounded to one grid, 2^-30 of the noise's deviation, before they are added: what comes out is a point of that grid whatever the
data. The uniform variates have 53 bits, so that the normal ones end at 8.6 deviations; no accountant notices, and neither is this
the exactly sampled discrete Gaussian.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

GRID = 2.0**-30


class SecureRandom:
    """A stream of AES-256-CTR key bytes as numbers."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> torch.Tensor:
        """float64 [count] in (0, 1], multiples of 2^-53."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)
        return torch.from_numpy(((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53)

    def normal(self, count: int) -> torch.Tensor:
        """float64 [count], standard normal (Box and Muller 1958)."""
        half = (count + 1) // 2
        radius = torch.sqrt(-2 * torch.log(self.uniform(half)))
        angle = self.uniform(half).mul_(2 * math.pi)
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]

    def chosen(self, count: int, rate: float) -> np.ndarray:
        """Poisson sampling: which of `count` units are in, each by itself with probability `rate`. int64, ascending."""
        return np.flatnonzero((self.uniform(count) <= rate).numpy())


def add_noise(total: torch.Tensor, clip: float, noise_multiplier: float, random: SecureRandom) -> torch.Tensor:
    """`total` [P], a sum of contributions of norm at most `clip`, with Gaussian noise on the grid: float64 [P] on the CPU.

    Rounding P numbers moves two neighbouring sums apart by at most √P steps of the grid: the noise is that much larger.
    """
    step = noise_multiplier * clip * GRID
    deviation = noise_multiplier * (clip + step * math.sqrt(total.numel()))
    noise = random.normal(total.numel()).mul_(deviation / step).round_()
    return (total.detach().to("cpu", torch.float64) / step).round_().add_(noise).mul_(step)
