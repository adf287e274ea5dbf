"""Replaces signing and sealing keys: the old key's signature introduces the new one, and revoked keys introduce nobody.

    keys of generation n ──signs──▶ Succession (old keys, new keys, holder, number, time) ◀──signs── keys of generation n + 1

Messages carry their sender's successions in clear (aggregator_client.messages), so that a peer who knows any earlier generation
learns the present one from the first message under it, without a telephone call; the peer keeps what it learnt. That is right for
a key replaced in good order. A key that may have been stolen must not introduce anybody: `replace(..., compromised=True)` begins
anew, and the peers take the new keys as they took the first ones, by file and fingerprint.

Only signing and sealing keys are replaced so. The key a node authenticates its connection with (P-384) is replaced by enrolling
again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aggregator_client.errors import DocumentError, RefusedError, SignatureError
from aggregator_client.keys import (
    SEALING_PUBLIC_BYTES,
    CoordinatorKeys,
    coordinator_keys,
    fingerprint,
    install_generation,
    new_sealing_key,
)
from aggregator_client.project import canonical

MAX_SUCCESSIONS = 64
_OLD, _NEW = b"fedpacs succession v1 old\x00", b"fedpacs succession v1 new\x00"


@dataclass(frozen=True)
class Pair:
    """One generation of public keys: raw Ed25519 (32 bytes), MLKEM768-X25519 (1216 bytes)."""

    signing: bytes
    sealing: bytes

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing, self.sealing)


class Succession(BaseModel):
    """The statement that one pair of keys follows another. `signature` is by the old signing key, `possession` by the new."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field(default="fedpacs-succession-1", pattern="^fedpacs-succession-1$")
    holder: str = Field(min_length=1, max_length=120)
    number: int = Field(ge=2, lt=10**9)
    signing_before: str
    sealing_before: str
    signing_public: str
    sealing_public: str
    at: int = Field(ge=0)
    signature: str = ""
    possession: str = ""

    @field_validator("signing_before", "sealing_before", "signing_public", "sealing_public")
    @classmethod
    def _key(cls, value: str, info: Any) -> str:
        size = 32 if info.field_name.startswith("signing") else SEALING_PUBLIC_BYTES
        if len(base64.b64decode(value, validate=True)) != size:
            raise ValueError(f"must be {size} bytes in base64")
        return value

    @property
    def before(self) -> Pair:
        return Pair(base64.b64decode(self.signing_before), base64.b64decode(self.sealing_before))

    @property
    def after(self) -> Pair:
        return Pair(base64.b64decode(self.signing_public), base64.b64decode(self.sealing_public))

    def _digest(self) -> bytes:
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude={"signature", "possession"}))).digest()

    def signed(self, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> Succession:
        digest = self._digest()
        marks = {"signature": old.sign(_OLD + digest), "possession": new.sign(_NEW + digest)}
        return self.model_copy(update={name: base64.b64encode(mark).decode() for name, mark in marks.items()})

    def verify(self) -> Succession:
        """Itself. Raises SignatureError when not both keys signed it."""
        digest = self._digest()
        try:
            for key, domain, mark in (
                (self.before.signing, _OLD, self.signature),
                (self.after.signing, _NEW, self.possession),
            ):
                Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(mark, validate=True), domain + digest)
        except (InvalidSignature, ValueError):
            raise SignatureError(
                f"The statement that {self.holder!r} replaced its keys is not signed by the old and the new key: it is not"
                " used; call its owner."
            ) from None
        return self


def read(statements: Sequence[bytes | Any]) -> tuple[Succession, ...]:
    """Successions from JSON bytes or values, each verified by itself. Raises DocumentError, SignatureError."""
    if len(statements) > MAX_SUCCESSIONS:
        raise DocumentError(f"{len(statements)} replaced keys are more than {MAX_SUCCESSIONS}: enrol or join again.")
    found = []
    for one in statements:
        try:
            made = Succession.model_validate_json(one) if isinstance(one, bytes) else Succession.model_validate(one)
        except (ValidationError, RecursionError):
            raise DocumentError("A statement about replaced keys is damaged: ask its owner for it again.") from None
        found.append(made.verify())
    return tuple(found)


def follow(start: Pair, chain: Sequence[Succession], holder: str) -> list[Pair]:
    """Every generation from `start` on. Raises SignatureError when a link is another holder's or does not fit the one before."""
    known = [start]
    for link in chain:
        if link.holder != holder or link.before != known[-1]:
            raise SignatureError(
                f"The statements about replaced keys of {holder!r} do not follow each other: they are not used; call its owner."
            )
        known.append(link.after)
    return known


def extended(start: Pair, known: Sequence[Succession], told: Sequence[Succession], holder: str) -> list[Succession]:
    """`known` successions, or more when `told` leads on from the newest of them; what it tells of older ones is passed over.

    Raises SignatureError when `told` does lead on from there but a link of it does not fit.
    """
    newest = follow(start, known, holder)[-1]
    place = next((index for index, link in enumerate(told) if link.before == newest), None)
    if place is None:
        return list(known)
    follow(newest, told[place:], holder)
    return [*known, *told[place:]]


def replace(folder: Path, holder: str, compromised: bool = False) -> CoordinatorKeys:
    """Make new signing and sealing keys in a key folder and put them to use. Returns them.

    Killed at any moment, the old ones or the new ones are in use, whole. Raises RefusedError after MAX_SUCCESSIONS, StateError.
    """
    old = coordinator_keys(folder)
    if len(old.introductions) >= MAX_SUCCESSIONS and not compromised:
        raise RefusedError(f"These keys were replaced {MAX_SUCCESSIONS} times: begin anew with --compromised.")
    new = CoordinatorKeys(Ed25519PrivateKey.generate(), new_sealing_key(), generation=old.generation + 1)
    statement = None
    if not compromised:
        before, after = old.public_base64(), new.public_base64()
        made = Succession(
            holder=holder,
            number=new.generation,
            signing_before=before["signing_public"],
            sealing_before=before["sealing_public"],
            **after,
            at=int(time.time()),
        ).signed(old.signing, new.signing)
        statement = made.model_dump_json().encode()
    install_generation(folder, new, statement)
    return coordinator_keys(folder)


def lineage(keys: CoordinatorKeys) -> list[Pair]:
    """Every generation of one's own keys since the last new beginning, the present one last."""
    chain = read(keys.introductions)
    present = Pair(keys.signing_public, keys.sealing_public)
    return [*(link.before for link in chain), present]


def as_values(chain: Sequence[Succession]) -> list[dict[str, Any]]:
    """JSON values, as files and messages carry them."""
    return [json.loads(link.model_dump_json()) for link in chain]
