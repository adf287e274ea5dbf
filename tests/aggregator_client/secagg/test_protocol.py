"""Secure aggregation from plan to sum: exact with whoever is left, silent below the threshold, deaf to a lying coordinator."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator_client.errors import (
    AccusedError,
    FederationError,
    MessageError,
    RefusedError,
    SignatureError,
    TooFewSitesError,
)
from aggregator_client.messages import Message
from aggregator_client.secagg import masks, shamir
from aggregator_client.secagg.client import SecureClient, dealt_hash
from aggregator_client.secagg.server import SecureServer
from aggregator_client.secagg.transcript import canonical, hashed, say, threshold, unbundle
from tests.aggregator_client.secagg.cohort import STAGES, Cohort


@pytest.fixture
def cohort(tmp_path):
    made = []

    def make(*args, **options):
        made.append(Cohort(tmp_path / str(len(made)), *args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def plain_sum(cohort, server, plan, sites):
    """The definition: each site's own encoding, added up as integers."""
    total = np.zeros(server.plan.dimension, server.plan.ring.dtype)
    ctx = dealt_hash(server.circle.ctx, server._headers)
    for site in sites:
        noise = hashed("rounding", cohort.client(site, plan)._secrets.noise_key, ctx)
        share = cohort.weights[site] / server.plan.weight_cap
        total += masks.mask(cohort.values[site], share, cohort.weights[site], server.plan.ring, [], noise)[0]
    return total


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(3, 8),
    size=st.integers(1, 50),
    bits=st.sampled_from([16, 32, 64]),
    data=st.data(),
)
def test_the_sum_is_that_of_plain_integers_bit_for_bit(cohort, count, size, bits, data):
    made = cohort(count, size, bits=bits)
    losable = count - threshold(count)
    gone = data.draw(st.lists(st.sampled_from(made.names), max_size=losable, unique=True))
    lost = {site: data.draw(st.sampled_from(STAGES)) for site in gone}
    plan, seen = made.plan(), {}

    def change(stage, site, answer):
        if stage == "masked":
            client = made.client(site, plan)
            mine = client._dealt(Message.decode(client._attempt.kept("masked")[0]))
            noise = hashed("rounding", client._secrets.noise_key, mine.ctx)
            share = made.weights[site] / client.plan.weight_cap
            seen[site] = masks.mask(made.values[site], share, made.weights[site], client.plan.ring, [], noise)[0]
        return answer

    total = made.go(plan, lost, change)
    there = [site for site in made.names if lost.get(site) not in ("advert", "shares", "masked")]
    assert list(total.sites) == there
    assert np.array_equal(total.words, sum((seen[site] for site in there), np.zeros_like(total.words)))
    assert total.weight == sum(made.weights[site] for site in there)
    mean = sum(made.weights[s] * made.values[s].astype(float) for s in there) / total.weight
    bound = total.plan.ring.step * len(there) * total.plan.weight_cap / total.weight + 1e-6
    assert np.abs(total.mean() - mean).max() <= bound
    made.close()


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_the_round_ends_and_nothing_was_revealed(cohort, stage):
    made = cohort(5)  # threshold 4
    revealed = []

    def change(at, site, answer):
        if at == "unmask":
            revealed.append(site)
        return answer

    with pytest.raises(TooFewSitesError, match="needs 4: it ends with nothing revealed"):
        made.go(lost={"a01": stage, "a03": stage}, change=change)
    assert not revealed or stage == "unmask"


def test_three_shares_short_of_four_do_not_open_the_sum(cohort):
    made = cohort(5)
    plan = made.plan()
    server = made.go(plan, until="masked")
    wanted = plain_sum(made, server, plan, made.names)
    survivors = server.survivors()
    for site in made.names:
        server.take_agreement(site, made.client(site, plan).agree(survivors))
    agreements = server.agreements()
    for site in made.names[:3]:
        server.take_reveal(site, made.client(site, plan).unmask(agreements))
    with pytest.raises(TooFewSitesError):
        server.finish()
    assert not np.array_equal(server._sum, wanted)
    server.take_reveal("a03", made.client("a03", plan).unmask(agreements))
    assert np.array_equal(server.finish().words, wanted)


def test_what_a_site_sends_looks_like_chance_even_to_all_but_one_of_the_others(cohort):
    """The coordinator and three of five sites take away every mask they know; the rest is evenly spread over the bytes."""
    made = cohort(5, 60_000, clip=1.0)
    made.values = {site: np.zeros(made.size, np.float32) for site in made.names}
    plan, sent = made.plan(), {}

    def change(stage, site, answer):
        if stage == "masked":
            sent[site] = answer[1].copy()
        return answer

    server = made.go(plan, change=change, until="masked")
    victim, friends = "a02", ("a00", "a01", "a03")
    vector = sent[victim]
    for friend in friends:
        client = made.client(friend, plan)
        mine = client._dealt(Message.decode(client._attempt.kept("masked")[0]))
        place = mine.circle.roster.index
        seed = client._secrets.seed(place(victim)) if friend < victim else mine.payloads[victim][-32:]
        masks.unmask(vector, [masks.stream(seed, mine.ctx, -1 if friend < victim else 1)])
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    expected = vector.nbytes / 256
    assert ((counts - expected) ** 2 / expected).sum() < 420  # 255 degrees of freedom: eight standard deviations above
    # with the last pair's seed too, what is left is the self mask alone; with that one, the plain zeros
    client = made.client(victim, plan)
    mine = client._dealt(Message.decode(client._attempt.kept("masked")[0]))
    masks.unmask(vector, [s for s in client._streams(mine) if s not in known(client, mine, friends)])
    assert not vector[: made.size].any()
    assert server.surviving == made.names


def known(client, mine, friends):
    kept = dict(mine.payloads)
    only = {name: kept[name] for name in (client.me, *friends)}
    return client._streams(replace(mine, payloads=only))[1:]


def test_a_site_that_reveals_wrong_shares_is_named_and_the_round_goes_on(cohort):
    made, caught = cohort(5), []

    def change(stage, site, answer):
        if (stage, site) != ("unmask", "a02"):
            return answer
        shares = bytes([answer.parts["shares"][0] ^ 1]) + answer.parts["shares"][1:]
        body = json.loads(answer.parts["reveal"])["body"] | {"sha256": hashed("reveal", shares).hex()}
        return Message({}, {"reveal": say("reveal", site, body, made.keys[site]).encode(), "shares": shares})

    take = SecureServer.take_reveal

    class Server(SecureServer):
        def take_reveal(self, site, answer):
            try:
                take(self, site, answer)
            except AccusedError as error:
                caught.append(error.site)

    made.server = lambda plan: Server(plan, made.coordinator)
    assert len(made.go(change=change).sites) == 5 and caught == ["a02"]


def test_a_dealer_whose_shares_give_another_seed_is_named(cohort, monkeypatch):
    made, split = cohort(5), shamir.split
    plan = made.plan()
    client = made.client

    def lying(name, given):
        if name == "a01":
            monkeypatch.setattr(shamir, "split", lambda secret, *rest: split(bytes(32), *rest))
        else:
            monkeypatch.setattr(shamir, "split", split)
        return client(name, given)

    made.client = lying
    with pytest.raises(AccusedError, match="a01 dealt shares of another seed") as caught:
        made.go(plan)
    assert caught.value.site == "a01"


def test_a_dealer_whose_box_is_not_what_it_signed_is_named_by_its_receiver(cohort, monkeypatch):
    made = cohort(4)
    plan = made.plan()
    from aggregator_client.secagg import dealing

    root_of, wrong = dealing.root_of, []

    def change(stage, site, answer):
        return answer

    def lying(circle, dealer, holder, payload):
        found = root_of(circle, dealer, holder, payload)
        if (dealer, holder) == ("a01", "a02") and not wrong:
            wrong.append(1)
            return hashed("other", found)
        return found

    monkeypatch.setattr(dealing, "root_of", lying)
    with pytest.raises(AccusedError) as caught:
        made.go(plan, change=change)
    assert caught.value.site == "a01"
    with pytest.raises(RefusedError, match="erased"):  # the round's secrets are gone at the site that noticed
        made.client("a02", plan)._secrets  # noqa: B018


# -- a coordinator that lies --------------------------------------------------------------------------------------------


def test_a_replaced_key_of_the_round_is_noticed_and_the_secrets_are_erased(cohort):
    made = cohort(4)
    plan = made.plan()
    server = made.server(plan)
    for site in made.names:
        server.take_advert(site, made.client(site, plan).advert())
    bundle = server.adverts()
    other = cohort(4)
    other.keys, other.members = made.keys, made.members
    other.coordinator, other.charter = made.coordinator, made.charter
    fake = other.client("a01", plan).advert()  # a01's own signature, but another key: as if it were a second a01
    lines = [line if json.loads(line)["by"] != "a01" else fake for line in bundle.split(b"\n")]
    with pytest.raises(RefusedError, match="replaced this site's key"):
        made.client("a01", plan).shares(b"\n".join(lines))
    with pytest.raises(RefusedError, match="erased"):
        made.client("a01", plan).advert()
    # another site cannot tell, but then its boxes are for another roster and open nowhere
    made.client("a00", plan).shares(b"\n".join(lines))


def forged(bundle, site):
    """The bundle with `site`'s statement as it stands, but under a signature of somebody else's."""
    lines, stranger = [json.loads(line) for line in bundle.split(b"\n")], Ed25519PrivateKey.generate()
    return b"\n".join(
        say(one["kind"], site, one["body"], stranger).encode() if one["by"] == site else canonical(one) for one in lines
    )


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_site_proves_the_others_signatures_at_each_stage_before_it_answers(cohort, stage):
    made = cohort(4)
    plan = made.plan()
    client, server = made.client("a00", plan), made.server(plan)
    for site in made.names:
        server.take_advert(site, made.client(site, plan).advert())
    adverts = server.adverts()
    if stage != "shares":
        for site in made.names:
            server.take_shares(site, made.client(site, plan).shares(adverts))
    if stage in ("agree", "unmask"):
        for site in made.names:
            server.take_masked(site, *made.client(site, plan).masked(server.dealt(site), made.values[site], 5))
    if stage == "unmask":
        for site in made.names:
            server.take_agreement(site, made.client(site, plan).agree(server.survivors()))
    with pytest.raises(SignatureError):
        if stage == "shares":
            client.shares(forged(adverts, "a01"))
        elif stage == "masked":
            parts = server.dealt("a00").parts
            client.masked(Message({}, {**parts, "headers": forged(parts["headers"], "a01")}), made.values["a00"], 5)
        elif stage == "agree":
            client.agree(forged(server.survivors(), "a01"))
        else:
            client.unmask(forged(server.agreements(), "a01"))
    with pytest.raises(RefusedError, match="erased"):
        made.client("a00", plan)._secrets  # noqa: B018


def test_two_different_rosters_open_no_boxes(cohort):
    made = cohort(6)  # threshold 5
    plan = made.plan()
    server = made.server(plan)
    adverts = {site: made.client(site, plan).advert() for site in made.names}
    for site, answer in adverts.items():
        server.take_advert(site, answer)
    whole = server.adverts()
    short = b"\n".join(line for line in whole.split(b"\n") if json.loads(line)["by"] != "a05")
    for site in made.names[:5]:
        told = short if site == "a00" else whole
        answer = made.client(site, plan).shares(told)
        if site == "a00":
            with pytest.raises(MessageError, match="another roster"):
                server.take_shares(site, answer)
        else:
            server.take_shares(site, answer)


def test_an_equivocating_coordinator_gets_no_second_set_of_survivors_opened(cohort):
    made = cohort(6)  # threshold 5
    plan = made.plan()
    server = made.go(plan, until="masked")
    whole = server.survivors()
    less = b"\n".join(line for line in whole.split(b"\n") if json.loads(line)["by"] != "a05")
    said = {site: made.client(site, plan).agree(less if site < "a03" else whole) for site in made.names[:5]}
    mixed = b"\n".join(said[site] for site in sorted(said))
    for site in made.names[:5]:
        with pytest.raises(RefusedError, match="different survivors"):
            made.client(site, plan).unmask(mixed)
    with pytest.raises(RefusedError, match="erased"):
        made.client("a00", plan)._secrets  # noqa: B018
    with pytest.raises(RefusedError):  # nor a second set at a site that has agreed to one
        made.client("a04", plan).agree(less)


def test_a_repeated_request_gets_the_same_bytes_and_another_one_a_refusal(cohort):
    made = cohort(4)
    plan = made.plan()
    server = made.server(plan)
    for site in made.names:
        answer = made.client(site, plan).advert()
        assert answer == made.client(site, plan).advert()
        server.take_advert(site, answer)
    adverts = server.adverts()
    for site in made.names:
        answer = made.client(site, plan).shares(adverts)
        assert (
            answer.encode() == made.client(site, plan).shares(adverts).encode()
        )  # HPKE draws anew: it is the kept one
        server.take_shares(site, answer)
    statement, vector = made.client("a00", plan).masked(server.dealt("a00"), made.values["a00"], 5)
    again, same = made.client("a00", plan).masked(server.dealt("a00"), made.values["a00"], 5)
    assert again == statement and np.array_equal(vector, same)
    with pytest.raises(RefusedError, match="not the one it masked"):
        made.client("a00", plan).masked(server.dealt("a00"), made.values["a01"], 5)
    other = server.dealt("a01")
    with pytest.raises(RefusedError, match="twice in different words"):
        made.client("a00", plan).masked(other, made.values["a00"], 5)
    with pytest.raises(RefusedError, match="twice in different words"):
        made.client("a00", plan).shares(adverts + b"\n")


def test_a_model_is_summed_once_and_a_round_that_was_given_up_may_be_tried_again(cohort):
    made = cohort(4)
    with pytest.raises(TooFewSitesError):
        made.go(lost={"a00": "masked", "a01": "masked"})
    made.go(made.plan())  # a new attempt at round 1
    with pytest.raises(RefusedError, match="passed"):
        made.go(made.plan())
    with pytest.raises(RefusedError, match="summed before"):
        made.go(made.plan(2, base=json.loads(made.plan(1))["body"]["base"]))
    made.go(made.plan(2))


def test_plans_outside_of_the_charter_are_refused(cohort):
    made = cohort(4)
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for changes in (
        {"bits": 16},
        {"clip": 2.0},
        {"weight_cap": 7},
        {"project": "q" * 64},
        {"members": {**made.members, "a01": stranger}},
        {"members": {**made.members, "zz": stranger}},
        {"members": {n: k for n, k in made.members.items() if n < "a02"}},
        {"members": {n: k for n, k in made.members.items() if n != "a00"}},
    ):
        with pytest.raises(RefusedError):
            made.client("a00", made.plan(**changes))
    made.coordinator, real = Ed25519PrivateKey.generate(), made.coordinator
    forged = made.plan()
    made.coordinator = real
    with pytest.raises(SignatureError):
        made.client("a00", forged)


def test_every_changed_byte_of_a_statement_is_refused(cohort):
    made = cohort(3)
    plan = made.plan()
    answer = made.client("a00", plan).advert()
    for at in range(0, len(answer), 7):
        for bit in (1, 128):
            changed = answer[:at] + bytes([answer[at] ^ bit]) + answer[at + 1 :]
            with pytest.raises((MessageError, SignatureError)):
                made.server(plan).take_advert("a00", changed)
    with pytest.raises(MessageError, match="signed by a00"):
        made.server(plan).take_advert("a01", answer)


def test_a_changed_box_header_or_vector_is_refused(cohort):
    made = cohort(4)
    plan = made.plan()
    server = made.go(plan, until="shares")
    dealt = server.dealt("a00")
    for part in dealt.parts:
        data = dealt.parts[part]
        changed = Message({}, {**dealt.parts, part: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]})
        client: SecureClient = made.client("a00" if part == "boxes" else "a01", plan)
        with pytest.raises(FederationError):
            client.masked(changed, made.values["a00"], 5)
    statement, vector = made.client("a02", plan).masked(server.dealt("a02"), made.values["a02"], 5)
    vector[3] ^= 1
    with pytest.raises(MessageError, match="not what it signed"):
        server.take_masked("a02", statement, vector)
    assert not server._sum.any() and server.surviving == []


def test_survivors_and_statements_from_strangers_are_not_taken(cohort):
    made = cohort(4)
    server = made.go(until="masked")
    survivors = unbundle(server.survivors(), "masked", made.members)
    assert list(survivors) == made.names
    doubled = server.survivors() + b"\n" + server.survivors().split(b"\n")[0]
    with pytest.raises(MessageError, match="doubled"):
        unbundle(doubled, "masked", made.members)


def test_the_coordinator_holds_two_vectors_whatever_the_number_of_sites(cohort):
    peaks = []
    for count in (4, 8):
        made, vectors = cohort(count, 400_000), {}
        plan = made.plan()

        def change(stage, site, answer, vectors=vectors):
            return (answer[0], vectors.setdefault(site, answer[1])) if stage == "masked" else answer

        server = made.go(plan, lost={"a01": "masked"}, change=change, until="masked")
        survivors = server.survivors()
        for site in server.surviving:
            server.take_agreement(site, made.client(site, plan).agree(survivors))
        agreements = server.agreements()
        for site in server.agreeing:
            server.take_reveal(site, made.client(site, plan).unmask(agreements))
        tracemalloc.start()
        total = server.finish(threads=1)
        total.mean()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        made.close()
    vector = 400_000 * 4
    assert peaks[0] < 1.5 * vector and peaks[1] < 1.5 * vector  # beside the running sum
