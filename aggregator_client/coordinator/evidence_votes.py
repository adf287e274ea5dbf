"""The votes in an evidence bundle: every ballot as its hospital signed it, and whether each round closed as they decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aggregator_client.coordinator.state import RunState
from aggregator_client.errors import FederationError, SignatureError
from aggregator_client.project import SignedProject
from aggregator_client.rotation import Pair
from aggregator_client.secagg.transcript import Statement, canonical, read
from aggregator_client.votes import carried, understood


def votes_of(state: RunState) -> list[dict[str, Any]]:
    """Each candidate with the ballots on it, as JSON values."""
    return [
        {
            "round": one.round,
            "base": one.base,
            "candidate": one.candidate,
            "voters": list(one.voters),
            "outcome": one.outcome,
            "ballots": [json.loads(ballot.statement) for ballot in state.ballots(one.round)],
        }
        for one in state.candidates()
        if one.outcome
    ]


def check_votes(
    file: Path,
    votes: list[dict[str, Any]],
    rounds: dict[str, Any],
    signed: SignedProject,
    keys: Mapping[str, Sequence[Pair]],
) -> None:
    """Raise SignatureError unless every closed round has its vote, signed by its voters, and the model that they decided for."""
    closed = {int(one["number"]): str(one["sha256"]) for one in rounds["rounds"] if one["state"] == "done"}
    share, found = signed.document.vote_share, {int(one["round"]): one for one in votes}
    if not share:
        return
    if set(found) != {number for number in closed if number > 0}:
        raise SignatureError(f"{file} holds rounds without the vote that its project asks for: ask for it again.")
    for number, one in found.items():
        ballots = [_signed(file, ballot, keys) for ballot in one["ballots"]]
        about = {"project": signed.digest, "round": number, **{n: one[n] for n in ("base", "candidate", "voters")}}
        same = all(ballot.body[name] == value for ballot in ballots for name, value in about.items())
        if not same or len({ballot.by for ballot in ballots}) != len(ballots):
            raise SignatureError(f"{file} counts ballots of another vote in round {number}: ask for it again.")
        won = carried([ballot.body["vote"] for ballot in ballots], len(one["voters"]), share)
        if closed[number] != one["candidate" if won else "base"]:
            raise SignatureError(f"The model of round {number} in {file} is not the one its vote decided for.")


def _signed(file: Path, value: dict[str, Any], keys: Mapping[str, Sequence[Pair]]) -> Statement:
    """The ballot, proven to be by one of the keys its site had."""
    for pair in keys.get(str(value.get("by")), ()):
        with suppress(FederationError):
            return understood(read(canonical(value), "vote", {str(value["by"]): pair.signing}))
    raise SignatureError(f"{file} holds a ballot that its hospital did not sign: ask for it again.")
