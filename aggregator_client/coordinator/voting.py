"""The vote on a round's candidate model: every site that trained measures it on its own held-out patients, and decides.

A candidate that is voted down is thrown away: the round closes with the model it began with, and the run goes on from
there. After `retries` lost votes in a row and one more the run stops, since somebody must find out why. With secure
aggregation of all sites at once, the rounds after a lost vote are summed in groups (coordinator.grouping) as far as the
project's min_sites allows: a bad update then spoils its own group's sum, not everybody's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aggregator_client.coordinator.gathering import Gathering, Running
from aggregator_client.coordinator.grouping import LEAST_GROUPS
from aggregator_client.coordinator.state import RunState
from aggregator_client.coordinator.strategies import choose
from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.messages import Message
from aggregator_client.secagg.stages import base_of
from aggregator_client.secagg.transcript import read
from aggregator_client.votes import carried, understood
from trainer import weights

if TYPE_CHECKING:
    from aggregator_client.project import ProjectDocument


def decided(
    run: Running, number: int, model: weights.Weights, candidate: weights.Weights, voters: list[str]
) -> weights.Weights:
    """The model the round closes with: the candidate when the voters' ballots carry it, else the one it began with."""
    base, made = base_of(model), base_of(candidate)
    run.state.open_candidate(number, base, made, voters)
    facts = run.state.candidate(number)
    if not facts.outcome:  # one that was decided before the coordinator was killed stays so
        _Ballots(run, number, voters, candidate, base, made).wait()
        votes = [one.vote for one in run.state.ballots(number)]
        run.state.close_candidate(number, carried(votes, len(voters), run.document.vote_share))
        facts = run.state.candidate(number)
    told = {one.site: f"{one.vote} ({one.reason})" for one in run.state.ballots(number)}
    silent = {site: "no ballot" for site in voters if site not in told}
    run.tell({"event": "vote", "round": number, "outcome": facts.outcome, "votes": told | silent})
    if facts.outcome == "accepted":
        return candidate
    run.strategy = choose(run.document.algorithm.name, run.document.algorithm.args)
    run.strategy.restore(run.state.strategy_state(run.state.last_checkpoint()))
    return model


def require_hope(state: RunState, document: ProjectDocument) -> None:
    """Raises RefusedError when the hospitals have voted down one candidate after the other."""
    lost = state.lost_in_a_row()
    if document.vote_share and lost > document.privacy.vote.retries:
        raise RefusedError(
            f"The hospitals voted down {lost} candidate models in a row, so the run stops: look who rejects and why in"
            " `fedpacs coordinator status`, remove who sends bad updates, and sign a new version."
        )


def regrouped_size(run: Running, sites: int) -> int:
    """The size of groups that a sum of all is parted into once a vote was lost; 0 without one, or with too few sites."""
    least = max(3, run.document.min_sites)
    again = any(one.outcome == "rejected" for one in run.state.candidates())
    return least if again and sites >= LEAST_GROUPS * least else 0


class _Ballots(Gathering):
    """The waiting for everybody's ballot. A site that gives none has not accepted."""

    def __init__(
        self, run: Running, number: int, voters: list[str], candidate: weights.Weights, base: str, made: str
    ) -> None:
        self._wanted = {
            "project": run.project.digest, "run": run.facts.id, "round": number, "base": base, "candidate": made,
            "voters": sorted(voters),
        }  # fmt: skip
        super().__init__(run, "vote", number, voters, candidate, {"model": weights.to_bytes(candidate)})
        for one in run.state.ballots(number):
            self.gather = self.gather.took(one.site)

    def take(self, site: str, answer: Message) -> None:
        statement = understood(
            read(answer.parts.get("vote", b""), "vote", {site: self.run.member(site).signing_public})
        )
        if any(statement.body[name] != value for name, value in self._wanted.items()):
            raise MessageError(f"The ballot of {site} is about another candidate: it is not counted.")
        self.run.state.put_ballot(
            self.number, site, statement.body["vote"], statement.body["reason"], statement.encode()
        )

    def _note(self, site: str, answer: Message, size: int) -> None:
        cell = self.run.state.cell(self.number, site)
        self.run.state.put(replace(cell, state="accepted", reason="", bytes_in=cell.bytes_in + size))
