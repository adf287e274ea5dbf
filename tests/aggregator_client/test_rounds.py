"""Rounds over a transport in this process: the right model, the right refusals, and the right words for a stalled site."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from aggregator_client.compression import TransferSettings, compress
from aggregator_client.coordinator.card import card
from aggregator_client.coordinator.overview import overview
from aggregator_client.coordinator.rounds import Gather, Step, Terms, Verdict, best_model, is_stale, next_step
from aggregator_client.coordinator.server import Run
from aggregator_client.coordinator.state import RunState
from aggregator_client.errors import TooFewSitesError
from aggregator_client.messages import Message
from aggregator_client.transport import LocalHub, SiteInfo
from tests.aggregator_client import federation
from trainer import networks, weights

SITES = ["north", "south", "west"]


class Small:
    """A run of `sites` over a LocalHub; `answers` replace what single sites say."""

    def __init__(self, root, sites=SITES, answers=None, absent=(), grace_s=0.5, **changes):
        self.coordinator, self.keys = federation.keys_of(root, *sites)
        self.project = federation.project(self.coordinator, **changes)
        self.hub, self.events = LocalHub(), []
        self.members = [federation.member(site, self.keys[site]) for site in sites]
        for site in sites:
            self.hub.register(site)
        self.sites = {}
        for site in sites:
            if site not in absent:
                self.join(site, (answers or {}).get(site))
        self.folder, self.grace_s = root / "run", grace_s
        self.state = RunState(self.folder)

    def join(self, site, answer=None):
        made = federation.Site(site, self.keys[site], self.coordinator, self.hub.link(site), answer)
        self.sites[site] = made.start()

    def run(self):
        return Run(self.project, self.members, self.coordinator, self.hub, self.state, self.events.append, self.grace_s)

    def close(self):
        for site in self.sites.values():
            site.end()
        self.state.close()

    def told(self, event):
        return [facts for facts in self.events if facts["event"] == event]


@pytest.fixture
def small(tmp_path):
    made = []

    def make(**options):
        made.append(Small(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def start_model():
    return networks.initial_weights(federation.NETWORK["name"], federation.NETWORK["args"], 0)


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_three_rounds_give_the_mean_by_definition_and_a_table(small):
    made = small()
    made.run().go()
    assert_close(made.state.model(3), federation.expected_model(start_model(), 3, SITES))
    table = {(cell.round, cell.site): cell for cell in made.state.table()}
    assert set(table) == {(number, site) for number in (1, 2, 3, 4) for site in SITES}
    assert all(cell.state == "accepted" and cell.metric == 0.75 and cell.attempts == 1 for cell in table.values())
    assert table[1, "north"].cases == federation.samples("north") and table[1, "north"].bytes_in > 1000
    assert made.state.run().state == "finished" and [s.site for s in made.state.sites()] == SITES
    assert len(list((made.folder / "checkpoints").glob("*.safetensors"))) == 4
    assert not list((made.folder / "updates").iterdir())
    assert made.sites["north"].asked == [("train", 1), ("train", 2), ("train", 3), ("evaluate", 4)]


def test_the_order_of_arrival_does_not_change_a_bit(tmp_path):
    models = []
    for index, slow in enumerate(("north", "west")):

        def late(site, context, request):
            time.sleep(0.3)
            return site.usual(context, request)

        made = Small(tmp_path / str(index), answers={slow: late}, rounds=1)
        made.run().go()
        models.append(weights.to_bytes(made.state.model(1)))
        made.close()
    assert models[0] == models[1]


def bad_nan(site, context, request):
    message = site.usual(context, request)
    if context.kind != "train":
        return message
    model = weights.from_bytes(message.parts["model"])
    name = next(n for n, v in sorted(model.items()) if v.dtype.kind == "f")
    model[name].flat[0] = np.nan
    return Message(message.header, {"model": weights.to_bytes(model)})


def bad_shape(site, context, request):
    message = site.usual(context, request)
    if context.kind != "train":
        return message
    model = weights.from_bytes(message.parts["model"])
    name = sorted(model)[0]
    return Message(message.header, {"model": weights.to_bytes({**model, name: np.zeros((3, 3), np.float32)})})


def bad_missing(site, context, request):
    message = site.usual(context, request)
    model = weights.from_bytes(message.parts.get("model") or request.parts["model"])
    model.pop(sorted(model)[0])
    return Message(message.header, {"model": weights.to_bytes(model)}) if context.kind == "train" else message


def bad_request(site, context, request):
    message = site.usual(context, request)
    return Message({**message.header, "request": "0" * 64}, message.parts)


def bad_blob(site, context, request):
    message = site.usual(context, request)
    return Message(message.header, {"model": message.parts["model"][:-5]}) if message.parts else message


def bad_samples(site, context, request):
    return site.usual(context, request, samples=0)


def bad_version(site, context, request):
    message = site.usual(context, request)
    return Message({**message.header, "v": 2}, message.parts)


def refuses(site, context, request):
    return Message({"v": 1, "kind": "refused", "reason": "The project is not approved here."})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (bad_nan, "NaN or infinite"),
        (bad_shape, "where the model has"),
        (bad_missing, "lacks array"),
        (bad_request, "belongs to another request"),
        (bad_blob, "not a whole safetensors file"),
        (bad_samples, "0 samples"),
        (bad_version, "another version"),
        (refuses, "not approved here"),
    ],
)
def test_a_bad_answer_is_refused_with_its_reason_and_the_round_goes_on_without_it(small, answer, words):
    made = small(answers={"west": answer}, rounds=1)
    made.run().go()
    assert_close(made.state.model(1), federation.expected_model(start_model(), 1, ["north", "south"]))
    (cell,) = [cell for cell in made.state.table() if (cell.round, cell.site) == (1, "west")]
    assert words in cell.reason and cell.state == ("refused" if answer is refuses else "failed")


def test_an_answer_for_another_round_or_by_another_site_is_not_used(small):
    made = small(rounds=1, deadline_s=3.0)
    west, south = made.sites["west"], made.sites["south"]
    west.seal = lambda context, message: federation.Site.seal(west, context, message, context.round + 1)
    south.handle = lambda payload: b"FPE1 nonsense"
    with pytest.raises(TooFewSitesError, match="cut short"):
        made.run().go()
    reasons = {cell.site: cell.reason for cell in made.state.table()}
    assert "of round 2" in reasons["west"]
    assert made.state.run().state == "stopped"


def test_an_answer_signed_by_a_stranger_is_not_used_and_the_round_goes_on(small, tmp_path):
    made = small(rounds=1)
    _, others = federation.keys_of(tmp_path / "others", "west")
    stranger = replace(made.sites["west"], keys=others["west"])
    made.sites["west"].seal = stranger.seal  # who has the request, but not west's key
    made.run().go()
    assert_close(made.state.model(1), federation.expected_model(start_model(), 1, ["north", "south"]))
    (cell,) = [cell for cell in made.state.table() if (cell.round, cell.site) == (1, "west")]
    assert cell.state == "failed" and "not signed by" in cell.reason


def test_an_answer_that_comes_twice_counts_once(small):
    made = small(rounds=1)
    plain = made.hub.collect

    def twice(handles, deadline):
        for handle, reply in plain(handles, deadline):
            yield handle, reply
            yield handle, reply

    made.hub.collect = twice
    made.run().go()
    assert_close(made.state.model(1), federation.expected_model(start_model(), 1, SITES))
    assert [facts["site"] for facts in made.told("update")].count("west") == 1


def test_a_site_that_is_away_is_named_and_the_round_goes_on_with_enough(small):
    made = small(absent=["west"], rounds=1)
    started = time.monotonic()
    made.run().go()
    assert time.monotonic() - started < 15
    (stalled,) = [facts for facts in made.told("stalled") if facts["round"] == 1]
    assert stalled["site"] == "west" and "away" in stalled["reason"]
    assert_close(made.state.model(1), federation.expected_model(start_model(), 1, ["north", "south"]))


def test_a_site_at_work_is_waited_for_until_the_deadline_and_no_longer(small):
    made = small(answers={"west": lambda site, context, request: None}, rounds=1, deadline_s=2.0)
    started = time.monotonic()
    made.run().go()
    assert time.monotonic() - started < 20
    stalled = [facts for facts in made.told("stalled") if facts["round"] == 1]
    assert [facts["site"] for facts in stalled] == ["west"] and "at work" in stalled[0]["reason"]


def test_too_few_sites_stop_the_run_with_each_reason_and_a_resume_goes_on(small):
    made = small(absent=["south", "west"], answers={"north": None}, rounds=2, deadline_s=1.0)
    with pytest.raises(
        TooFewSitesError, match=r"Round 1 needs 2 sites and has 1 .*south: it is away.*west: it is away"
    ):
        made.run().go()
    assert made.state.run().state == "stopped" and "south" in made.state.run().reason
    made.join("south")
    made.run().go()
    assert made.state.last_checkpoint() == 2
    assert_close(made.state.model(2), federation.expected_model(start_model(), 2, ["north", "south"]))
    # north's update of round 1 was kept: it was not asked for it again
    assert made.sites["north"].asked.count(("train", 1)) == 1


def test_a_site_that_comes_late_joins_the_round(small):
    made = small(absent=["west"], rounds=1, grace_s=20)
    threading.Timer(1.0, made.join, ("west",)).start()
    made.run().go()
    assert_close(made.state.model(1), federation.expected_model(start_model(), 1, SITES))


def test_more_sites_asked_for_than_enrolled_is_said_at_once(small):
    made = small(min_sites=4)
    with pytest.raises(TooFewSitesError, match="asks for 4 sites and 3 are enrolled"):
        made.run()


def scores(by_model):
    """Answers whose AUC tells how good the model of each round was: `by_model[n]` of the one round n + 1 begins with."""

    def answer(site, context, request):
        return site.usual(context, request, metrics={"auc": by_model[min(context.round - 1, len(by_model) - 1)]})

    return dict.fromkeys(SITES, answer)


def test_a_run_that_stopped_to_gain_ends_and_keeps_its_best_model(small):
    made = small(answers=scores([0.5, 0.6, 0.8, 0.7, 0.75, 0.1]), rounds=9, stop={"patience": 2, "keep": "best"})
    made.run().go()
    # models 0 to 4 are known to be no better than model 2 when round 5 closes
    assert made.state.last_checkpoint() == 5 and made.state.run().state == "finished"
    assert made.state.kept_model("best") == 2 and made.state.kept_model("last") == 5
    assert_close(made.state.model(2), federation.expected_model(start_model(), 2, SITES))
    facts = card(made.project.document, made.project.digest, made.state)
    assert facts["kept_round"] == 2 and facts["sha256"] == made.state.rounds()[2].sha256
    assert facts["fairness"]["mean"] == pytest.approx(0.8) and facts["rounds"] == 5


def test_all_rounds_are_run_without_patience_and_the_last_model_counts(small):
    made = small(answers=scores([0.9, 0.8, 0.7, 0.6]), rounds=3)
    made.run().go()
    assert made.state.last_checkpoint() == 3 and made.state.kept_model() == 3 and made.state.kept_model("best") == 0


def test_the_overview_compares_with_the_round_before_and_tells_the_worst_site_and_the_spread(small):
    def answer(site, context, request):
        value = {"north": 0.6, "south": 0.7, "west": 0.9}[site.name] + 0.01 * context.round
        return site.usual(context, request, metrics={"auc": value})

    made = small(answers=dict.fromkeys(SITES, answer), rounds=2)
    made.run().go()
    facts = overview(made.folder)
    last = facts["history"][-1]
    assert last["worst_site"] == "north" and last["spread"] == pytest.approx(0.3)
    assert [site["change"] for site in facts["sites"]] == pytest.approx([0.01] * 3) and facts["best_round"] == 2
    fair = card(made.project.document, made.project.digest, made.state)["fairness"]
    assert (fair["worst_site"], fair["best_site"]) == ("north", "west") and fair["worst"] == pytest.approx(0.63)


@pytest.mark.parametrize("form", ["fp16", "int8", "int4", "topk"])
def test_compressed_updates_are_taken_and_a_bad_one_is_refused(small, form):
    setting = TransferSettings(compression=form)

    def answer(site, context, request):
        message = site.usual(context, request)
        if context.kind != "train":
            return message
        given = weights.from_bytes(request.parts["model"])
        data, _ = compress(weights.from_bytes(message.parts["model"]), given, setting, 1)
        return Message(message.header, {"change": data[:-3] if site.name == "west" else data})

    made = small(answers=dict.fromkeys(SITES, answer), rounds=1, transfer={"compression": form})
    made.run().go()
    wanted = federation.expected_model(start_model(), 1, ["north", "south"])
    found = made.state.model(1)
    if form != "topk":  # which sends a tenth of the change in a round
        assert_close(found, wanted)
    (cell,) = [cell for cell in made.state.table() if (cell.round, cell.site) == (1, "west")]
    assert cell.state == "failed" and "safetensors" in cell.reason


def test_a_share_of_the_sites_trains_and_the_roster_is_told(small):
    rosters = []

    def answer(site, context, request):
        rosters.append((context.kind, context.round, tuple(request.header["roster"])))
        return site.usual(context, request)

    made = small(answers=dict.fromkeys(SITES, answer), rounds=2, algorithm={"name": "fedavg", "args": {"share": 0.6}})
    made.run().go()
    asked = {number: {cell.site for cell in made.state.table() if cell.round == number} for number in (1, 2, 3)}
    assert len(asked[1]) == len(asked[2]) == 2 and len(asked[3]) == 3
    assert {roster for kind, number, roster in rosters if number == 1} == {tuple(sorted(asked[1]))}


def test_half_answers_of_a_round_under_way_decide_nothing(small):
    made = small(answers=scores([0.5, 0.6, 0.4, 0.3]), absent=["west"], rounds=3, min_sites=3, deadline_s=2.0)
    with pytest.raises(TooFewSitesError):
        made.run().go()
    assert made.state.table() and made.state.site_scores() == {} and made.state.model_scores() == {}


# -- the pure part ----------------------------------------------------------------------------------------------------


def test_the_next_step_follows_from_the_checkpoints_alone():
    steps = [next_step(2, done, False) for done in (-1, 0, 1, 2)]
    assert steps == [(Step.START, 0), (Step.ROUND, 1), (Step.ROUND, 2), (Step.EVALUATE, 3)]
    assert next_step(2, 2, True) == (Step.DONE, 2)


def test_stale_and_best_follow_from_the_scores():
    scores = {0: 0.5, 1: 0.7, 2: 0.705, 3: 0.69}
    assert best_model(scores) == 2 and best_model(scores, 0.01) == 1 and best_model({}) == -1
    assert not is_stale(scores, 0) and not is_stale(scores, 2) and is_stale(scores, 1)
    assert is_stale(scores, 2, min_gain=0.01) and not is_stale({}, 1)
    assert next_step(9, 3, False, stale=True) == (Step.EVALUATE, 10)


def info(name, online=True, activated=0.0, trouble=""):
    return SiteInfo(name, online, 0.0, activated, trouble)


def test_a_site_that_is_not_let_in_is_named_with_what_is_wrong():
    gather = Gather(1, frozenset({"a", "b"}), 0.0).seen([info("a", False, trouble="its clock is wrong")], 0.0)
    assert gather.stalled(Terms(1, 10, 2)) == {
        "a": "it is not let in: its clock is wrong",
        "b": "it is away: its node is stopped, or cannot reach the coordinator",
    }
    assert gather.took("b").verdict(Terms(1, 10, 2), 2.0) is Verdict.ENOUGH  # the round goes on without it


def test_a_site_that_signed_in_again_is_sent_the_request_again():
    terms = Terms(need=1, deadline_s=10, grace_s=2)
    gather = Gather(1, frozenset({"a"}), 0.0).seen([info("a")], 0.0).was_sent("a", 0.0, wall=100.0)
    assert gather.to_send([info("a", activated=50.0)], terms, 5.0) == []
    assert gather.to_send([info("a", activated=101.0)], terms, 5.0) == ["a"]
    assert gather.to_send([info("a", online=False, activated=101.0)], terms, 5.0) == []
    assert gather.lost("a").to_send([info("a")], terms, 5.0) == ["a"]
    assert gather.took("a").to_send([info("a", activated=101.0)], terms, 5.0) == []


def test_a_refusal_is_asked_again_only_while_the_round_is_short():
    two = frozenset({"a", "b"})
    infos = [info("a"), info("b")]
    gather = Gather(1, two, 0.0).seen(infos, 0.0).was_sent("a", 0.0, 0.0).was_sent("b", 0.0, 0.0).took("a")
    refused = gather.refuse("b", "paused", 1.0)
    assert refused.verdict(Terms(1, 10, 2), 1.0) is Verdict.ENOUGH
    assert refused.verdict(Terms(2, 10, 2), 1.0) is Verdict.WAIT
    assert refused.to_send(infos, Terms(2, 10, 2), 2.0) == []
    assert refused.to_send(infos, Terms(2, 10, 2), 7.0) == ["b"]
    assert refused.verdict(Terms(2, 10, 2), 10.0) is Verdict.SHORT
    assert refused.stalled(Terms(2, 10, 2)) == {"b": "paused"}
