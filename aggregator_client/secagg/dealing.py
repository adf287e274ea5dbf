"""One site's secrets of a round and the boxes that carry their shares: dealt, opened, checked and revealed.

Everything is drawn from one 32-byte master, so that what is journalled is small and a restarted site goes on with the same. A
site draws one seed for each place in the roster: its own place holds the seed of its self mask, a later place that of the mask
it shares with that site, an earlier place a dummy (so that sizes tell nobody's place). Each is shared among all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from aggregator_client.errors import AccusedError, MessageError
from aggregator_client.keys import SEALING_PRIVATE_BYTES, sealing_private_key, sealing_public_key, sealing_public_of
from aggregator_client.secagg import shamir
from aggregator_client.secagg.shamir import COEFFICIENT_BYTES, SHARE_BYTES
from aggregator_client.secagg.transcript import HASH, Statement, hashed, pack, unpack

SEED = 32
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_BOX_EXTRA = KEM.MLKEM768_X25519.enc_length() + 16


@dataclass(frozen=True)
class Secrets:
    """What a site draws for a round, from its master."""

    master: bytes

    def draw(self, label: str, size: int) -> bytes:
        return hashlib.shake_256(b"fedpacs secagg v1 draw\x00" + self.master + label.encode()).digest(size)

    @cached_property
    def private(self) -> bytes:
        """The HPKE key of the round, as `keys.sealing_private_key` takes it."""
        return self.draw("hpke", SEALING_PRIVATE_BYTES)

    @cached_property
    def opener(self) -> Any:
        """The same key as the cipher takes it; made once, since all boxes are opened with it."""
        return sealing_private_key(self.private)

    @cached_property
    def public(self) -> bytes:
        return sealing_public_of(self.private)

    @property
    def noise_key(self) -> bytes:
        return self.draw("rounding", 32)

    def seed(self, place: int) -> bytes:
        return self.draw(f"seed {place}", SEED)


@dataclass(frozen=True)
class Circle:
    """Who deals to whom: the sites that sent an advert, in the order of their names."""

    roster: tuple[str, ...]
    threshold: int
    ctx: bytes

    @property
    def box_bytes(self) -> int:
        return self.payload_bytes + _BOX_EXTRA

    @property
    def payload_bytes(self) -> int:
        return len(self.roster) * SHARE_BYTES + SEED

    def info(self, dealer: str, holder: str) -> bytes:
        """A box opens only for this roster, dealer and holder."""
        return hashed("box", self.ctx, dealer.encode(), holder.encode())

    def seed_commitment(self, dealer: str, place: int, seed: bytes) -> bytes:
        return hashed("seed", self.ctx, dealer.encode(), bytes([place]), seed)

    def leaf(self, dealer: str, holder: str, place: int, share: bytes) -> bytes:
        return hashed("share", self.ctx, dealer.encode(), holder.encode(), bytes([place]), share)

    def root(self, dealer: str, holder: str, leaves: Sequence[bytes]) -> bytes:
        return hashed("shares", self.ctx, dealer.encode(), holder.encode(), *leaves)


@dataclass(frozen=True)
class Header:
    """What a dealer commits to, in a signed statement: every seed, every holder's shares, every box."""

    seeds: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    boxes: tuple[bytes, ...]

    def body(self, ctx: bytes) -> dict[str, str]:
        parts = {name: pack(b"".join(getattr(self, name))) for name in ("seeds", "roots", "boxes")}
        return {"ctx": ctx.hex(), **parts}

    @classmethod
    def read(cls, statement: Statement, circle: Circle) -> Header:
        """Raises MessageError when it is none for this circle."""
        if set(statement.body) != {"ctx", "seeds", "roots", "boxes"} or statement.body["ctx"] != circle.ctx.hex():
            raise MessageError(f"The header of {statement.by} belongs to another roster: it is not used.")
        size = len(circle.roster) * HASH
        lists = (
            unpack(statement.body[name], size, f"{name} of {statement.by}") for name in ("seeds", "roots", "boxes")
        )
        return cls(*(tuple(one[at : at + HASH] for at in range(0, size, HASH)) for one in lists))


def deal(secrets: Secrets, me: str, circle: Circle) -> list[bytes]:
    """What each place of the roster gets from `me`, before it is boxed."""
    size, places = len(circle.roster), range(1, len(circle.roster) + 1)
    mine = circle.roster.index(me)
    columns = []
    for place in range(size):
        chance = secrets.draw(f"polynomial {place}", (circle.threshold - 1) * COEFFICIENT_BYTES)
        columns.append(shamir.split(secrets.seed(place), circle.threshold, places, chance))
    return [
        b"".join(column[holder] for column in columns) + (secrets.seed(holder) if holder > mine else bytes(SEED))
        for holder in range(size)
    ]


def shares_in(payload: bytes, size: int) -> list[bytes]:
    return [payload[at : at + SHARE_BYTES] for at in range(0, size * SHARE_BYTES, SHARE_BYTES)]


def pair_seed_in(payload: bytes) -> bytes:
    return payload[-SEED:]


def root_of(circle: Circle, dealer: str, holder: str, payload: bytes) -> bytes:
    shares = shares_in(payload, len(circle.roster))
    return circle.root(dealer, holder, [circle.leaf(dealer, holder, at, share) for at, share in enumerate(shares)])


def box_up(secrets: Secrets, me: str, circle: Circle, publics: Sequence[bytes]) -> tuple[Header, bytes]:
    """The header and the boxes for all others, one after the other; `publics`: the roster's HPKE keys."""
    payloads, boxes, digests, roots = deal(secrets, me, circle), [], [], []
    for holder, payload, public in zip(circle.roster, payloads, publics, strict=True):
        roots.append(root_of(circle, me, holder, payload))
        if holder == me:
            digests.append(bytes(HASH))
            continue
        box = _SUITE.encrypt(payload, sealing_public_key(public), info=circle.info(me, holder))
        boxes.append(box)
        digests.append(hashlib.sha256(box).digest())
    seeds = tuple(circle.seed_commitment(me, place, secrets.seed(place)) for place in range(len(circle.roster)))
    return Header(seeds, tuple(roots), tuple(digests)), b"".join(boxes)


def open_box(secrets: Secrets, dealer: str, me: str, circle: Circle, header: Header, box: bytes) -> bytes:
    """The payload of a box. Raises AccusedError naming the dealer when it is not what its header commits to."""
    mine, theirs = circle.roster.index(me), circle.roster.index(dealer)
    if hashlib.sha256(box).digest() != header.boxes[mine]:
        raise MessageError(f"The box of {dealer} was changed on its way: the round is given up here.")
    try:
        payload = _SUITE.decrypt(box, secrets.opener, info=circle.info(dealer, me))
    except (InvalidTag, ValueError):
        payload = b""
    fits = len(payload) == circle.payload_bytes and root_of(circle, dealer, me, payload) == header.roots[mine]
    if fits and theirs < mine:
        fits = circle.seed_commitment(dealer, mine, pair_seed_in(payload)) == header.seeds[mine]
    if not fits:
        raise AccusedError(dealer, f"{dealer} dealt shares that are not what it signed: the round is given up here.")
    return payload


def revealed(circle: Circle, dealt: Set[str], survivors: Set[str]) -> Iterator[tuple[str, int, bool]]:
    """(dealer, place, whether its share is revealed), in the order of a reveal.

    The self seed of a survivor, and the pair seed of a survivor and a site that dropped out; never both of one site.
    """
    for at, dealer in enumerate(circle.roster):
        if dealer not in dealt:
            continue
        for place, other in enumerate(circle.roster):
            own = place == at and dealer in survivors
            pair = place > at and other in dealt and ((dealer in survivors) != (other in survivors))
            yield dealer, place, own or pair
