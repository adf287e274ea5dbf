"""One member of a decentralised federation: what it offers, promises, proposes, votes for and writes into its ledger.

A round is driven by calling `offer` with the trained weights and then `turn(ballot)` until it answers True; when nothing moves
for a while, with the next ballot. Promises and votes are on disk before they are sent: a node killed at any moment keeps its
word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator_client import messages
from aggregator_client.decentral.chain import (
    GENESIS,
    Block,
    Peer,
    Sealed,
    append,
    canonical,
    majority,
    read,
    to_sign,
    verifies,
    verify,
    vote_body,
    write_whole,
)  # fmt: skip
from aggregator_client.decentral.relay import Relay
from aggregator_client.errors import FederationError, MessageError
from aggregator_client.keys import NodeKeys
from aggregator_client.messages import Message
from aggregator_client.sealing import Context
from trainer import weights
from trainer.errors import TrainerError
from trainer.weights import Weights


@dataclass
class Node:
    """`ledger` is this node's file; its folder also holds what it promised. `model` is that of the last block, or the start."""

    name: str
    keys: NodeKeys
    members: Sequence[Peer]
    relay: Relay
    project: str
    ledger: Path
    model: Weights

    def __post_init__(self) -> None:
        self.peers = {peer.name: peer for peer in self.members}
        self._opened: dict[tuple[int, str], tuple[str, Message] | None] = {}
        self.chain = read(self.ledger)
        digest = verify(self.chain, self.members, self.project)
        if digest:
            self.model = weights.load(self._model_file(len(self.chain)))
            if weights_digest(self.model) != digest:
                raise MessageError(f"{self.ledger} and the model beside it do not fit: put back a copy of both.")

    @property
    def round(self) -> int:
        """The round under way, from 1."""
        return len(self.chain) + 1

    # -- the update ---------------------------------------------------------------------------------------------------

    def offer(self, trained: Weights, samples: int) -> None:
        """Put this node's update on the relay, sealed to every member, itself among them; then say what it holds.

        A node offers one update a round: after a restart the one on disk goes out again.
        """
        file = self._beside("offer")
        if not file.exists():
            start = weights_digest(self.model)
            write_whole(
                file, Message({"samples": samples, "start": start}, {"model": weights.to_bytes(trained)}).encode()
            )
        message = Message.decode(file.read_bytes())
        for peer in self.members:
            context = Context(self.project, self.round, self.name, peer.name, "peer-update")
            blob = messages.wrap(message, context, recipient_public=peer.sealing_public, signer=self.keys.signing)
            self.relay.put(f"{self.project}/{self.round}/update/{peer.name}", blob)
        self.declare()

    def offered(self) -> bool:
        """Whether this node's update of the round under way is on its disk."""
        return self._beside("offer").exists()

    def latest_ballot(self) -> int:
        """The latest ballot that a member is in; 0 before the first. Members that follow it meet in one ballot."""
        return max((int(body["ballot"]) for _, body in self._said("promise")), default=0)

    def forget(self, rounds: int) -> None:
        """Drop what lies beside the ledger of all but the last `rounds` rounds: old models, offers and promises."""
        for file in self.ledger.parent.glob(f"{self.ledger.name}.*"):
            number = file.name.removeprefix(f"{self.ledger.name}.").split(".")[0]
            if number.isdigit() and int(number) < len(self.chain) - rounds + 1:
                file.unlink()

    def received(self) -> dict[str, Message]:
        """The proven updates to this node by member. One that does not fit, or two different ones by a member, are left out."""
        found: dict[str, dict[str, Message]] = {}
        for blob in self.relay.get(f"{self.project}/{self.round}/update/{self.name}"):
            key = (self.round, hashlib.sha256(blob).hexdigest())
            if key not in self._opened:
                self._opened[key] = self._open(blob)
            opened = self._opened[key]
            if opened is not None:
                found.setdefault(opened[0], {})[opened[1].digest()] = opened[1]
        return {name: next(iter(said.values())) for name, said in found.items() if len(said) == 1}

    def _open(self, blob: bytes) -> tuple[str, Message] | None:
        """(sender, update), or None for bytes that are no member's update of this round: anybody can write to a relay."""
        try:
            sender = self.peers[messages.peek(blob)[0].sender]
            expect = Context(self.project, self.round, sender.name, self.name, "peer-update")
            _, message = messages.unwrap(
                blob, private=self.keys.sealing, sender_public=sender.signing_public, expect=expect
            )
            self._check(message)
        except (FederationError, TrainerError, KeyError):
            return None
        return sender.name, message

    def _check(self, message: Message) -> None:
        arrays, samples = weights.from_bytes(message.parts["model"]), message.header.get("samples")
        start = message.header.get("start")
        if type(samples) is not int or not 1 <= samples <= 10**9 or start != weights_digest(self.model):
            raise MessageError("An update names no samples or began with another model: it is left out.")
        for name in arrays.keys() | self.model.keys():
            value, like = arrays.get(name), self.model.get(name)
            if value is None or like is None or value.shape != like.shape or value.dtype != like.dtype:
                raise MessageError("An update does not fit the model: it is left out.")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise MessageError("An update holds NaN or infinite values: it is left out.")

    def declare(self) -> None:
        """Say, signed, whose updates this node holds."""
        self._say("holding", {"holds": {name: message.digest() for name, message in self.received().items()}})

    def agreed(self) -> tuple[tuple[str, str], ...]:
        """(member, update digest) of the updates that a majority of all members says to hold, by name."""
        holders: dict[tuple[str, str], set[str]] = {}
        for by, body in self._said("holding"):
            for name, digest in body["holds"].items():
                if name in self.peers:
                    holders.setdefault((name, str(digest)), set()).add(by)
        enough = [pair for pair, by in holders.items() if len(by) >= majority(self.members)]
        names = [name for name, _ in enough]
        return tuple(sorted(pair for pair in enough if names.count(pair[0]) == 1))

    # -- the agreement ------------------------------------------------------------------------------------------------

    def turn(self, ballot: int) -> bool:
        """Do what this node can do in a ballot (from 1). True once the round's block is in its ledger.

        Ballot b belongs to the member at place b modulo their number: every member gets its turn to propose.
        """
        if self.close():
            return True
        self.declare()
        self._promise(ballot)
        if sorted(self.peers)[ballot % len(self.peers)] == self.name:
            self._propose(ballot)
        self._vote(ballot)
        return self.close()

    def _promise(self, ballot: int) -> None:
        """Promise to vote in no earlier ballot, and tell the last vote given."""
        word = self._word()
        if ballot < word["promised"]:
            return
        if ballot > word["promised"]:
            word["promised"] = ballot
            write_whole(self._beside("word"), canonical(word))
        self._say("promise", {"ballot": ballot, "accepted": word["accepted"]})

    def _propose(self, ballot: int) -> None:
        """With a majority's promises: the block voted for in the latest ballot they tell, or one of the agreed updates."""
        promises = {by: body["accepted"] for by, body in self._said("promise") if body["ballot"] == ballot}
        file = self._beside(f"proposal-{ballot}")
        if not file.exists():
            if len(promises) < majority(self.members):
                return
            told = [accepted for accepted in promises.values() if accepted is not None]
            block = max(told, key=lambda one: int(one[0]))[1] if told else self._fresh()
            if block is None:
                return
            write_whole(file, canonical(block))
        self._say("proposal", {"ballot": ballot, "block": json.loads(file.read_bytes())})

    def _fresh(self) -> dict[str, Any] | None:
        """A block of the updates that a majority holds; None while they are too few or this node lacks one."""
        used = self.agreed()
        merged = self._merge(used) if len(used) >= majority(self.members) else None
        if merged is None:
            return None
        return asdict(Block(self.project, self.round, self._previous(), used, weights_digest(merged)))

    def _vote(self, ballot: int) -> None:
        """Vote for the ballot's one proposal when this node computes the same model from the updates it names."""
        proposer = sorted(self.peers)[ballot % len(self.peers)]
        blocks = {
            canonical(body["block"])
            for by, body in self._said("proposal")
            if by == proposer and body["ballot"] == ballot
        }
        word = self._word()
        if len(blocks) != 1 or ballot < word["promised"]:
            return
        block = Block.of(json.loads(blocks.pop()))
        merged = self._merge(block.used) if self._follows(block) else None
        if merged is None or weights_digest(merged) != block.model:
            return
        write_whole(self._beside("word"), canonical({"promised": ballot, "accepted": [ballot, asdict(block)]}))
        body = vote_body(block, ballot, self.name)
        mark = self.keys.signing.sign(to_sign("vote", body)).hex()
        self._put("vote", {"block": asdict(block), "ballot": ballot, "by": self.name, "signature": mark})

    def close(self) -> bool:
        """Take the block that a majority voted for in one ballot into the ledger; False while there is none.

        Also False while this node lacks one of the updates it names: their senders put them on the relay again.
        """
        votes: dict[tuple[Block, int], dict[str, str]] = {}
        for facts in self._raw("vote"):
            try:
                block, ballot, by = Block.of(facts["block"]), int(facts["ballot"]), self.peers[facts["by"]]
                body, mark = vote_body(block, ballot, by.name), str(facts["signature"])
            except (ValueError, KeyError, TypeError):
                continue
            if self._follows(block) and verifies(by.signing_public, mark, to_sign("vote", body)):
                votes.setdefault((block, ballot), {})[by.name] = mark
        for (block, ballot), marks in votes.items():
            merged = self._merge(block.used) if len(marks) >= majority(self.members) else None
            if merged is not None and weights_digest(merged) == block.model:
                weights.save(self._model_file(self.round), merged)
                entry = Sealed(block, ballot, marks)
                append(self.ledger, entry)
                self.chain.append(entry)
                self.model = merged
                self._opened.clear()
                return True
        return False

    def _follows(self, block: Block) -> bool:
        return (block.project, block.round, block.previous) == (self.project, self.round, self._previous())

    def _previous(self) -> str:
        return self.chain[-1].block.digest() if self.chain else GENESIS

    def _merge(self, used: Sequence[tuple[str, str]]) -> Weights | None:
        """FedAvg's mean of the named updates in the order of names: the same bits at every node. None when one is lacking."""
        mine = self.received()
        if any(name not in mine or mine[name].digest() != digest for name, digest in used):
            return None
        arrays = [weights.from_bytes(mine[name].parts["model"]) for name, _ in used]
        return weights.average(arrays, [int(mine[name].header["samples"]) for name, _ in used])

    # -- the relay and the disk ---------------------------------------------------------------------------------------

    def _say(self, kind: str, facts: Mapping[str, Any]) -> None:
        body = {**facts, "project": self.project, "round": self.round, "by": self.name}
        self._put(kind, {"body": body, "signature": self.keys.signing.sign(to_sign(kind, body)).hex()})

    def _said(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(member, body) of what members signed for this round; anything else on the relay is passed over."""
        for whole in self._raw(kind):
            try:
                body = dict(whole["body"])
                peer = self.peers[body["by"]]
                fits = (body["project"], body["round"]) == (self.project, self.round)
                if fits and verifies(peer.signing_public, str(whole["signature"]), to_sign(kind, body)):
                    yield peer.name, body
            except (ValueError, KeyError, TypeError):
                continue

    def _put(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.relay.put(f"{self.project}/{self.round}/{kind}", canonical(facts))

    def _raw(self, kind: str) -> Iterator[Any]:
        for data in self.relay.get(f"{self.project}/{self.round}/{kind}"):
            try:
                yield json.loads(data)
            except (ValueError, RecursionError):
                continue

    def _word(self) -> dict[str, Any]:
        """What this node promised and last voted for in this round."""
        file = self._beside("word")
        return dict(json.loads(file.read_bytes())) if file.exists() else {"promised": 0, "accepted": None}

    def _beside(self, what: str) -> Path:
        return self.ledger.with_name(f"{self.ledger.name}.{self.round:05d}.{what}")

    def _model_file(self, number: int) -> Path:
        return self.ledger.with_name(f"{self.ledger.name}.{number:05d}.safetensors")


def weights_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hex SHA-256 of the safetensors bytes."""
    return hashlib.sha256(weights.to_bytes(arrays)).hexdigest()
