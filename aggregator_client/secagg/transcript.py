"""What the sites and the coordinator sign in a round of secure aggregation, and the hashes that bind each stage to the last.

A statement is canonical JSON with an Ed25519 signature over its domain-separated hash; equal statements have equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aggregator_client.errors import MessageError, RefusedError, SignatureError
from aggregator_client.secagg.ring import MAX_MEMBERS, Bits, Ring

Kind = Literal["plan", "advert", "header", "masked", "agree", "reveal", "vote"]
COORDINATOR = "coordinator"
HASH = 32


def hashed(domain: str, *parts: bytes) -> bytes:
    """SHA-256 of the parts, each with its length, under a domain."""
    state = hashlib.sha256(b"fedpacs secagg v1 " + domain.encode() + b"\x00")
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpack(text: Any, size: int, what: str) -> bytes:
    """Base64 of exactly `size` bytes. Raises MessageError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        data = b""
    if len(data) != size or pack(data) != text:
        raise MessageError(f"{what} is no value of {size} bytes: update fedpacs on both sides.")
    return data


@dataclass(frozen=True)
class Statement:
    """Something `by` signed."""

    kind: str
    by: str
    body: Mapping[str, Any]
    signature: bytes

    def encode(self) -> bytes:
        return canonical({"kind": self.kind, "by": self.by, "body": self.body, "signature": self.signature.hex()})

    @property
    def hash(self) -> bytes:
        """Of what was signed; the signature itself is no part of it."""
        return hashed("statement", self.kind.encode(), self.by.encode(), canonical(self.body))


def say(kind: Kind, by: str, body: Mapping[str, Any], signer: Ed25519PrivateKey) -> Statement:
    unsigned = Statement(kind, by, body, b"")
    return Statement(kind, by, body, signer.sign(unsigned.hash))


def read(data: bytes, kind: Kind, keys: Mapping[str, bytes], proven: bool = False) -> Statement:
    """A statement of this kind by one of `keys` (raw Ed25519 by name). Raises MessageError, SignatureError.

    proven: it stands in this site's own journal, which took it only after its signature was proven.
    """
    try:
        whole = json.loads(data)
        found = Statement(whole["kind"], whole["by"], whole["body"], bytes.fromhex(whole["signature"]))
        if found.kind != kind or not isinstance(found.body, dict) or found.encode() != data or found.by not in keys:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MessageError(
            f"A {kind} of secure aggregation is damaged or by nobody in the round: it is not used."
        ) from None
    if proven:
        return found
    try:
        Ed25519PublicKey.from_public_bytes(keys[found.by]).verify(found.signature, found.hash)
    except (InvalidSignature, ValueError):
        raise SignatureError(f"A {kind} of secure aggregation is not signed by {found.by!r}: it is not used.") from None
    return found


def bundle(statements: Iterable[Statement]) -> bytes:
    """Statements in the order of their signers' names."""
    return b"\n".join(one.encode() for one in sorted(statements, key=lambda one: one.by))


def unbundle(data: bytes, kind: Kind, keys: Mapping[str, bytes], proven: bool = False) -> dict[str, Statement]:
    """By signer, in order. Raises MessageError when two are by the same, SignatureError."""
    found: dict[str, Statement] = {}
    for line in data.split(b"\n") if data else []:
        one = read(line, kind, keys, proven)
        if found and one.by <= max(found):
            raise MessageError(f"The {kind}s of secure aggregation are out of order or doubled: they are not used.")
        found[one.by] = one
    return found


def threshold(members: int) -> int:
    """⌊2n/3⌋ + 1: fewer than 2t - n sites that help a hostile coordinator learn nothing; n - t may drop out."""
    return 2 * members // 3 + 1


@dataclass(frozen=True)
class Plan:
    """One attempt at one round. `base`: hex SHA-256 of the model it starts from; `members`: raw Ed25519 key by name."""

    project: str
    run: str
    round: int
    nonce: str
    base: str
    members: Mapping[str, bytes]
    dimension: int
    bits: Bits
    clip: float
    weight_cap: int

    @property
    def threshold(self) -> int:
        return threshold(len(self.members))

    @property
    def ring(self) -> Ring:
        return Ring(self.bits, len(self.members), self.clip)

    def body(self) -> dict[str, Any]:
        members = {name: key.hex() for name, key in sorted(self.members.items())}
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "members": members}

    def signed(self, signer: Ed25519PrivateKey) -> Statement:
        return say("plan", COORDINATOR, self.body(), signer)


def read_plan(data: bytes, coordinator_public: bytes) -> tuple[Plan, bytes]:
    """The plan and its hash. Raises MessageError, SignatureError, and RefusedError for one that no site may follow."""
    statement = read(data, "plan", {COORDINATOR: coordinator_public})
    try:
        body = dict(statement.body)
        body["members"] = {str(name): bytes.fromhex(key) for name, key in body["members"].items()}
        plan = Plan(**body)
        kinds = {"round": int, "dimension": int, "bits": int, "weight_cap": int, "clip": float}
        whole = all(type(body[name]) is kind for name, kind in kinds.items()) and plan.body() == statement.body
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise MessageError("The plan of secure aggregation is damaged: update fedpacs on both sides.")
    sound = plan.bits in (16, 32, 64) and 0 < plan.clip < 1e6 and 0 < plan.weight_cap < 2**32 and plan.dimension > 0
    if not sound or not 3 <= len(plan.members) <= MAX_MEMBERS or len(set(plan.members.values())) != len(plan.members):
        raise RefusedError(
            f"The plan of round {plan.round} has {len(plan.members)} sites or settings outside of what secure aggregation"
            f" stands for (3 to {MAX_MEMBERS} sites with a key each): it is not followed."
        )
    return plan, statement.hash
