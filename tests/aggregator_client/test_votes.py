"""A ballot says what was measured and no figure; only ballots that carried a model prove it; a real hospital casts one."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_client import messages, votes
from aggregator_client.errors import FederationError, ProjectError
from aggregator_client.keys import node_keys
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.project import ProjectDraft, validated
from aggregator_client.sealing import Context
from aggregator_client.secagg.transcript import canonical
from aggregator_client.sheet import plain_words
from tests.aggregator_client.secagg.test_federation import draft
from tests.aggregator_client.test_executor import Desk, refused
from tests.aggregator_client.test_executor import trainer as trainer  # the fixture
from trainer import weights

KEYS = {name: Ed25519PrivateKey.generate() for name in ("a", "b", "c", "d")}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
FACTS: dict[str, Any] = {
    "project": "p" * 64, "run": "r", "round": 3, "base": "b" * 64, "candidate": "c" * 64, "voters": ["a", "b", "c", "d"],
}  # fmt: skip


def bundle(reasons: dict[str, str], **changes: Any) -> bytes:
    return b"\n".join(votes.ballot(KEYS[site], site, why, **(FACTS | changes)) for site, why in reasons.items())


def proven(data: bytes, **changes: Any) -> None:
    terms = {"project": FACTS["project"], "run": "r", "candidate": "c" * 64, "fewest": 3, "share": 0.5}
    votes.require_proven(data, changes.pop("keys", PUBLIC), **(terms | changes))


YES, NO, NONE = "no worse", "worse", "no held-out patients"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"auc": 0.80}, {"auc": 0.76}, YES),
        ({"auc": 0.80}, {"auc": 0.74}, NO),
        ({"auc": None, "loss": 1.0}, {"auc": None, "loss": 1.04}, YES),
        ({"auc": None, "loss": 1.0}, {"auc": None, "loss": 1.06}, NO),
        ({"auc": 0.8, "loss": 1.0}, {"auc": float("nan"), "loss": float("nan")}, NO),
        ({"auc": None}, {"auc": None}, NONE),
        (None, {"auc": 0.8}, NONE),
    ],
)
def test_a_ballot_follows_the_figures_on_held_out_patients(before: Any, after: Any, reason: str) -> None:
    assert votes.judged(before, after, "auc", 0.05) == reason


def test_a_majority_of_those_who_trained_carries_and_silence_does_not_accept() -> None:
    assert votes.carried(["accept"] * 3, 4, 0.5) and not votes.carried(["accept"] * 2, 4, 0.5)
    assert votes.carried(["accept", "accept", "abstain"], 4, 0.5)  # two of the three who can judge
    assert not votes.carried(["abstain"] * 4, 4, 0.5) and not votes.carried([], 4, 0.0)
    assert not votes.carried(["accept"] * 3 + ["reject"], 4, 0.75)


def test_a_ballot_holds_no_figure() -> None:
    body = json.loads(votes.ballot(KEYS["a"], "a", NO, **FACTS))["body"]
    assert body == {**FACTS, "vote": "reject", "reason": NO}


def test_only_ballots_that_carried_this_very_model_prove_it() -> None:
    good = {"a": YES, "b": YES, "c": YES, "d": NO}
    proven(bundle(good))
    proven(bundle({"a": YES, "b": YES, "c": YES}))  # the fourth said nothing
    one = votes.ballot(KEYS["a"], "a", YES, **FACTS)
    stolen = json.loads(one)
    stolen["by"] = "b"
    lied = json.loads(one)
    lied["body"]["vote"] = "abstain"
    mixed = votes.ballot(KEYS["a"], "a", YES, **FACTS | {"round": 2})
    for data, changes in (
        (bundle({"a": YES, "b": YES, "c": NO, "d": NO}), {}),  # no majority
        (bundle({"a": YES, "b": YES}), {}),
        (bundle(good, candidate="e" * 64), {}),
        (bundle(good), {"candidate": "e" * 64}),  # another model than was voted on
        (bundle(good), {"project": "q" * 64}),
        (bundle(good), {"run": "other"}),
        (bundle(good), {"fewest": 5}),
        (bundle({"a": YES, "b": YES}, voters=["a", "b"]), {}),  # a vote among fewer than were approved
        (bundle(good), {"keys": {n: k for n, k in PUBLIC.items() if n != "d"}}),  # one who was not approved
        (bundle({"a": YES, "b": YES, "c": YES}, voters=["a", "b", "c", "x"]), {}),
        (b"\n".join([one, one, one]), {}),
        (b"\n".join([mixed, *bundle(good).split(b"\n")[1:]]), {}),
        (b"\n".join([canonical(stolen), *bundle(good).split(b"\n")[2:]]), {}),
        (b"\n".join([canonical(lied), *bundle(good).split(b"\n")[1:]]), {}),
        (b"", {}),
        (b"nonsense", {}),
    ):
        with pytest.raises(FederationError):
            proven(data, **changes)
            pytest.fail(f"proven by {data!r} with {changes}")


class Voter(Desk):
    """A real hospital with its trainer; the other hospitals are keys only."""

    def ask_vote(self, model: bytes, number: int = 1, **header: Any) -> Any:
        return self.ask(number, kind="vote", model=model, **({"roster": ["North"]} | header))


@pytest.fixture
def voter(tmp_path, trainer):
    made = Voter(tmp_path, trainer, min_sites=1, privacy={"vote": {"share": 0.5}})
    made.hospital.approve(made.project)
    yield made
    made.close()


def test_a_hospital_measures_the_candidate_on_its_own_held_out_patients(voter) -> None:
    refused(voter.ask_vote(voter.model), "not trained here")
    update = voter.ask(1)
    trained = weights.from_bytes(update.parts["model"])
    answer = voter.ask_vote(update.parts["model"])
    assert answer.header["kind"] == "ballot" and set(answer.header) == {
        "v", "project", "round", "site", "request", "run", "kind",
    }  # fmt: skip
    body = json.loads(answer.parts["vote"])["body"]
    assert (body["vote"], body["voters"]) == ("accept", ["North"])
    assert body["candidate"] == hashlib.sha256(update.parts["model"]).hexdigest()
    assert body["base"] == hashlib.sha256(voter.model).hexdigest()
    (cast,) = voter.audit.records("round.voted")
    assert cast.facts["vote"] == "accept" and cast.facts["candidate"] == body["candidate"]
    refused(voter.ask_vote(voter.model), "a second time")  # one ballot a round

    given = voter.ask(2, model=update.parts["model"])  # from the trained model on, a spoilt one is told
    assert given.header["metrics"]["auc"] > 0.8, given.header
    poisoned = weights.to_bytes({n: -v if v.dtype.kind == "f" else v for n, v in trained.items()})
    (worse,) = [json.loads(voter.ask_vote(poisoned, 2).parts["vote"])["body"]]
    assert (worse["vote"], worse["reason"]) == ("reject", "worse")


def test_a_candidate_with_nan_is_rejected_and_one_of_another_shape_refused(voter) -> None:
    given = weights.from_bytes(voter.ask(1).parts["model"])
    name = next(n for n, v in given.items() if v.dtype.kind == "f")
    short = {n: v for n, v in given.items() if n != name}
    refused(voter.ask_vote(weights.to_bytes(short)), "other arrays")
    broken = {n: np.full_like(v, np.nan) if n == name else v for n, v in given.items()}
    body = json.loads(voter.ask_vote(weights.to_bytes(broken)).parts["vote"])["body"]
    assert (body["vote"], body["reason"]) == ("reject", "not finite")


def test_a_vote_among_others_than_the_approved_is_refused(tmp_path, trainer) -> None:
    one = Voter(tmp_path, trainer, privacy={"vote": {"share": 0.5}})  # min_sites 2
    try:
        one.hospital.approve(one.project)
        model = one.ask(1).parts["model"]
        for roster in (["North"], ["East", "West"], ["North", "North"]):
            refused(one.ask_vote(model, roster=roster), "fewer hospitals")
    finally:
        one.close()


def test_a_project_without_a_vote_answers_none(tmp_path, trainer) -> None:
    one = Voter(tmp_path, trainer)
    try:
        one.hospital.approve(one.project)
        refused(one.ask_vote(one.model), "no vote")
    finally:
        one.close()


def test_a_node_trains_the_projects_start_and_what_the_votes_carried_and_nothing_else(tmp_path, trainer) -> None:
    north = node_keys(
        tmp_path / "north" / "keys"
    ).signing_public  # the desk's hospital, which has two stand-ins beside it
    sites = {"North": base64.b64encode(north).decode()} | {
        name: base64.b64encode(PUBLIC[name]).decode() for name in ("a", "b")
    }
    terms = {"mode": "secure_aggregation", "secure_aggregation": {"sites": sites}}
    one = Desk(tmp_path, trainer, min_sites=3, privacy=terms)
    try:
        assert one.keys.signing_public == north
        one.hospital.approve(one.project)
        start = weights.from_bytes(one.model)
        other = weights.to_bytes(
            {n: v + np.asarray(0.01, v.dtype) if v.dtype.kind == "f" else v for n, v in start.items()}
        )
        refused(one.ask(1, model=other), "not this network's own start")
        voters = ["North", "a", "b"]
        facts = FACTS | {"project": one.project.digest, "run": "r1", "round": 1, "voters": voters}
        facts["candidate"] = hashlib.sha256(other).hexdigest()
        good = b"\n".join(votes.ballot(KEYS[site], site, YES, **facts) for site in ("a", "b"))
        bad = b"\n".join(votes.ballot(KEYS[site], site, NO, **facts) for site in ("a", "b"))
        refused(ask_with(one, 2, other, bad), "votes did not carry")
        refused(ask_with(one, 2, one.model, good), "votes did not carry")
        assert ask_with(one, 2, other, good).header["kind"] == "update"
    finally:
        one.close()


def ask_with(desk: Desk, number: int, model: bytes, ballots: bytes) -> Any:
    head = {"v": 1, "kind": "train", "run": "r1", "round": number, "rounds": 3, "deadline_s": 60}
    context = Context(desk.project.digest, number, COORDINATOR, "North", "train")
    signer = desk.coordinator.keys().signing
    made = Message(head, {"model": model, "votes": ballots})
    return desk.read(
        desk.executor.handle(messages.wrap(made, context, recipient_public=desk.keys.sealing_public, signer=signer))
    )


def test_the_networks_own_start_passes_where_it_belongs(tmp_path, trainer) -> None:
    """The same project: its start, as the coordinator makes it, is trained on without any ballot."""
    sites = {name: base64.b64encode(PUBLIC[name]).decode() for name in ("a", "b", "c")}
    terms = {"mode": "secure_aggregation", "secure_aggregation": {"sites": sites}}
    one = Desk(tmp_path, trainer, min_sites=3, privacy=terms)
    try:
        one.hospital.approve(one.project)
        assert one.ask(1).header["kind"] == "update"
    finally:
        one.close()


def test_secure_aggregation_votes_unless_the_project_says_otherwise() -> None:
    assert draft().vote_share == 0.5
    assert draft(privacy={"mode": "secure_aggregation", "vote": {"share": 0.0}}).vote_share == 0
    sealed = {"mode": "sealed"}
    assert draft(privacy=sealed).vote_share == 0
    assert draft(privacy=sealed | {"vote": {"share": 0.6}}, algorithm={"name": "multi_krum"}).vote_share == 0.6
    with pytest.raises(ProjectError, match=r"privacy\.vote\.share"):
        draft(privacy=sealed | {"vote": {"share": 0.6}}, algorithm={"name": "fedbn"})


def test_the_sheet_tells_of_the_vote() -> None:
    told = " ".join(plain_words(draft()).split())
    assert "more than 50% of the hospitals that trained" in told and "one of four reasons" in told
    silent = " ".join(plain_words(draft(privacy={"mode": "secure_aggregation", "vote": {"share": 0.0}})).split())
    assert "No hospital votes on the model" in silent and "one of four reasons" not in silent
    assert isinstance(validated(ProjectDraft, draft().model_dump(), "draft"), ProjectDraft)
