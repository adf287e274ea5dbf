"""A poisoned sum is voted down and thrown away, the run goes on from the model before; exact, recorded, and provable."""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from aggregator_client.coordinator import grouping
from aggregator_client.coordinator.evidence_votes import check_votes, votes_of
from aggregator_client.errors import RefusedError, SignatureError
from aggregator_client.rotation import Pair
from aggregator_client.secagg.journal import Journal
from tests.aggregator_client import federation
from tests.aggregator_client.federation import samples, shift
from tests.aggregator_client.secagg import test_federation as one_sum
from tests.aggregator_client.secagg.cohort import Cohort
from trainer import weights

SITES = one_sum.SITES
NINE = [f"site {letter}" for letter in "abcdefghi"]


@pytest.fixture
def summing(tmp_path):
    made = []

    def make(poisoner="", rounds_poisoned=(), **options):
        made.append(one_sum.Summing(tmp_path / str(len(made)), **options))

        def trained(site, context, request):
            message = federation.Site.usual(site, context, request)
            if site.name != poisoner or context.kind != "train" or context.round not in rounds_poisoned:
                return message
            model = weights.from_bytes(request.parts["model"])
            wild = {n: v + np.asarray(0.9 if v.dtype.kind == "f" else 1, v.dtype) for n, v in model.items()}
            return type(message)(message.header, {"model": weights.to_bytes(wild)})

        made[-1].usual, made[-1].liars = trained, {poisoner}
        return made[-1]

    yield make
    for one in made:
        one.close()


def stepped(number, sites=SITES):
    """The start and one honest round `number` on top of it."""
    total = sum(map(samples, sites))
    step = sum(shift(site, number) * samples(site) / total for site in sites)
    start = one_sum.start_model()
    return {n: v + np.asarray(step, v.dtype) if v.dtype.kind == "f" else v for n, v in start.items()}


def outcomes(made):
    return [one.outcome for one in made.state.candidates()]


def test_a_poisoned_sum_is_thrown_away_and_the_run_goes_on_from_the_model_before(summing):
    made = summing("south", {1}, rounds=2)
    made.run().go()
    assert outcomes(made) == ["rejected", "accepted"]
    before, after = made.state.model(0), made.state.model(1)
    assert all(np.array_equal(before[name], after[name]) for name in before)  # bit for bit
    one_sum.assert_close(made.state.model(2), stepped(2), 1e-6)
    assert {one.site: one.vote for one in made.state.ballots(1)} == {
        "east": "reject", "north": "reject", "south": "accept", "west": "reject",
    }  # fmt: skip
    told = [event for event in made.events if event["event"] == "vote"]
    assert [event["outcome"] for event in told] == ["rejected", "accepted"]
    assert told[0]["votes"]["south"] == "accept (no worse)"


def test_an_optimisers_momentum_of_a_lost_round_is_thrown_away_too(summing):
    made = summing("south", {1}, rounds=1, algorithm={"name": "fedadam"})
    made.run().go()
    assert outcomes(made) == ["rejected"] and made.state.strategy_state(1) == {}


def test_a_lost_vote_regroups_and_outvotes_a_hospital_that_goes_on_poisoning(summing, tmp_path, monkeypatch):
    monkeypatch.setattr(one_sum, "SITES", NINE)
    _, keys = federation.keys_of(tmp_path / "0", *NINE)
    made = summing(NINE[4], {1, 2}, rounds=2, min_sites=3, deadline_s=6.0, privacy=one_sum.privacy(keys))
    made.run().go()
    assert outcomes(made) == ["rejected", "accepted"]
    good = [g for g in grouping.groups(NINE, 3, made.project.digest, 2) if NINE[4] not in g]
    means = sorted(sum(shift(s, 2) * samples(s) for s in g) / sum(map(samples, g)) for g in good)
    for name, value in one_sum.start_model().items():
        if value.dtype.kind == "f":
            change = made.state.model(2)[name] - value
            assert change.min() >= means[0] - 1e-5 and change.max() <= means[1] + 1e-5


def test_one_lost_vote_after_the_other_stops_the_run(summing, tmp_path):
    _, keys = federation.keys_of(tmp_path / "0", *SITES)
    terms = one_sum.privacy(keys) | {"vote": {"retries": 1}}
    made = summing("south", {1, 2, 3}, rounds=3, privacy=terms)
    with pytest.raises(RefusedError, match="voted down 2 candidate models in a row"):
        made.run().go()
    assert outcomes(made) == ["rejected", "rejected"] and made.state.run().state == "stopped"
    with pytest.raises(RefusedError, match="voted down"):
        made.run().go()


def test_a_vote_stands_when_the_coordinator_is_killed_before_its_checkpoint(summing):
    made = summing("south", {1}, rounds=1)
    closed = made.state.close_round

    def killed(number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        closed(number, *rest)

    made.state.close_round = killed
    with pytest.raises(KeyboardInterrupt):
        made.run().go()
    made.state.close_round, asked = closed, [len(site.asked) for site in made.sites]
    made.run().go()
    assert outcomes(made) == ["rejected"]
    assert [site.asked[before:] for site, before in zip(made.sites, asked, strict=True)] == [[("evaluate", 2)]] * 4


def test_who_is_silent_has_not_accepted(summing):
    made = summing(rounds=1, away=[("vote", 1, "east"), ("vote", 1, "west")], deadline_s=3.0)
    made.run().go()
    assert outcomes(made) == ["rejected"] and len(made.state.ballots(1)) == 2


def test_evidence_shows_who_voted_how_and_that_the_run_kept_to_it(summing):
    made = summing("south", {1}, rounds=2)
    made.run().go()
    found = votes_of(made.state)
    rounds = {"rounds": [asdict(one) for one in made.state.rounds()]}
    keys = {s: [Pair(k.signing_public, k.sealing_public)] for s, k in made.keys.items()}

    def check(votes, rounds=rounds):
        check_votes(Path("evidence.zip"), votes, rounds, made.project, keys)

    check(found)
    for change in ("outcome", "ballot", "signature", "missing", "checkpoint", "doubled"):
        votes, told = copy.deepcopy(found), copy.deepcopy(rounds)
        if change == "outcome":  # the ballots that reject are left out, and who trained too
            votes[0]["ballots"] = [one for one in votes[0]["ballots"] if one["body"]["vote"] == "accept"]
            votes[0]["voters"] = ["south"]
        elif change == "ballot":
            votes[0]["ballots"][0]["body"] |= {"vote": "accept", "reason": "no worse"}
        elif change == "signature":
            votes[0]["ballots"][0]["signature"] = votes[1]["ballots"][0]["signature"]
        elif change == "missing":
            del votes[0]
        elif change == "checkpoint":  # the candidate went on although it was voted down
            told["rounds"][1]["sha256"] = votes[0]["candidate"]
        else:
            votes[1]["ballots"].append(votes[1]["ballots"][0])
        with pytest.raises(SignatureError):
            check(votes, told)
            pytest.fail(change)


def test_a_site_sums_one_model_anew_only_after_it_voted_and_only_so_often(tmp_path):
    cohort = Cohort(tmp_path, 3)
    charter = cohort.charter
    base = "b" * 64

    def one(number, again):
        cohort.charter = type(charter)(**{**asdict(charter), "again": again})
        return cohort.go(cohort.plan(number, base))

    one(1, 2)
    with pytest.raises(RefusedError, match="this very model was summed before"):
        one(2, 2)
    for name in cohort.names:
        cohort.journals[name].voted(charter.project, "run", 1, base)
    with pytest.raises(RefusedError, match="this very model was summed before"):
        one(2, 0)
    one(2, 1)
    for name in cohort.names:
        cohort.journals[name].voted(charter.project, "run", 2, base)
    with pytest.raises(RefusedError, match="this very model was summed before"):
        one(3, 1)
    with closing(Journal(tmp_path / cohort.names[0])) as journal:  # it stands over a restart
        assert journal._db.execute("SELECT count(*) FROM votes").fetchone()[0] == 2
    cohort.close()
