"""Fixed point in the ring of integers modulo 2^bits: unbiased rounding on the way in, no wrap-around for the whole cohort.

A value is clipped to ±clip and scaled so that the cohort's sum stays inside the ring. What lies between two steps goes to either
by chance, in proportion (stochastic rounding), so that no value is pulled one way. The sum is that of plain integers, exactly.
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
_PART = 1 << 13
"""Elements encoded at a time: their temporaries stay in the nearest cache."""


class Room:
    """Memory to encode in, used again and again."""

    def __init__(self) -> None:
        self.zeros, self.narrow = np.zeros(_PART, np.float32), np.empty(_PART, np.float32)
        self.wide, self.chance = np.empty(_PART, np.float64), np.empty(_PART, np.float64)


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
        """The integer that `clip` becomes. One is kept back for rounding, and what float32 (24 bits) may add to it.

        The 64-bit ring is encoded in float64, exact to 51 bits and a sign.
        """
        whole = (2 ** (self.bits - 1) - 1) // self.members - 1
        return min(whole, _EXACT) if self.bits == 64 else whole - (whole >> 21)

    @property
    def step(self) -> float:
        """The distance of two values in fixed point."""
        return float(np.float32(self.clip)) / self.limit  # as it is clipped: in float32, 0.001 is a little more

    def encode(
        self, values: NDArray[np.float32], share: float, noise: NDArray[np.uint32], room: Room, out: Words
    ) -> None:
        """`values · share` in fixed point into `out`. `noise`: uniform random words, one an element, used up. share is at most 1.

        Raises MessageError for NaN and infinity, which a cast would turn into some number of the ring.
        """
        work = self._wide if self.bits == 64 else self._narrow
        for start in range(0, values.size, _PART):
            part = values[start : start + _PART]
            with np.errstate(invalid="ignore"):
                probe = np.dot(part, room.zeros[: part.size])  # ∞·0 and NaN·0 are NaN: one fast pass
            if not np.isfinite(probe):
                raise MessageError("The update holds NaN or infinite values: it is not sent; lower the learning rate.")
            work(part, share / self.step, noise[start : start + _PART], room, out[start : start + _PART])

    def _clipped(self, values: NDArray[np.float32], room: Room) -> NDArray[np.float32]:
        made, most = room.narrow[: values.size], np.float32(self.clip)
        np.maximum(values, -most, out=made)
        np.minimum(made, most, out=made)
        return made

    def _narrow(
        self, values: NDArray[np.float32], scale: float, noise: NDArray[np.uint32], room: Room, out: Words
    ) -> None:
        """In float32, whose own steps are the values': a number above 2^24 steps is a whole one and is not rounded by chance."""
        scaled = self._clipped(values, room)
        np.multiply(scaled, np.float32(scale), out=scaled)
        np.right_shift(noise, 9, out=noise)
        np.bitwise_or(noise, 0x3F800000, out=noise)  # 23 random bits below a one: a float32 in [1, 2)
        chance = noise.view(np.float32)
        np.subtract(chance, np.float32(1.5), out=chance)  # rounding to nearest then goes up as the fraction says
        np.add(scaled, chance, out=scaled)
        np.rint(scaled, out=scaled)
        np.copyto(out.view(f"<i{self.bits // 8}"), scaled, casting="unsafe")

    def _wide(
        self, values: NDArray[np.float32], scale: float, noise: NDArray[np.uint32], room: Room, out: Words
    ) -> None:
        """In float64."""
        scaled, chance = room.wide[: values.size], room.chance[: values.size]
        np.multiply(self._clipped(values, room), scale, out=scaled, dtype=np.float64)
        np.multiply(noise.view(np.int32), 2.0**-32, out=chance)
        scaled += chance
        scaled += _MAGIC  # its unit in the last place is 1: what is left after it is taken away again is whole
        scaled -= _MAGIC
        np.copyto(out.view(np.int64), scaled, casting="unsafe")

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
