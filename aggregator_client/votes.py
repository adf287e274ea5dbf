"""The hospitals' vote on a round's candidate model: how a ballot is judged, what it says, and what a set of ballots decides.

A ballot tells one of three votes with one of four reasons, never a figure. It is signed on its own, so that hospitals can
show it to each other: a model is proven by the ballots that carried it, and with secure aggregation a node trains no other
(but the one the project starts from).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field

from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.secagg.transcript import Statement, say, unbundle

Vote = Literal["accept", "reject", "abstain"]
REASONS: Mapping[str, Vote] = {
    "no worse": "accept",
    "worse": "reject",
    "not finite": "reject",
    "no held-out patients": "abstain",
}
VOTED = frozenset({"project", "run", "round", "base", "candidate", "voters", "vote", "reason"})


class VoteSettings(BaseModel):
    """The vote on each round's candidate. A candidate is kept when more than `share` of those who trained accept it.

    share: None takes 0.5 with secure_aggregation and no vote otherwise; 0 is no vote. tolerance: a hospital accepts while its
    score (AUC or Dice) falls by no more than this. retries: so many lost votes in a row are followed by another round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    share: float | None = Field(default=None, ge=0, lt=1)
    tolerance: float = Field(default=0.05, ge=0, le=1)
    retries: int = Field(default=3, ge=0, le=50)


def judged(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, metric: str, tolerance: float) -> str:
    """The reason of a site's vote, from the figures on its held-out patients of the model before and of the candidate.

    Where the metric cannot be told (all held-out patients are of one class) the loss may rise by the share `tolerance` of itself.
    """
    if not before or not after:
        return "no held-out patients"
    old, new = _number(before.get(metric)), _number(after.get(metric))
    if old is not None and new is not None:
        return "no worse" if new >= old - tolerance else "worse"
    old, new = _number(before.get("loss")), _number(after.get("loss"))
    if old is None:
        return "no held-out patients"
    return "no worse" if new is not None and new <= old * (1 + tolerance) else "worse"


def _number(value: Any) -> float | None:
    """A finite figure, or None."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if sound else None


def ballot(signer: Ed25519PrivateKey, site: str, reason: str, **facts: Any) -> bytes:
    """The signed ballot. `facts`: project, run, round, base and candidate (hex SHA-256 of the models), voters (their names)."""
    return say("vote", site, {**facts, "vote": REASONS[reason], "reason": reason}, signer).encode()


def understood(statement: Statement) -> Statement:
    """The same, its body checked. Raises MessageError."""
    body = statement.body
    whole = set(body) == VOTED and REASONS.get(str(body["reason"])) == body["vote"]
    if not whole or not isinstance(body["voters"], list) or statement.by not in body["voters"]:
        raise MessageError(f"The ballot of {statement.by} is damaged: it is not counted.")
    return statement


def carried(votes: Sequence[str], voters: int, share: float) -> bool:
    """Whether more than `share` of the voters accept. Who abstains is none of them; who is silent is, and does not accept."""
    return votes.count("accept") > share * (voters - votes.count("abstain"))


def require_proven(
    data: bytes, keys: Mapping[str, bytes], *, project: str, run: str, candidate: str, fewest: int, share: float
) -> None:
    """Raise unless the ballots show that the hospitals accepted this very model in an earlier round of the run.

    keys: raw Ed25519 by name, those the project names. fewest: the least number of voters. Raises RefusedError, MessageError,
    SignatureError.
    """
    found = [understood(one).body for one in unbundle(data, "vote", keys).values()]
    same = {(one["project"], one["run"], one["candidate"], one["round"], tuple(one["voters"])) for one in found}
    voters = next(iter(same))[4] if len(same) == 1 else ()
    fits = len(same) == 1 and next(iter(same))[:3] == (project, run, candidate)
    known = set(voters) <= set(keys) and len(set(voters)) == len(voters) >= fewest
    if not (fits and known and carried([one["vote"] for one in found], len(voters), share)):
        raise RefusedError(
            "The coordinator sent a model that the hospitals' votes did not carry: it is not trained on; ask the coordinator."
        )
