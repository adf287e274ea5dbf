"""The arithmetic below the protocol: fixed point, masks and shares, each held to its definition."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_client.errors import MessageError
from aggregator_client.secagg import masks, shamir
from aggregator_client.secagg.ring import LIMBS, Ring, weight_of


def encoded(ring, values, share=1.0, weight=1, key=b"n" * 32):
    return masks.mask(np.asarray(values, np.float32), share, weight, ring, [], key)[0]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([16, 32, 64]),
    members=st.integers(3, 50),
    clip=st.floats(1e-3, 1e3),
    raw=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30),
)
def test_a_value_comes_back_within_one_step_and_no_cohort_wraps(bits, members, clip, raw):
    ring = Ring(bits, members, clip)
    words = encoded(ring, raw)[:-LIMBS]
    wanted = np.clip(np.array(raw, np.float32).astype(float), -clip, clip)
    assert np.abs(ring.decode(words, 1.0) - wanted).max() <= ring.step * (1 + 1e-6) + clip * 2**-22
    largest = encoded(ring, [3e38, -3e38])[:-LIMBS].view(f"<i{bits // 8}").astype(object)
    assert abs(largest[0]) * members < 2 ** (bits - 1) and abs(largest[1]) * members < 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("steps", [0.3, -0.3, 0.01, 7.5, -8.5, 1000.25])
def test_rounding_is_unbiased(bits, steps):
    ring = Ring(bits, 10, 2.0**-10 if bits == 64 else 1.0)
    value = np.float32(steps * ring.step)
    words = encoded(ring, np.full(200_000, value)).view(f"<i{bits // 8}")[:-LIMBS]
    low = int(np.floor(steps))
    assert set(np.unique(words)) == {low, low + 1}
    assert abs(words.mean() - steps) < 0.0075  # 6.7 standard deviations or more; the key is fixed: no chance is left


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_what_is_a_whole_number_of_steps_stays_so(bits):
    """Of a million draws about one in 2^23 lies on the edge: none may move a zero, such as an untouched parameter."""
    assert not encoded(Ring(bits, 10, 1.0), np.zeros(1_000_000))[:-LIMBS].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_encoded(bad):
    values = np.zeros(70_000, np.float32)
    values[66_000] = bad
    with pytest.raises(MessageError, match="NaN or infinite"):
        encoded(Ring(32, 3, 1.0), values)


@given(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=50))
def test_weights_add_up_through_their_limbs_in_the_smallest_ring(weights):
    ring = Ring(16, 50, 1.0)
    total = np.zeros(LIMBS, ring.dtype)
    for weight in weights:
        total += ring.limbs(weight)
    assert weight_of(total) == sum(weights)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("size", [1, 100, masks.BLOCK - LIMBS, masks.BLOCK - 1, masks.BLOCK, 3 * masks.BLOCK + 5])
def test_masks_are_aes_ctr_and_go_away_again_whatever_the_threads(bits, size):
    ring, values = Ring(bits, 5, 1.0), np.linspace(-1, 1, size, dtype=np.float32)
    streams = [masks.stream(bytes([index]) * 32, b"t" * 32, sign) for index, sign in enumerate((1, -1, 1))]
    one, digest = masks.mask(values, 0.5, 77, ring, streams, b"n" * 32, threads=1)
    three, same = masks.mask(values, 0.5, 77, ring, streams, b"n" * 32, threads=3)
    assert np.array_equal(one, three) and digest == same == masks.digest(one)
    plain = masks.mask(values, 0.5, 77, ring, [], b"n" * 32)[0]
    expected = plain.copy()
    for one_stream in streams:
        raw = Cipher(AES(one_stream.key), CTR(bytes(16))).encryptor().update(bytes(expected.nbytes))
        words = np.frombuffer(raw, ring.dtype)
        expected = expected + words if one_stream.sign > 0 else expected - words
    assert np.array_equal(one, expected)
    masks.unmask(one, streams, threads=2)
    assert np.array_equal(one, plain) and weight_of(plain[-LIMBS:]) == 77


def test_masking_in_place_needs_little_memory_whatever_the_length():
    size = 4_000_000
    values = np.zeros(size + LIMBS, np.float32)
    values[:size] = np.random.default_rng(0).uniform(-1, 1, size)
    streams = [masks.stream(bytes([index]) * 32, b"t" * 32, 1) for index in range(10)]
    apart, _ = masks.mask(values[:size].copy(), 1.0, 9, Ring(32, 10, 1.0), streams, b"n" * 32)
    tracemalloc.start()
    masks.mask(values[:size], 1.0, 9, Ring(32, 10, 1.0), streams, b"n" * 32, out=values.view("<u4"), threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20, f"{peak >> 20} MiB"
    assert np.array_equal(values.view("<u4"), apart)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 9), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, more, chance):
    points = list(range(1, threshold + more + 1))
    shares = dict(
        zip(points, shamir.split(secret, threshold, points, chance.randbytes(48 * (threshold - 1))), strict=True)
    )
    chosen = chance.sample(points, threshold)
    assert shamir.join({point: shares[point] for point in chosen}, threshold) == secret


def test_one_share_too_few_fits_every_secret():
    """With t - 1 shares and any secret whatever there is a polynomial: they say nothing about which it was."""
    shares = shamir.split(b"s" * 32, 4, [1, 2, 3, 4, 5], os.urandom(48 * 3))
    for other in (bytes(32), b"\xff" * 32, b"another secret of 32 bytes......"):
        known = {0: b"\x00" + other, 1: shares[0], 2: shares[1], 3: shares[2]}
        basis = shamir.weights_at_zero([point + 1 for point in known])  # moved by one, so that 0 may be a point
        assert len(basis) == 4
        assert join_at(known, 0) == int.from_bytes(other)
        fourth = join_at(known, 4).to_bytes(33)
        assert shamir.join({1: shares[0], 2: shares[1], 3: shares[2], 4: fourth}, 4) == other


def join_at(points, where):
    """Lagrange's polynomial through `points`, at `where`."""
    total = 0
    for point, value in points.items():
        above = below = 1
        for other in points:
            if other != point:
                above, below = above * (where - other) % shamir.PRIME, below * (point - other) % shamir.PRIME
        total += int.from_bytes(value) * above * pow(below, -1, shamir.PRIME)
    return total % shamir.PRIME
