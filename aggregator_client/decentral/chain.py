"""The ledger of decentralised rounds: signed, hash-chained blocks in a file, one a line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aggregator_client.errors import SignatureError, StateError

GENESIS = "0" * 64
_SIGN = b"fedpacs decentral v1\x00"


@dataclass(frozen=True)
class Peer:
    """A member: its name and public keys (Ed25519, MLKEM768-X25519)."""

    name: str
    signing_public: bytes
    sealing_public: bytes


@dataclass(frozen=True)
class Block:
    """One round's outcome. `used`: (member, SHA-256 of its update's plaintext) by name; `model`: SHA-256 of the new weights."""

    project: str
    round: int
    previous: str
    used: tuple[tuple[str, str], ...]
    model: str

    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON: what the next block names."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Block:
        """From its JSON values. KeyError, TypeError or ValueError for anything else."""
        used = tuple((str(name), str(digest)) for name, digest in facts["used"])
        number = facts["round"]
        if set(facts) != {"project", "round", "previous", "used", "model"} or type(number) is not int:
            raise ValueError("not a block")
        return cls(str(facts["project"]), number, str(facts["previous"]), used, str(facts["model"]))


@dataclass(frozen=True)
class Sealed:
    """A block with the ballot and the votes (hex signatures by member) that make it count."""

    block: Block
    ballot: int
    votes: Mapping[str, str]

    def line(self) -> bytes:
        return (
            canonical({"block": asdict(self.block), "ballot": self.ballot, "votes": dict(sorted(self.votes.items()))})
            + b"\n"
        )


def canonical(value: Any) -> bytes:
    """The one byte string of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def to_sign(kind: str, body: Mapping[str, Any]) -> bytes:
    """What a member signs for a message of that kind."""
    return _SIGN + kind.encode() + b"\x00" + hashlib.sha256(canonical(body)).digest()


def vote_body(block: Block, ballot: int, by: str) -> dict[str, Any]:
    """A vote's signed content."""
    return {"by": by, "project": block.project, "round": block.round, "ballot": ballot, "block": block.digest()}


def verifies(key: bytes, signature: str, what: bytes) -> bool:
    """Whether `key` (raw Ed25519) signed `what`."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(signature), what)
    except (InvalidSignature, ValueError):
        return False
    return True


def majority(members: Sequence[Peer]) -> int:
    """More than half of all members."""
    return len(members) // 2 + 1


def verify(chain: Sequence[Sealed], members: Sequence[Peer], project: str) -> str:
    """The digest of the last model in the ledger, "" for an empty one. SignatureError names the first round that fails."""
    keys, previous, model = {m.name: m.signing_public for m in members}, GENESIS, ""
    for number, entry in enumerate(chain, 1):
        block = entry.block
        votes = [
            name
            for name, mark in entry.votes.items()
            if name in keys and verifies(keys[name], mark, to_sign("vote", vote_body(block, entry.ballot, name)))
        ]
        names = [name for name, _ in block.used]
        fits = (block.project, block.round, block.previous) == (project, number, previous)
        known = len(names) >= majority(members) and names == sorted(set(names) & set(keys))
        if not fits or not known or len(votes) < majority(members):
            raise SignatureError(
                f"Round {number} of the ledger does not hold (its order, members or votes): ask another node for its copy."
            )
        previous, model = block.digest(), block.model
    return model


def read(ledger: Path) -> list[Sealed]:
    """The blocks of a ledger file; a torn last line is left out. StateError when another line is none."""
    if not ledger.exists():
        return []
    try:
        facts = [json.loads(line) for line in ledger.read_bytes().split(b"\n")[:-1]]
        return [Sealed(Block.of(one["block"]), int(one["ballot"]), dict(one["votes"])) for one in facts]
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{ledger} is damaged: put back a copy, or another node's ledger.") from None


def append(ledger: Path, entry: Sealed) -> None:
    """Add a block, durable when this returns; what a power cut left half written before it is taken off."""
    descriptor = os.open(ledger, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        whole = data.rfind(b"\n") + 1
        os.ftruncate(descriptor, whole)
        os.pwrite(descriptor, entry.line(), whole)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, data: bytes) -> None:
    """Whole or absent, and durable when this returns."""
    part = file.with_name(file.name + ".part")
    with part.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(file)
