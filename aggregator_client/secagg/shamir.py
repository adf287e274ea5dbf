"""Shamir's secret sharing (1979) of 256-bit secrets over the prime field of 2^256 + 297.

Any `threshold` shares give the secret, fewer say nothing about it. Shares are 33 bytes, big-endian. There is no check in a share
itself: the protocol commits to each one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33
COEFFICIENT_BYTES = 48
"""Random bytes a coefficient is made of: 128 bits more than the prime's, so that the remainder is as good as uniform."""


def split(secret: bytes, threshold: int, points: Sequence[int], randomness: bytes) -> list[bytes]:
    """One share for each of the distinct `points` (1 and up). `randomness`: (threshold - 1) · COEFFICIENT_BYTES bytes."""
    coefficients = [int.from_bytes(secret)]
    for start in range(0, (threshold - 1) * COEFFICIENT_BYTES, COEFFICIENT_BYTES):
        coefficients.append(int.from_bytes(randomness[start : start + COEFFICIENT_BYTES]) % PRIME)
    shares = []
    for point in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES))
    return shares


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange's basis at zero for these points: computed once for all secrets of the same holders."""
    found = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def join(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """The secret from shares by point (the first `threshold` of them); None when they are shares of no 256-bit secret."""
    points = sorted(shares)[:threshold]
    basis = weights_at_zero(points)
    value = sum(int.from_bytes(shares[point]) * weight for point, weight in zip(points, basis, strict=True)) % PRIME
    return value.to_bytes(SHARE_BYTES)[1:] if value < 1 << 256 else None
