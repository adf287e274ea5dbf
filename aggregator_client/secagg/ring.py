"""Fixed point in the ring of integers modulo 2^bits: unbiased rounding on the way in, no wrap-around for the whole cohort.

A value is clipped to ±clip and scaled so that the cohort's sum stays inside the ring. What lies between two steps goes to either
by chance, in proportion (stochastic rounding), so that the mean is exact. The sum is exact: it is that of plain integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aggregator_client.errors import MessageError

Bits = Literal[16, 32, 64]
Words = NDArray[Any]
"""An array of unsigned integers of the ring's width."""
LIMBS, LIMB_BITS = 4, 8
"""A site's weight travels as four bytes, each an element of its own: 50 sites' bytes add up without a carry in any ring."""
MAX_MEMBERS = 50
_MAGIC = 1.5 * 2.0**52
_EXACT = 2**51 - 1


class Room:
    """Memory to encode up to `size` elements in, used again and again."""

    def __init__(self, size: int) -> None:
        self.zeros, self.clipped = np.zeros(size, np.float32), np.empty(size, np.float32)
        self.scaled, self.chance = np.empty(size, np.float64), np.empty(size, np.float64)


@dataclass(frozen=True)
class Ring:
    """`members`: the largest number of sites that may be summed; `clip`: the largest absolute value of an element."""

    bits: Bits
    members: int
    clip: float

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def limit(self) -> int:
        """The integer that `clip` becomes. One is kept back for rounding; float64 is exact to 51 bits and a sign."""
        return min((2 ** (self.bits - 1) - 1) // self.members - 1, _EXACT)

    @property
    def step(self) -> float:
        """The distance of two values in fixed point."""
        return float(np.float32(self.clip)) / self.limit  # as it is clipped: in float32, 0.001 is a little more

    def encode(
        self, values: NDArray[np.float32], share: float, noise: NDArray[np.int32], room: Room, out: Words
    ) -> None:
        """`values · share` in fixed point into `out`. `noise`: uniform random words, one an element. share is at most 1.

        Raises MessageError for NaN and infinity, which a cast would turn into some number of the ring.
        """
        count = values.size
        clipped, scaled, chance = room.clipped[:count], room.scaled[:count], room.chance[:count]
        with np.errstate(invalid="ignore"):
            probe = np.dot(values, room.zeros[:count])  # ∞·0 and NaN·0 are NaN: one fast pass
        if not np.isfinite(probe):
            raise MessageError("The update holds NaN or infinite values: it is not sent; lower the learning rate.")
        np.clip(values, -self.clip, self.clip, out=clipped)
        np.multiply(clipped, share / self.step, out=scaled, dtype=np.float64)
        np.multiply(
            noise, 2.0**-32, out=chance
        )  # in [-1/2, 1/2): rounding to nearest then goes up as the fraction says
        scaled += chance
        scaled += _MAGIC  # its unit in the last place is 1, so the low bits are the rounded integer in two's complement
        if self.bits == 64:
            scaled -= _MAGIC
            np.copyto(out.view(np.int64), scaled, casting="unsafe")
        else:
            np.copyto(out, scaled.view(np.uint64), casting="unsafe")

    def decode(self, total: Words, divisor: float) -> NDArray[np.float32]:
        """The sum as numbers, divided by `divisor`."""
        signed = total.view(f"<i{self.bits // 8}")
        out = np.empty(signed.size, np.float32)
        for start in range(0, signed.size, 1 << 16):
            part = signed[start : start + (1 << 16)]
            out[start : start + (1 << 16)] = part * (self.step / divisor)
        return out

    def limbs(self, weight: int) -> Words:
        """A weight below 2^32 as elements of the ring, the lowest first."""
        return np.array([weight >> (LIMB_BITS * index) & 0xFF for index in range(LIMBS)], self.dtype)


def weight_of(limbs: Sequence[int] | Words) -> int:
    """The sum of weights from the sums of their limbs."""
    return sum(int(limb) << (LIMB_BITS * index) for index, limb in enumerate(limbs))
