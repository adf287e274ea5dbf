"""A sealed message opens for one recipient, from one sender, in one context, unchanged: every other way is refused."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_client import sealing
from aggregator_client.errors import DocumentError, SignatureError
from aggregator_client.keys import new_sealing_key, sealing_public_of
from aggregator_client.sealing import Context, open_, open_stream, overhead, seal, seal_stream

CONTEXT = Context("ab" * 32, 3, "north", "coordinator", "update", roster_hash="cd" * 32, schema_hash="ef" * 32)
SMALL = 4
"""log2 of the segment size in these tests: 16 bytes, so that short messages have many segments."""


@cache
def people() -> tuple[bytes, bytes, Ed25519PrivateKey, bytes]:
    private, signer = new_sealing_key(), Ed25519PrivateKey.generate()
    return private, sealing_public_of(private), signer, signer.public_key().public_bytes_raw()


def boxed(plain: bytes, context: Context = CONTEXT, bits: int = SMALL) -> bytes:
    _, recipient, signer, _ = people()
    sink = io.BytesIO()
    seal_stream(
        io.BytesIO(plain), len(plain), sink, recipient_public=recipient, signer=signer, context=context,
        segment_bits=bits,
    )  # fmt: skip
    return sink.getvalue()


def opened(box: bytes, context: Context = CONTEXT) -> bytes:
    private, _, _, sender = people()
    return open_(box, private=private, sender_public=sender, context=context)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 8))
def test_round_trip_and_exact_overhead(plain: bytes, bits: int) -> None:
    box = boxed(plain, bits=bits)
    assert opened(box) == plain
    assert len(box) == len(plain) + overhead(len(plain), bits)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_round_trip_at_the_default_segment_size(size: int) -> None:
    private, recipient, signer, sender = people()
    plain = os.urandom(size)
    box = seal(plain, recipient_public=recipient, signer=signer, context=CONTEXT)
    assert open_(box, private=private, sender_public=sender, context=CONTEXT) == plain


def test_overhead_of_an_update_of_ten_megabytes_is_below_a_fifth_of_a_per_mille() -> None:
    assert overhead(0) == 14 + 1168 + 16 + 64
    assert overhead(10_000_000) / 10_000_000 < 0.0002


def test_every_flipped_byte_is_refused() -> None:
    box = boxed(b"forty bytes of an update, three segments")
    for place in range(len(box)):
        bad = bytearray(box)
        bad[place] ^= 0x01
        with pytest.raises(SignatureError):
            opened(bytes(bad))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_change_of_bytes_is_refused(data: st.DataObject) -> None:
    box = boxed(b"x" * 50)
    place = data.draw(st.integers(0, len(box) - 1))
    bit = data.draw(st.integers(0, 7))
    kind = data.draw(st.sampled_from(["flip", "drop", "insert", "cut", "append"]))
    changed = {
        "flip": box[:place] + bytes([box[place] ^ (1 << bit)]) + box[place + 1 :],
        "drop": box[:place] + box[place + 1 :],
        "insert": box[:place] + b"\x00" + box[place:],
        "cut": box[:place],
        "append": box + b"\x00",
    }[kind]
    with pytest.raises(SignatureError):
        opened(changed)


@pytest.mark.parametrize(
    "other",
    [
        {"project_digest": "ac" * 32},
        {"round": 4},
        {"sender": "south"},
        {"recipient": "north"},
        {"kind": "metrics"},
        {"roster_hash": "cc" * 32},
        {"schema_hash": ""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_context_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(SignatureError):
        opened(boxed(b"update"), replace(CONTEXT, **other))  # type: ignore[arg-type]


def test_fields_of_a_context_do_not_run_into_each_other() -> None:
    one, two = replace(CONTEXT, sender="ab", recipient="c"), replace(CONTEXT, sender="a", recipient="bc")
    assert one.digest() != two.digest()


def test_another_sender_and_another_recipient_are_refused() -> None:
    private, _, _, sender = people()
    box = boxed(b"update")
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(SignatureError, match="not signed by 'north'"):
        open_(box, private=private, sender_public=stranger, context=CONTEXT)
    with pytest.raises(SignatureError, match="another recipient"):
        open_(box, private=new_sealing_key(), sender_public=sender, context=CONTEXT)


def _resigned(box: bytes, signer: Ed25519PrivateKey) -> bytes:
    """The box with a valid signature of `signer` over its present bytes: what somebody with a key of their own can do."""
    body = box[:-64]
    return body + signer.sign(sealing._to_sign(CONTEXT.digest(), hashlib.sha256(body).digest()))


def test_a_receipt_proves_the_sender_without_the_box() -> None:
    _, _, _, sender = people()
    box = boxed(b"update")
    receipt = sealing.receipt_of(io.BytesIO(box), len(box), CONTEXT)
    assert receipt.body_sha256 == hashlib.sha256(box[:-64]).hexdigest()
    receipt.verify(sender)
    for change in (
        {"body_sha256": "00" * 32},
        {"signature": "00" * 64},
        {"signature": "zz"},
        {"context": replace(CONTEXT, round=4)},
    ):
        with pytest.raises(SignatureError):
            replace(receipt, **change).verify(sender)  # type: ignore[arg-type]


def test_nobody_can_sign_a_box_of_another_as_their_own() -> None:
    private, _, _, _ = people()
    thief = Ed25519PrivateKey.generate()
    stolen = _resigned(boxed(b"update"), thief)
    with pytest.raises(SignatureError, match="does not open"):
        open_(stolen, private=private, sender_public=thief.public_key().public_bytes_raw(), context=CONTEXT)


@pytest.mark.parametrize("change", ["swap", "repeat", "cut", "length"])
def test_segments_hold_even_under_a_valid_signature(change: str) -> None:
    """The encryption alone, without the signature's help, refuses moved, repeated and missing segments."""
    _, _, signer, _ = people()
    box = boxed(bytes(range(48)))
    head, body = box[: 14 + 1168], box[14 + 1168 : -64]
    parts = [body[start : start + 32] for start in range(0, 96, 32)]
    if change == "swap":
        parts[0], parts[1] = parts[1], parts[0]
    elif change == "repeat":
        parts[1] = parts[0]
    else:
        parts.pop()
    if change in ("cut", "length"):
        head = sealing._HEADER.pack(sealing.MAGIC, 1, SMALL, 32) + head[14:]
    with pytest.raises(SignatureError):
        opened(_resigned(head + b"".join(parts) + bytes(64), signer))


def test_nothing_is_written_before_the_signature_holds() -> None:
    private, _, _, sender = people()
    box = bytearray(boxed(b"z" * 64))
    box[-70] ^= 1
    sink = io.BytesIO()
    with pytest.raises(SignatureError):
        open_stream(io.BytesIO(bytes(box)), len(box), sink, private=private, sender_public=sender, context=CONTEXT)
    assert sink.getvalue() == b""


def test_sealing_twice_gives_different_boxes() -> None:
    assert boxed(b"same") != boxed(b"same")


def test_a_short_source_and_a_wrong_public_key_are_named() -> None:
    _, recipient, signer, _ = people()
    with pytest.raises(DocumentError, match="ended before"):
        seal_stream(io.BytesIO(b"a"), 2, io.BytesIO(), recipient_public=recipient, signer=signer, context=CONTEXT)
    with pytest.raises(DocumentError, match="MLKEM768-X25519"):
        seal(b"a", recipient_public=b"short", signer=signer, context=CONTEXT)


@pytest.mark.parametrize("junk", [b"", b"FPS1", b"FPS2" + bytes(2000), os.urandom(3000), b"\x50\x4b" * 900])
def test_bytes_that_are_no_box_are_refused(junk: bytes) -> None:
    with pytest.raises(SignatureError):
        opened(junk)
