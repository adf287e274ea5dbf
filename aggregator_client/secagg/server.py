"""The coordinator's side of one round of secure aggregation: collects, relays, and opens the sum with the survivors' help.

It holds the running sum and, while adding it, one masked vector; everything else is small. It learns the sum of the survivors'
updates and of their weights. Statements it relays are the sites' own; what a site did wrong is told with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from aggregator_client.errors import AccusedError, MessageError
from aggregator_client.messages import Message
from aggregator_client.secagg import dealing, masks, shamir
from aggregator_client.secagg.client import advert_key, dealt_hash, enough, roster_hash, survivors_hash
from aggregator_client.secagg.dealing import Circle, Header
from aggregator_client.secagg.ring import LIMBS, Words, weight_of
from aggregator_client.secagg.transcript import HASH, Kind, Plan, Statement, bundle, hashed, read, read_plan


@dataclass(frozen=True)
class Total:
    """`words`: the exact sum in the ring (the weight's limbs at its end); `sites`: whose updates are in it."""

    plan: Plan
    words: Words
    sites: tuple[str, ...]

    @property
    def weight(self) -> int:
        return weight_of(self.words[-LIMBS:])

    def mean(self) -> NDArray[np.float32]:
        """The weighted mean of the sites' values: Σ w x / Σ w."""
        return self.plan.ring.decode(self.words[:-LIMBS], self.weight / self.plan.weight_cap)


class SecureServer:
    """One attempt at one round. `take_...` raises FederationError for an answer that is no good; the round goes on without it.

    Calling the same methods with the same bytes again gives the same state: a restarted coordinator does so.
    """

    def __init__(self, plan: bytes, signer: Ed25519PrivateKey) -> None:
        self.plan_bytes = plan
        self.plan, self._plan_hash = read_plan(plan, signer.public_key().public_bytes_raw())
        self._adverts: dict[str, Statement] = {}
        self._headers: dict[str, Statement] = {}
        self._boxes: dict[str, bytes] = {}
        self._masked: dict[str, Statement] = {}
        self._agreed: dict[str, Statement] = {}
        self._reveals: dict[str, bytes] = {}
        self._sum: Words | None = None
        self._circle: Circle | None = None

    # -- advert, shares -----------------------------------------------------------------------------------------------

    def take_advert(self, site: str, answer: bytes) -> None:
        statement = self._by(site, answer, "advert")
        advert_key(statement, self._plan_hash)
        self._adverts[site] = statement

    def adverts(self) -> bytes:
        """What every site is sent next. TooFewSitesError below the threshold."""
        enough(self.plan, self._adverts, "the exchange of keys")
        self._adverts = dict(sorted(self._adverts.items()))
        ctx = roster_hash(self._plan_hash, self._adverts)
        self._circle = Circle(tuple(self._adverts), self.plan.threshold, ctx)
        return bundle(self._adverts.values())

    @property
    def circle(self) -> Circle:
        assert self._circle is not None, "adverts() comes first"
        return self._circle

    def take_shares(self, site: str, answer: Message) -> None:
        if site not in self._adverts:
            raise MessageError(f"{site} deals shares without a key of the round: they are not used.")
        statement = self._by(site, answer.parts.get("header", b""), "header")
        Header.read(statement, self.circle)
        boxes = answer.parts.get("boxes", b"")
        if len(boxes) != self.circle.box_bytes * (len(self.circle.roster) - 1):
            raise MessageError(f"{site} did not deal one box to each other site: its shares are not used.")
        self._headers[site], self._boxes[site] = statement, boxes

    def dealt(self, site: str) -> Message:
        """What `site` is sent next: all headers, and its boxes."""
        enough(self.plan, self._headers, "the dealing of shares")
        self._headers = dict(sorted(self._headers.items()))
        boxes = [self._box(dealer, site) for dealer in self._headers if dealer != site]
        return Message({}, {"headers": bundle(self._headers.values()), "boxes": b"".join(boxes)})

    def _box(self, dealer: str, holder: str) -> bytes:
        others = [name for name in self.circle.roster if name != dealer]
        at = others.index(holder) * self.circle.box_bytes
        return self._boxes[dealer][at : at + self.circle.box_bytes]

    @property
    def dealers(self) -> list[str]:
        """Who dealt and is asked for a masked update."""
        return sorted(self._headers)

    @property
    def _ctx(self) -> bytes:
        return dealt_hash(self.circle.ctx, self._headers)

    # -- masked -------------------------------------------------------------------------------------------------------

    def take_masked(
        self, site: str, answer: bytes, vector: bytes | memoryview | Words, threads: int | None = None
    ) -> None:
        """Add a masked update to the sum; the second of one site is ignored."""
        if site in self._masked:
            return
        statement, words = self._by(site, answer, "masked"), np.frombuffer(vector, self.plan.ring.dtype)
        if (
            site not in self._headers
            or statement.body.get("dealt") != self._ctx.hex()
            or words.size != self.plan.dimension
        ):
            raise MessageError(f"The masked update of {site} belongs to other shares or another model: it is not used.")
        if self._sum is None:
            self._sum = np.zeros(self.plan.dimension, self.plan.ring.dtype)
        digest = masks.add(self._sum, words, threads)
        if statement.body.get("sha256") != digest.hex():
            np.subtract(self._sum, words, out=self._sum)
            raise MessageError(f"The masked update of {site} is not what it signed: it is not used.")
        self._masked[site] = statement

    def survivors(self) -> bytes:
        """What every survivor is sent next."""
        enough(self.plan, self._masked, "the masked updates")
        self._masked = dict(sorted(self._masked.items()))
        return bundle(self._masked.values())

    @property
    def surviving(self) -> list[str]:
        return sorted(self._masked)

    # -- agree, unmask ------------------------------------------------------------------------------------------------

    def take_agreement(self, site: str, answer: bytes) -> None:
        statement = self._by(site, answer, "agree")
        if site not in self._masked or statement.body != {"survivors": survivors_hash(self._ctx, self._masked).hex()}:
            raise MessageError(f"{site} agrees to other survivors: its agreement is not used.")
        self._agreed[site] = statement

    def agreements(self) -> bytes:
        """What every survivor is sent next."""
        enough(self.plan, self._agreed, "the agreement")
        return bundle(self._agreed.values())

    @property
    def agreeing(self) -> list[str]:
        return sorted(self._agreed)

    def take_reveal(self, site: str, answer: Message) -> None:
        """Check every share against what its dealer committed to. Raises AccusedError naming a site that lies."""
        statement, data = self._by(site, answer.parts.get("reveal", b""), "reveal"), answer.parts.get("shares", b"")
        if site not in self._masked or statement.body.get("sha256") != hashed("reveal", data).hex():
            raise MessageError(f"The shares of {site} are not what it signed: they are not used.")
        leaves: dict[str, list[bytes]] = {name: [] for name in self._headers}
        try:
            shares = self._cut(data)
        except ValueError:
            raise AccusedError(
                site, f"{site} signed shares of another length than the round's: they are not used."
            ) from None
        for (dealer, place, shown), part in shares:
            leaves[dealer].append(self.circle.leaf(dealer, site, place, part) if shown else part)
        at = self.circle.roster.index(site)
        for dealer, found in leaves.items():
            if self.circle.root(dealer, site, found) != Header.read(self._headers[dealer], self.circle).roots[at]:
                raise AccusedError(site, f"{site} revealed shares that {dealer} did not deal: they are not used.")
        self._reveals[site] = data

    def _cut(self, data: bytes) -> list[tuple[tuple[str, int, bool], bytes]]:
        """The parts of a reveal. ValueError when it has another length."""
        found, at = [], 0
        for one in dealing.revealed(self.circle, set(self._headers), set(self._masked)):
            size = shamir.SHARE_BYTES if one[2] else HASH
            found.append((one, data[at : at + size]))
            at += size
        if at != len(data):
            raise ValueError(at)
        return found

    def finish(self, threads: int | None = None) -> Total:
        """The sum. Raises TooFewSitesError, and AccusedError naming a dealer whose shares do not give the seed it signed."""
        enough(self.plan, self._reveals, "the opening")
        assert self._sum is not None
        masks.unmask(self._sum, self._streams(), threads)
        total, self._sum = self._sum, None
        return Total(self.plan, total, tuple(self.surviving))

    def _streams(self) -> list[masks.Stream]:
        """Every mask that is left in the sum."""
        gathered: dict[tuple[str, int], dict[int, bytes]] = {}
        for site, data in self._reveals.items():
            point = self.circle.roster.index(site) + 1
            for (dealer, place, shown), part in self._cut(data):
                if shown:
                    gathered.setdefault((dealer, place), {})[point] = part
        return [self._stream(dealer, place, shares) for (dealer, place), shares in gathered.items()]

    def _stream(self, dealer: str, place: int, shares: Mapping[int, bytes]) -> masks.Stream:
        seed = shamir.join(shares, self.plan.threshold)
        signed = Header.read(self._headers[dealer], self.circle).seeds[place]
        if seed is None or self.circle.seed_commitment(dealer, place, seed) != signed:
            raise AccusedError(
                dealer, f"{dealer} dealt shares of another seed than it signed: the round cannot be opened."
            )
        other = self.circle.roster[place]
        # of a pair, the earlier site added the mask and the later one took it away: the survivor's sign is left in the sum
        return masks.stream(seed, self._ctx, 1 if dealer in self._masked else -1 if other in self._masked else 0)

    def _by(self, site: str, answer: bytes, kind: Kind) -> Statement:
        statement = read(answer, kind, self.plan.members)
        if statement.by != site:
            raise MessageError(f"The {kind} sent by {site} is signed by {statement.by}: it is not used.")
        return statement
