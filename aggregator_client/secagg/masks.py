"""The masks: AES-256 in counter mode, added to or taken from a vector block by block.

A seed's stream is bound to the round's transcript and used once. Blocks are small enough to stay in the processor's cache, so a
vector of any length is masked with a few MiB beside it. The threads share nothing but the vector.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from aggregator_client.secagg.ring import LIMBS, Ring, Room, Words

BLOCK = 1 << 15
"""Elements worked on at a time."""
_ZEROS = bytes(BLOCK * 8)


@dataclass(frozen=True)
class Stream:
    """One mask: the seed's key and whether it is added (+1) or taken away (-1)."""

    key: bytes
    sign: int


def stream(seed: bytes, transcript: bytes, sign: int) -> Stream:
    """The stream of a seed in the round with this transcript hash."""
    return Stream(hashlib.sha256(b"fedpacs secagg v1 mask\x00" + transcript + seed).digest(), sign)


def room_for(word: int) -> bytearray:
    """Memory for the words of one block; update_into asks for room for one more block of the cipher."""
    return bytearray(BLOCK * word + 16)


class Keystream:
    """A stream's words from one position on. `word`: bytes of an element; `buffer`: memory it may share with others."""

    def __init__(self, key: bytes, word: int, start: int = 0, buffer: bytearray | None = None) -> None:
        counter, rest = divmod(start * word, 16)
        assert rest == 0
        self._encryptor = Cipher(AES(key), CTR(counter.to_bytes(16))).encryptor()
        self._word, self._buffer = word, room_for(word) if buffer is None else buffer
        self._view = np.frombuffer(self._buffer, f"<u{word}")

    def next(self, count: int) -> Words:
        """The next `count` (at most BLOCK) words; the next call, of any that shares the buffer, overwrites them."""
        self._encryptor.update_into(memoryview(_ZEROS)[: count * self._word], self._buffer)
        return self._view[:count]


def _apply(block: Words, streams: Sequence[tuple[Keystream, int]]) -> None:
    for words, sign in streams:
        if sign > 0:
            np.add(block, words.next(block.size), out=block)
        else:
            np.subtract(block, words.next(block.size), out=block)


def _spread(size: int, work: Callable[[int, int], Any], threads: int | None) -> list[Any]:
    """`work(start, end)` over ranges that begin at a block, in `threads` threads (by default as many as there are cores)."""
    count = max(1, min(threads or min(4, len(os.sched_getaffinity(0))), -(-size // BLOCK)))
    blocks = -(-size // BLOCK)
    edges = [blocks * index // count * BLOCK for index in range(count)] + [size]
    ranges = list(pairwise(edges))
    if count == 1:
        return [work(*ranges[0])]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda one: work(*one), ranges))


def mask(
    values: NDArray[np.float32],
    share: float,
    weight: int,
    ring: Ring,
    streams: Sequence[Stream],
    noise_key: bytes,
    out: Words | None = None,
    threads: int | None = None,
) -> tuple[Words, bytes]:
    """The masked vector (the encoded values, then the weight's limbs) and its digest (see `digest`).

    share: what the values are multiplied by. noise_key: of the rounding's chance; equal arguments give equal bytes. `out` may
    lie over the values' own memory when the ring has 32 bits. Raises MessageError for NaN and infinity.
    """
    size = values.size + LIMBS
    out = np.empty(size, ring.dtype) if out is None else out
    word = ring.bits // 8

    def work(start: int, end: int) -> list[bytes]:
        buffer, room = room_for(max(word, 4)), Room()  # one for all: more of them would not fit into the cache
        noise = Keystream(noise_key, 4, start, buffer)
        keys = [(Keystream(one.key, word, start, buffer), one.sign) for one in streams]
        digests = []
        for at in range(start, end, BLOCK):
            block = out[at : min(at + BLOCK, end)]
            plain = values[at : at + block.size]
            ring.encode(plain, share, noise.next(plain.size), room, block[: plain.size])
            if plain.size < block.size:
                first = max(at - values.size, 0)
                block[plain.size :] = ring.limbs(weight)[first : first + block.size - plain.size]
            _apply(block, keys)
            digests.append(hashlib.sha256(block.data).digest())
        return digests

    parts = _spread(size, work, threads)
    return out, hashlib.sha256(b"".join(one for part in parts for one in part)).digest()


def digest(vector: Words, threads: int | None = None) -> bytes:
    """SHA-256 over the SHA-256 of each block of 32,768 elements: it can be computed in parallel and while masking."""

    def work(start: int, end: int) -> list[bytes]:
        return [hashlib.sha256(vector[at : min(at + BLOCK, end)].data).digest() for at in range(start, end, BLOCK)]

    return hashlib.sha256(b"".join(one for part in _spread(vector.size, work, threads) for one in part)).digest()


def add(total: Words, vector: Words, threads: int | None = None) -> bytes:
    """Add `vector` to `total` in place, and give the vector's digest, in one pass over memory."""

    def work(start: int, end: int) -> list[bytes]:
        found = []
        for at in range(start, end, BLOCK):
            block = vector[at : min(at + BLOCK, end)]
            found.append(hashlib.sha256(block.data).digest())
            np.add(total[at : at + block.size], block, out=total[at : at + block.size])
        return found

    return hashlib.sha256(b"".join(one for part in _spread(vector.size, work, threads) for one in part)).digest()


def unmask(total: Words, streams: Sequence[Stream], threads: int | None = None) -> None:
    """Take the streams out of `total` in place (each was applied with its own sign)."""
    word = total.dtype.itemsize

    def work(start: int, end: int) -> None:
        buffer = room_for(word)
        keys = [(Keystream(one.key, word, start, buffer), -one.sign) for one in streams]
        for at in range(start, end, BLOCK):
            _apply(total[at : min(at + BLOCK, end)], keys)

    _spread(total.size, work, threads)
