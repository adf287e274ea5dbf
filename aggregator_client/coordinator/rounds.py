"""What to do next in a run, as pure functions of what is known: no clock, no network, no disk.

    start ─▶ [ configure ─▶ gather ─▶ aggregate ─▶ checkpoint ] × rounds, or until no gain
          ─▶ evaluate ─▶ [ predict ─▶ deliver ] (an ensemble) ─▶ done

`next_step` picks the next line of that picture from what the checkpoints say, so a resumed run goes on where the last
checkpoint stands. `Gather` is one round's waiting: whom to send to, and when the round has enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from aggregator_client.transport import SiteInfo

RETRY_SECONDS = 5.0


class Step(StrEnum):
    """What a run does next."""

    START = "start"
    ROUND = "round"
    EVALUATE = "evaluate"
    PREDICT = "predict"
    DELIVER = "deliver"
    DONE = "done"


def next_step(
    rounds: int,
    last_checkpoint: int,
    evaluated: bool,
    stale: bool = False,
    more: Sequence[tuple[Step, bool]] = (),
) -> tuple[Step, int]:
    """(step, round number). `last_checkpoint` is -1 before there is any model, 0 with the initial one.

    `stale`: the models have stopped to gain, so the rounds that are left are not done. `more`: what follows the evaluation, and
    whether it is done.
    """
    if last_checkpoint < 0:
        return Step.START, 0
    if last_checkpoint < rounds and not (stale and last_checkpoint > 0):
        return Step.ROUND, last_checkpoint + 1
    for number, (step, done) in enumerate(((Step.EVALUATE, evaluated), *more), rounds + 1):
        if not done:
            return step, number
    return Step.DONE, rounds


def best_model(scores: Mapping[int, float], min_gain: float = 0.0) -> int:
    """The last model that bettered the best before it by more than `min_gain`; -1 without any score."""
    best = -1
    for number in sorted(scores):
        if best < 0 or scores[number] > scores[best] + min_gain:
            best = number
    return best


def is_stale(scores: Mapping[int, float], patience: int, min_gain: float = 0.0) -> bool:
    """Whether the last `patience` scored models brought no new best (0: never)."""
    return bool(patience and scores) and max(scores) - best_model(scores, min_gain) >= patience


class Verdict(StrEnum):
    """Whether a round's waiting is over. SHORT: the deadline is past and too few sites answered."""

    WAIT = "wait"
    ENOUGH = "enough"
    SHORT = "short"


@dataclass(frozen=True)
class Terms:
    """How long a round waits and for how many. Seconds.

    A site that is away is waited for `grace_s` (it may be restarting), one that is at work until `deadline_s`.
    """

    need: int
    deadline_s: float
    grace_s: float


@dataclass(frozen=True)
class Sent:
    """When a site was last sent the request: on the caller's clock, and since the epoch; and how often."""

    at: float
    wall: float
    attempts: int


@dataclass(frozen=True)
class Gather:
    """One round's waiting. Times are the caller's clock in seconds."""

    number: int
    expected: frozenset[str]
    started: float
    accepted: frozenset[str] = frozenset()
    refused: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    sent: Mapping[str, Sent] = field(default_factory=dict)
    away: Mapping[str, float] = field(default_factory=dict)
    online: frozenset[str] = frozenset()
    trouble: Mapping[str, str] = field(default_factory=dict)

    # -- what happens -------------------------------------------------------------------------------------------------

    def seen(self, sites: Iterable[SiteInfo], now: float) -> Gather:
        """Who is there now, and who is turned away."""
        infos = list(sites)
        online = frozenset(site.name for site in infos if site.online) & self.expected
        away = {name: self.away.get(name, now) for name in self.expected - online}
        trouble = {site.name: site.trouble for site in infos if site.trouble}
        return replace(self, online=online, away=away, trouble=trouble)

    def was_sent(self, site: str, now: float, wall: float) -> Gather:
        attempts = self.sent[site].attempts + 1 if site in self.sent else 1
        refused = {name: why for name, why in self.refused.items() if name != site}
        return replace(self, sent={**self.sent, site: Sent(now, wall, attempts)}, refused=refused)

    def lost(self, site: str) -> Gather:
        """The message or its answer did not make it: it is sent again when the site is there."""
        return replace(self, sent={name: sent for name, sent in self.sent.items() if name != site})

    def took(self, site: str) -> Gather:
        """An update was proven and kept."""
        refused = {name: why for name, why in self.refused.items() if name != site}
        return replace(self, accepted=self.accepted | {site}, refused=refused)

    def refuse(self, site: str, reason: str, now: float) -> Gather:
        """The site refused, or its update was no good."""
        return replace(self, refused={**self.refused, site: (now, reason)})

    # -- what follows -------------------------------------------------------------------------------------------------

    def to_send(self, sites: Collection[SiteInfo], terms: Terms, now: float) -> list[str]:
        """Who is to be sent the request now.

        A site that signed in after it was sent the request may have lost it, so it gets it again: answering twice the same is
        harmless, never answering is not. A refusal is asked again only while the round is short of sites.
        """
        due = []
        for info in sorted(sites, key=lambda one: one.name):
            name, sent = info.name, self.sent.get(info.name)
            if name not in self.expected or name in self.accepted or not info.online:
                continue
            refused = self.refused.get(name)
            if refused is not None:
                if len(self.accepted) < terms.need and now - refused[0] >= RETRY_SECONDS and self._settled(terms, now):
                    due.append(name)
            elif sent is None or (info.activated_at > sent.wall and now - sent.at >= 1.0):
                due.append(name)
        return due

    def verdict(self, terms: Terms, now: float) -> Verdict:
        if self.accepted >= self.expected:
            return Verdict.ENOUGH
        late = now - self.started >= terms.deadline_s
        if len(self.accepted) >= terms.need:
            return Verdict.ENOUGH if late or self._settled(terms, now) else Verdict.WAIT
        return Verdict.SHORT if late else Verdict.WAIT

    def _settled(self, terms: Terms, now: float) -> bool:
        """Nobody is left whose answer may still come: each has answered, refused, or is away for longer than the grace."""
        left = self.expected - self.accepted - self.refused.keys()
        return all(name in self.away and now - self.away[name] >= terms.grace_s for name in left)

    def stalled(self, terms: Terms) -> dict[str, str]:
        """Why each site that has given no update has given none."""
        reasons = {}
        for name in sorted(self.expected - self.accepted):
            if name in self.refused:
                reasons[name] = self.refused[name][1]
            elif name in self.trouble:
                reasons[name] = f"it is not let in: {self.trouble[name]}"
            elif name in self.away:
                reasons[name] = "it is away: its node is stopped, or cannot reach the coordinator"
            else:
                reasons[name] = f"it is at work, but has not answered within {terms.deadline_s:g} s"
        return reasons
