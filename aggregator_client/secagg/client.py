"""A site's side of one round of secure aggregation: five answers, each checked against all that went before and journalled.

    plan -> advert -> shares -> masked -> agree -> unmask

Every method takes what the coordinator sent and gives what goes back. Any check that fails erases the round's secrets and raises;
after that nothing of the round can be opened with this site's help.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from aggregator_client.errors import MessageError, RefusedError, TooFewSitesError
from aggregator_client.keys import SEALING_PUBLIC_BYTES
from aggregator_client.messages import Message
from aggregator_client.secagg import dealing, masks
from aggregator_client.secagg.dealing import Circle, Header, Secrets
from aggregator_client.secagg.journal import Journal
from aggregator_client.secagg.ring import LIMBS, Bits, Words
from aggregator_client.secagg.transcript import (
    Kind,
    Plan,
    Statement,
    hashed,
    pack,
    read,
    read_plan,
    say,
    unbundle,
    unpack,
)


@dataclass(frozen=True)
class Charter:
    """What this site approved: the sites (raw Ed25519 key by name), the fewest of them, and the terms of the sum."""

    project: str
    sites: Mapping[str, bytes]
    min_sites: int
    bits: Bits
    clip: float
    weight_cap: int
    again: int = 0
    """So often one model may be summed anew, each time after this site voted on what came of it."""

    def check(self, plan: Plan, me: str) -> None:
        """Raise RefusedError unless the plan keeps to the charter."""
        known = all(self.sites.get(name) == key for name, key in plan.members.items())
        terms = (plan.project, plan.bits, plan.clip, plan.weight_cap)
        if not known or me not in plan.members:
            raise RefusedError(
                f"The plan of round {plan.round} names sites or keys that this hospital did not approve."
            )
        if terms != (self.project, self.bits, self.clip, self.weight_cap):
            raise RefusedError(f"The plan of round {plan.round} has other terms than this hospital approved.")
        if len(plan.members) < max(3, self.min_sites):
            raise RefusedError(
                f"The plan of round {plan.round} has {len(plan.members)} sites where this hospital asks for"
                f" {max(3, self.min_sites)}: the sum of so few says too much about each."
            )


def roster_hash(plan_hash: bytes, adverts: Mapping[str, Statement]) -> bytes:
    """ctx1: the plan and everybody's keys of the round."""
    return hashed("roster", plan_hash, *(one.hash for one in adverts.values()))


def dealt_hash(ctx: bytes, headers: Mapping[str, Statement]) -> bytes:
    """ctx2: the roster and everything that was dealt."""
    return hashed("dealt", ctx, *(one.hash for one in headers.values()))


def survivors_hash(ctx: bytes, masked: Mapping[str, Statement]) -> bytes:
    """What the survivors agree on."""
    return hashed("survivors", ctx, *(one.hash for one in masked.values()))


def enough(plan: Plan, there: Set[str] | Mapping[str, object], stage: str) -> None:
    """Raise TooFewSitesError when fewer sites than the threshold are left."""
    if len(there) < plan.threshold:
        raise TooFewSitesError(
            f"Secure aggregation of round {plan.round} has {len(there)} of {len(plan.members)} sites left at {stage} and needs"
            f" {plan.threshold}: it ends with nothing revealed."
        )


@dataclass(frozen=True)
class Dealt:
    """What one site holds after the dealing. `payloads`: by dealer, itself among them; `ctx`: ctx2."""

    circle: Circle
    payloads: Mapping[str, bytes]
    ctx: bytes


class SecureClient:
    """One site in one attempt at one round. Raises FederationError for a plan it may not follow."""

    def __init__(
        self, me: str, signer: Ed25519PrivateKey, coordinator: bytes, charter: Charter, plan: bytes, journal: Journal
    ) -> None:
        self.me, self._signer = me, signer
        self.plan, self._plan_hash = read_plan(plan, coordinator)
        charter.check(self.plan, me)
        if self.plan.members[me] != signer.public_key().public_bytes_raw():
            raise RefusedError("The plan names another key for this site: it is not followed.")
        self._plan_bytes, self._attempt = plan, journal.attempt(self.plan, charter.again)

    @cached_property
    def _secrets(self) -> Secrets:
        return Secrets(self._attempt.master)

    # -- advert, shares -----------------------------------------------------------------------------------------------

    def advert(self) -> bytes:
        """This site's key of the round."""

        def make() -> bytes:
            return self._say("advert", {"plan": self._plan_hash.hex(), "key": pack(self._secrets.public)})

        return self._attempt.answer("advert", self._plan_bytes, make)

    def shares(self, adverts: bytes) -> Message:
        """This site's header, and a box for each other site."""

        def make() -> bytes:
            publics, circle = self._circle(adverts)
            header, boxes = dealing.box_up(self._secrets, self.me, circle, publics)
            return Message({}, {"header": self._say("header", header.body(circle.ctx)), "boxes": boxes}).encode()

        return Message.decode(self._attempt.answer("shares", adverts, make))

    def _circle(self, data: bytes, proven: bool = False) -> tuple[list[bytes], Circle]:
        """Everybody's keys, and the roster they make."""
        adverts = unbundle(data, "advert", self.plan.members, proven)
        enough(self.plan, adverts, "the exchange of keys")
        if self.me not in adverts or adverts[self.me].body.get("key") != pack(self._secrets.public):
            raise RefusedError("The coordinator replaced this site's key of the round: the round is given up here.")
        publics = [advert_key(one, self._plan_hash) for one in adverts.values()]
        if len(set(publics)) != len(publics):
            raise RefusedError("Two sites came with the same key of the round: the round is given up here.")
        return publics, Circle(tuple(adverts), self.plan.threshold, roster_hash(self._plan_hash, adverts))

    # -- masked -------------------------------------------------------------------------------------------------------

    def masked(
        self,
        dealt: Message,
        values: NDArray[np.float32],
        weight: int,
        out: Words | None = None,
        threads: int | None = None,
    ) -> tuple[bytes, Words]:
        """The signed digest and the masked vector. `values`: the update's change, `weight`: how much it counts."""
        if values.size + LIMBS != self.plan.dimension or not 0 < weight <= self.plan.weight_cap:
            self.give_up()
            raise RefusedError(
                f"This site's update has {values.size} elements and weight {weight}, which the plan does not fit."
            )
        request, made = dealt.encode(), list[Words]()

        def vector() -> tuple[Words, bytes, bytes]:
            mine = self._dealt(dealt)
            noise = hashed("rounding", self._secrets.noise_key, mine.ctx)
            share, streams = weight / self.plan.weight_cap, self._streams(mine)
            return *masks.mask(values, share, weight, self.plan.ring, streams, noise, out, threads), mine.ctx

        def make() -> bytes:
            masked, digest, ctx = vector()
            made.append(masked)
            return self._say("masked", {"dealt": ctx.hex(), "sha256": digest.hex()})

        statement = self._attempt.answer("masked", request, make)
        if not made:  # a repeated request: everything is drawn from the journal's master, so it is the same vector
            masked, digest, _ = vector()
            if f'"sha256":"{digest.hex()}"'.encode() not in statement:
                raise RefusedError("This site's update is not the one it masked before: the request is refused.")
            made.append(masked)
        return statement, made[0]

    def _headers(self, dealt: Message, proven: bool = False) -> tuple[Circle, dict[str, Statement]]:
        """The roster, and what each of it signed about its dealing."""
        asked, answered = self._attempt.kept("shares")
        _, circle = self._circle(asked, proven=True)
        own = Message.decode(answered).parts["header"]
        statements = unbundle(dealt.parts.get("headers", b""), "header", self.plan.members, proven)
        enough(self.plan, statements, "the dealing of shares")
        if (
            self.me not in statements
            or statements[self.me].encode() != own
            or not set(statements) <= set(circle.roster)
        ):
            raise RefusedError("The coordinator changed what was dealt: the round is given up here.")
        return circle, statements

    def _dealt(self, dealt: Message, proven: bool = False) -> Dealt:
        """What this site was dealt, everything checked against everything."""
        circle, statements = self._headers(dealt, proven)
        headers = {name: Header.read(one, circle) for name, one in statements.items()}
        others = [name for name in statements if name != self.me]
        boxes, size = dealt.parts.get("boxes", b""), circle.box_bytes
        if len(boxes) != size * len(others):
            raise MessageError("The coordinator did not send one box from each site: the round is given up here.")
        payloads = {self.me: dealing.deal(self._secrets, self.me, circle)[circle.roster.index(self.me)]}
        for at, name in enumerate(others):
            box = boxes[at * size : (at + 1) * size]
            payloads[name] = dealing.open_box(self._secrets, name, self.me, circle, headers[name], box)
        return Dealt(circle, payloads, dealt_hash(circle.ctx, statements))

    def _streams(self, mine: Dealt) -> list[masks.Stream]:
        place = mine.circle.roster.index
        found = [masks.stream(self._secrets.seed(place(self.me)), mine.ctx, 1)]
        for other, payload in mine.payloads.items():
            if other < self.me:
                found.append(masks.stream(dealing.pair_seed_in(payload), mine.ctx, -1))
            elif other > self.me:
                found.append(masks.stream(self._secrets.seed(place(other)), mine.ctx, 1))
        return found

    # -- agree, unmask ------------------------------------------------------------------------------------------------

    def agree(self, survivors: bytes) -> bytes:
        """This site's signature under the set of survivors, given once."""

        def make() -> bytes:
            asked, answered = self._attempt.kept("masked")
            circle, headers = self._headers(Message.decode(asked), proven=True)
            ctx = dealt_hash(circle.ctx, headers)
            masked = unbundle(survivors, "masked", {name: self.plan.members[name] for name in headers})
            enough(self.plan, masked, "the masked updates")
            if self.me not in masked or masked[self.me].encode() != answered:
                raise RefusedError(
                    "The coordinator left out or changed this site's update: the round is given up here."
                )
            if any(one.body.get("dealt") != ctx.hex() for one in masked.values()):
                raise RefusedError("The sites were dealt different shares: the round is given up here.")
            return self._say("agree", {"survivors": survivors_hash(ctx, masked).hex()})

        return self._attempt.answer("agree", survivors, make)

    def unmask(self, agreements: bytes) -> Message:
        """The shares that open the sum of the survivors, and no other."""

        def make() -> bytes:
            mine = self._dealt(Message.decode(self._attempt.kept("masked")[0]), proven=True)
            asked, answered = self._attempt.kept("agree")
            masked = unbundle(asked, "masked", self.plan.members, proven=True)
            agreement = read(answered, "agree", self.plan.members, proven=True)
            agreed = unbundle(agreements, "agree", {name: self.plan.members[name] for name in masked})
            enough(self.plan, agreed, "the agreement")
            if any(one.body != agreement.body for one in agreed.values()):
                raise RefusedError("The coordinator told the sites of different survivors: the round is given up here.")
            circle, parts = mine.circle, list[bytes]()
            for dealer, place, shown in dealing.revealed(circle, set(mine.payloads), set(masked)):
                share = dealing.shares_in(mine.payloads[dealer], len(circle.roster))[place]
                parts.append(share if shown else circle.leaf(dealer, self.me, place, share))
            data = b"".join(parts)
            statement = {"survivors": agreement.body["survivors"], "sha256": hashed("reveal", data).hex()}
            return Message({}, {"reveal": self._say("reveal", statement), "shares": data}).encode()

        return Message.decode(self._attempt.answer("unmask", agreements, make))

    def give_up(self) -> None:
        """Erase the secrets of this attempt."""
        self._attempt.give_up()

    def _say(self, kind: Kind, body: Mapping[str, str]) -> bytes:
        return say(kind, self.me, body, self._signer).encode()


def advert_key(advert: Statement, plan_hash: bytes) -> bytes:
    """The HPKE key in an advert of this plan. Raises MessageError."""
    if set(advert.body) != {"plan", "key"} or advert.body["plan"] != plan_hash.hex():
        raise MessageError(f"The advert of {advert.by} belongs to another plan: it is not used.")
    return unpack(advert.body["key"], SEALING_PUBLIC_BYTES, f"the key of {advert.by}")
