"""Seals bytes to one recipient and signs them as one sender, bound to the project, round and roles they were made for.

HPKE (RFC 9180, single-shot, KEM MLKEM768-X25519 "X-Wing", hybrid post-quantum) wraps a fresh content key; the bulk is
AES-256-GCM in bounded segments (the STREAM construction: a counter and a last-segment flag in the nonce, so that cutting,
reordering, repeating or appending segments fails). HPKE base mode says nothing about the sender, so an Ed25519 signature over
the context's and the body's SHA-256 follows; context, body's hash and signature make a `Receipt`, which proves who sent what
without the box itself.

    magic "FPS1" | suite u8 | log2 of the segment size u8 | plaintext length u64          header, 14 bytes
    wrapped content key                                                                  1168 bytes
    segment 0 | segment 1 | ... each ciphertext + 16-byte tag                            at least one
    Ed25519 signature                                                                    64 bytes

HPKE's info binds the same context, the header and the signer's public key: a box cannot be re-addressed, replayed into
another round or project, or re-signed by someone else. Do not use it for a message to many: each recipient gets a box.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from aggregator_client.errors import DocumentError, SignatureError
from aggregator_client.keys import sealing_private_key, sealing_public_key

MAGIC = b"FPS1"
SUITE_ID = 1
SEGMENT_BITS = 20
_MAX_SEGMENT_BITS = 26
_HEADER = struct.Struct(">4sBBQ")
_TAG = 16
_SIGNATURE = 64
_KEY = 32
_WRAPPED = KEM.MLKEM768_X25519.enc_length() + _KEY + _TAG
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO = b"fedpacs seal v1 hpke\x00"
_SIGN = b"fedpacs seal v1 signature\x00"


@dataclass(frozen=True)
class Context:
    """What a sealed message is for. Every field is bound into the seal and into the signature.

    `kind` says what the bytes are ("update", "model", ...); `roster_hash` and `schema_hash` are hex digests of the round's
    members and of the tensors' names and shapes, empty where there is none yet.
    """

    project_digest: str
    round: int
    sender: str
    recipient: str
    kind: str
    roster_hash: str = ""
    schema_hash: str = ""

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of all fields."""
        body = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(b"fedpacs context v1\x00" + body.encode()).digest()


@dataclass(frozen=True)
class Receipt:
    """What proves that a sender signed a box: small enough to keep for every message. Hex digest and hex signature."""

    context: Context
    body_sha256: str
    signature: str

    def verify(self, sender_public: bytes) -> None:
        """Raises SignatureError when `sender_public` (raw Ed25519) did not sign this body for this context."""
        try:
            key = Ed25519PublicKey.from_public_bytes(sender_public)
            key.verify(bytes.fromhex(self.signature), _to_sign(self.context.digest(), bytes.fromhex(self.body_sha256)))
        except (InvalidSignature, ValueError):
            raise SignatureError(
                f"The sealed {_what(self.context)} is not signed by {self.context.sender!r} for this project, round and"
                " recipient, or was changed on its way: it is not used."
            ) from None


def overhead(length: int, segment_bits: int = SEGMENT_BITS) -> int:
    """How many bytes sealing adds to `length` bytes."""
    return _HEADER.size + _WRAPPED + _segments(length, segment_bits) * _TAG + _SIGNATURE


def seal(plaintext: bytes, *, recipient_public: bytes, signer: Ed25519PrivateKey, context: Context) -> bytes:
    """`plaintext` as a sealed box only `recipient_public` (1216 bytes, see keys.py) can open, signed by `signer`."""
    sink = io.BytesIO()
    source = io.BytesIO(plaintext)
    seal_stream(source, len(plaintext), sink, recipient_public=recipient_public, signer=signer, context=context)
    return sink.getvalue()


def open_(blob: bytes, *, private: bytes, sender_public: bytes, context: Context) -> bytes:
    """The plaintext of a box made by `sender_public` (raw Ed25519, 32 bytes) for `private` and exactly this context.

    Raises SignatureError for anything else: a changed byte, another sender, recipient, project, round, kind, roster or schema.
    """
    sink = io.BytesIO()
    open_stream(io.BytesIO(blob), len(blob), sink, private=private, sender_public=sender_public, context=context)
    return sink.getvalue()


def seal_stream(
    source: BinaryIO,
    length: int,
    sink: BinaryIO,
    *,
    recipient_public: bytes,
    signer: Ed25519PrivateKey,
    context: Context,
    segment_bits: int = SEGMENT_BITS,
) -> None:
    """Like `seal`, from `length` bytes of `source` into `sink`, holding two segments of 2**segment_bits bytes in memory.

    Raises DocumentError when the source ends early.
    """
    header = _HEADER.pack(MAGIC, SUITE_ID, segment_bits, length)
    bound = context.digest()
    content_key = os.urandom(_KEY)
    info = _info(bound, header, signer.public_key().public_bytes_raw())
    wrapped = _SUITE.encrypt(content_key, sealing_public_key(recipient_public), info=info)
    transcript = hashlib.sha256()
    for part in (header, wrapped):
        transcript.update(part)
        sink.write(part)
    cipher = AESGCM(content_key)
    for nonce, size in _nonces(length, segment_bits):
        plain = source.read(size)
        if len(plain) != size:
            raise DocumentError(f"The source to seal ended before its {length} bytes: write it again and retry.")
        part = cipher.encrypt(nonce, plain, None)
        transcript.update(part)
        sink.write(part)
    sink.write(signer.sign(_to_sign(bound, transcript.digest())))


def open_stream(
    source: BinaryIO, size: int, sink: BinaryIO, *, private: bytes, sender_public: bytes, context: Context
) -> None:
    """Like `open_`, from `size` bytes at the current position of a seekable `source` into `sink`.

    Two passes: nothing is decrypted before the signature over all of it has been checked.
    """
    start = source.tell()
    header = source.read(_HEADER.size)
    length, segment_bits = _parse(header, size, context)
    bound = context.digest()
    source.seek(start)
    receipt = receipt_of(source, size, context)
    receipt.verify(sender_public)
    source.seek(start + _HEADER.size)
    wrapped = source.read(_WRAPPED)
    try:
        content_key = _SUITE.decrypt(wrapped, sealing_private_key(private), info=_info(bound, header, sender_public))
        cipher = AESGCM(content_key)
        for nonce, plain_size in _nonces(length, segment_bits):
            sink.write(cipher.decrypt(nonce, source.read(plain_size + _TAG), None))
    except (InvalidTag, ValueError):
        raise SignatureError(
            f"The sealed {_what(context)} does not open with this key: it was sealed for another recipient; ask for it again."
        ) from None


def _info(bound: bytes, header: bytes, sender_public: bytes) -> bytes:
    return _INFO + bound + header + sender_public


def _segments(length: int, segment_bits: int) -> int:
    """At least one, so that an empty message is authenticated too."""
    return max(1, -(-length >> segment_bits))


def _nonces(length: int, segment_bits: int) -> Iterator[tuple[bytes, int]]:
    """(nonce, plaintext size) of each segment. The key is fresh for each box, so a counter never repeats under it."""
    count = _segments(length, segment_bits)
    for index in range(count):
        last = index == count - 1
        size = length - (index << segment_bits) if last else 1 << segment_bits
        yield struct.pack(">QI", index, int(last)), size


def _parse(header: bytes, size: int, context: Context) -> tuple[int, int]:
    """(plaintext length, segment bits) of a header that fits a box of `size` bytes; SignatureError otherwise."""
    if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
        raise SignatureError(
            f"The sealed {_what(context)} is not a box of a version known here (FPS1): ask the sender to update or resend."
        )
    _, suite, segment_bits, length = _HEADER.unpack(header)
    fits = suite == SUITE_ID and segment_bits <= _MAX_SEGMENT_BITS and size == length + overhead(length, segment_bits)
    if not fits:
        raise SignatureError(f"The sealed {_what(context)} was cut short, lengthened or changed: ask for it again.")
    return length, segment_bits


def receipt_of(source: BinaryIO, size: int, context: Context) -> Receipt:
    """The receipt of a box of `size` bytes at the current position of `source`. Nothing of it is proven yet."""
    transcript, left = hashlib.sha256(), size - _SIGNATURE
    while left > 0:
        part = source.read(min(left, 1 << SEGMENT_BITS))
        if not part:
            break
        transcript.update(part)
        left -= len(part)
    return Receipt(context, transcript.hexdigest(), source.read(_SIGNATURE).hex())


def _to_sign(bound: bytes, body: bytes) -> bytes:
    return _SIGN + bound + body


def _what(context: Context) -> str:
    return f"{context.kind} of round {context.round} from {context.sender!r} to {context.recipient!r}"
