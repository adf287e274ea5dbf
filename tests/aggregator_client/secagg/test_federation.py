"""Rounds with secure aggregation: the plain model within the fixed-point step, with sites lost and the coordinator killed."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from aggregator_client import invitations, messages, votes
from aggregator_client.cli.project import app
from aggregator_client.coordinator import settings
from aggregator_client.coordinator.server import Run
from aggregator_client.coordinator.state import RunState
from aggregator_client.errors import ProjectError, TooFewSitesError
from aggregator_client.keys import node_keys
from aggregator_client.messages import SUMMING, Message
from aggregator_client.project import ProjectDraft, SignedProject, validated
from aggregator_client.secagg import stages
from aggregator_client.secagg.journal import Journal
from aggregator_client.sheet import plain_words
from aggregator_client.transport import LocalHub
from dicom_node.audit import AuditLog
from tests.aggregator_client import federation, hospital
from tests.aggregator_client.federation import samples, shift
from tests.aggregator_client.hospital import until
from tests.aggregator_client.test_federation import World
from trainer import networks, weights

SITES = ["east", "north", "south", "west"]


def privacy(keys, **terms):
    sites = {site: base64.b64encode(one.signing_public).decode() for site, one in keys.items()}
    return {
        "mode": "secure_aggregation",
        "secure_aggregation": {"sites": sites, "clip": 1.0, "weight_cap": 30, **terms},
    }


class Summing:
    """Four stand-in sites over a LocalHub that train at once and sum for real. `away`: (stage, site) that never answers."""

    def __init__(self, root, away=(), **changes):
        self.root, self.away, self.sums, self.liars = root, set(away), {}, set()
        self.coordinator, self.keys = federation.keys_of(root, *SITES)
        terms = {"rounds": 2, "min_sites": 3, "deadline_s": 3.0, "privacy": privacy(self.keys)}
        self.project = federation.project(self.coordinator, **(terms | changes))
        self.hub, self.events = LocalHub(), []
        self.start = stages.base_of(start_model())  # once: torch's seed is the process's, not the thread's
        for site in SITES:
            self.hub.register(site)
        self.sites = [
            federation.Site(s, self.keys[s], self.coordinator, self.hub.link(s), self.answer).start() for s in SITES
        ]
        self.state = RunState(root / "run")

    def answer(self, site, context, request):
        if (context.kind, context.round, site.name) in self.away or (context.kind, 0, site.name) in self.away:
            return None
        storage = SimpleNamespace(federation=self.root / site.name)
        if context.kind in SUMMING:
            trust = SimpleNamespace(present=SimpleNamespace(signing=self.coordinator.signing_public))
            invitation = SimpleNamespace(site=site.name)
            config = SimpleNamespace(storage=storage)
            node = SimpleNamespace(config=config, invitation=invitation, keys=site.keys, trust=trust)
            head = {"v": messages.VERSION, "request": request.digest(), "kind": messages.ANSWERS[context.kind]}
            made = stages.answer(node, self.project.document, context, request, head)
            self.sums.setdefault((context.kind, context.round), {})[site.name] = made
            return made
        if context.kind == "vote":
            return self.ballot(site, context, request)
        message = self.usual(site, context, request)
        if context.kind != "train":
            return message
        self.require_proven(context, request)
        name = f"{context.project_digest[:16]}-{request.header['run']}-{context.round:04d}-train"
        folder = storage.federation / "work" / name
        (folder / "out").mkdir(parents=True, exist_ok=True)
        weights.save(folder / "given.safetensors", weights.from_bytes(request.parts["model"]))
        weights.save(folder / "out" / "model.safetensors", weights.from_bytes(message.parts["model"]))
        (folder / "out" / "result.json").write_text(json.dumps({"samples": samples(site.name)}))
        return Message({**message.header, "samples": 0})

    usual = staticmethod(federation.Site.usual)  # a test may put another training in its place

    def ballot(self, site, context, request):
        """As a node does; its held-out patients are stood in for by how far the candidate strays."""
        name = f"{context.project_digest[:16]}-{request.header['run']}-{context.round:04d}-train"
        given = weights.load(self.root / site.name / "work" / name / "given.safetensors")
        candidate = weights.from_bytes(request.parts["model"])
        strayed = max(float(np.abs(candidate[n] - v).max()) for n, v in given.items() if v.dtype.kind == "f")
        reason = votes.judged({"auc": 0.75}, {"auc": 0.74 if strayed < 0.1 else 0.2}, "auc", 0.05)
        if site.name in self.liars:
            reason = "no worse" if reason == "worse" else "worse"
        run, base = request.header["run"], stages.base_of(given)
        facts = {"project": context.project_digest, "run": run, "round": context.round, "base": base}
        with closing(Journal(self.root / site.name)) as journal:
            journal.voted(*facts.values())
        facts |= {"candidate": stages.base_of(candidate), "voters": request.header["roster"]}
        head = {"v": messages.VERSION, "request": request.digest(), "run": run, "kind": "ballot"}
        return Message(head, {"vote": votes.ballot(site.keys.signing, site.name, reason, **facts)})

    def require_proven(self, context, request):
        model, document = weights.from_bytes(request.parts["model"]), self.project.document
        if not document.vote_share or "votes" not in request.parts:
            assert not document.vote_share or stages.base_of(model) == self.start
            return
        votes.require_proven(
            request.parts["votes"],
            document.privacy.secure_aggregation.keys,
            project=context.project_digest,
            run=request.header["run"],
            candidate=stages.base_of(model),
            fewest=document.min_sites,
            share=document.vote_share,
        )

    def run(self):
        members = [federation.member(site, self.keys[site]) for site in SITES]
        return Run(self.project, members, self.coordinator, self.hub, self.state, self.events.append, 0.3)

    def close(self):
        for site in self.sites:
            site.end()
        self.state.close()


@pytest.fixture
def summing(tmp_path):
    made = []

    def make(**options):
        made.append(Summing(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def expected(start, by_round):
    """FedAvg's floating arrays by definition; whole numbers stay as they were."""
    model = start
    for number, sites in enumerate(by_round, 1):
        total = sum(samples(site) for site in sites)
        step = sum(shift(site, number) * samples(site) / total for site in sites)
        model = {n: v + np.asarray(step, v.dtype) if v.dtype.kind == "f" else v for n, v in model.items()}
    return model


def start_model():
    return networks.initial_weights(federation.NETWORK["name"], federation.NETWORK["args"], 0)


def assert_close(found, wanted, atol):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_two_rounds_give_fedavgs_model_within_the_fixed_point_step(summing, tmp_path, bits):
    _, keys = federation.keys_of(tmp_path / "0", *SITES)
    made = summing(privacy=privacy(keys, ring=bits))
    made.run().go()
    step = 1.0 / ((2 ** (bits - 1) - 1) // 4 - 1)
    share = sum(samples(site) for site in SITES) / 30
    assert_close(made.state.model(2), expected(start_model(), [SITES, SITES]), 2 * 4 * step / share + 1e-6)
    assert [e["samples"] for e in made.events if e["event"] == "summed"] == [sum(map(samples, SITES))] * 2
    assert not (made.root / "run" / "summing").exists()
    kept = [cell for cell in made.state.table() if cell.round <= 2]
    assert len(kept) == 8 and all(cell.state == "accepted" and cell.cases == 0 and cell.metric == 0.75 for cell in kept)
    vector = np.frombuffer(made.sums["sum.masked", 1]["east"].parts["vector"], f"<u{bits // 8}")
    assert abs(vector.astype(float).mean() / 2**bits - 0.5) < 0.2  # masked: small changes would lie at the ring's ends


@pytest.mark.parametrize("stage", SUMMING)
def test_a_site_lost_at_any_stage_does_not_stop_the_round(summing, stage):
    made = summing(away=[(stage, 1, "south")], rounds=1)
    made.run().go()
    there = [s for s in SITES if s != "south"] if stage in SUMMING[:3] else SITES
    assert_close(made.state.model(1), expected(start_model(), [there]), 1e-6)


@pytest.mark.parametrize("stage", ["sum.shares", "sum.masked", "sum.unmask"])
def test_below_the_threshold_the_run_stops_and_can_be_resumed(summing, stage):
    made = summing(away=[(stage, 1, "south"), (stage, 1, "east")], rounds=1)
    with pytest.raises(TooFewSitesError, match="nothing revealed"):
        made.run().go()
    assert made.state.last_checkpoint() == 0 and made.state.run().state == "stopped"
    made.away.clear()
    made.run().go()
    assert_close(made.state.model(1), expected(start_model(), [SITES]), 1e-6)


def test_a_coordinator_killed_before_its_checkpoint_opens_the_same_sum_again(summing):
    made = summing(rounds=1)
    run, closed = made.run(), made.state.close_round

    def killed(number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        closed(number, *rest)

    made.state.close_round = killed
    with pytest.raises(KeyboardInterrupt):
        run.go()
    made.state.close_round = closed
    asked = [len(site.asked) for site in made.sites]
    made.run().go()
    assert_close(made.state.model(1), expected(start_model(), [SITES]), 1e-6)
    assert [site.asked[before:] for site, before in zip(made.sites, asked, strict=True)] == [[("evaluate", 2)]] * 4


def draft(**changes):
    values = {
        "name": "test",
        "version": "1",
        "purpose": "A project that only tests ever see.",
        "rounds": 3,
        "min_sites": 3,
        "task": {"name": "classification", "classes": ["a", "b"], "label": "finding", "size": 16},
        "cohort": {},
        "network": federation.NETWORK,
        "privacy": {"mode": "secure_aggregation"},
    }
    return validated(ProjectDraft, values | changes, "draft")


DRAFT = """
name = "test"
version = "1"
purpose = "A project that only tests ever see."
rounds = 1
min_sites = 3
[task]
name = "classification"
classes = ["a", "b"]
label = "finding"
size = 16
[cohort]
[network]
name = "small_resnet"
args = { in_channels = 1, classes = 2, widths = [2, 2] }
[privacy]
mode = "secure_aggregation"
"""


def test_signing_writes_the_enrolled_hospitals_and_their_keys_into_the_project(tmp_path):
    config = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    (tmp_path / "draft.toml").write_text(DRAFT)
    argv = ["sign", str(tmp_path / "draft.toml"), "--coordinator", str(config.root), "--out", str(tmp_path / "p.json")]
    keys = {}
    for name in ("North", "South", "West"):
        refused = CliRunner().invoke(app, argv)
        assert isinstance(refused.exception, ProjectError) and "of min_sites hospitals or more" in str(
            refused.exception
        )
        keys[name] = node_keys(tmp_path / name)
        config.members.enrol(invitations.accept(config.invite(name), keys[name]))
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0, done.output
    terms = SignedProject.read(tmp_path / "p.json").document.privacy.secure_aggregation
    assert terms.keys == {name: one.signing_public for name, one in keys.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": {"name": "median"}},
        {"algorithm": {"name": "multi_krum"}},
        {"algorithm": {"name": "scaffold"}},
        {"transfer": {"compression": "int8"}},
        {"min_sites": 2},
    ],
)
def test_what_excludes_full_secrecy_is_refused(changes):
    with pytest.raises(ProjectError, match="secure_aggregation"):
        draft(**changes)


def test_the_sheet_says_what_the_sum_hides_and_what_it_does_not():
    sheet = " ".join(plain_words(draft()).split())
    assert "neither your update nor your number of images" in sheet and "There is no way back" in sheet
    assert "robust rules and full secrecy exclude each other" in sheet
    assert "more than a third of the hospitals" in sheet
    assert "how many training images were used" not in sheet and "The coordinator reads your" not in sheet


@pytest.mark.slow
def test_real_hospitals_sum_over_flower_and_one_leaves_after_training(tmp_path):
    """Four node processes, TLS, real training: the model is the mean of the three that are left, and only of them."""
    world = World(tmp_path)
    try:
        names = ["East", "West"]
        world.hospitals += [hospital.hospital(tmp_path / n, n, world.config, 30, 2 + i) for i, n in enumerate(names)]
        keys = {member.name: member.enrolment.signing_public for member in world.config.members.list()}
        world.project = hospital.project(
            world.config,
            rounds=1,
            min_sites=3,
            deadline_s=240.0,
            local={"epochs": 1, "batch": 12, "lr": 3e-3},
            privacy={
                "mode": "secure_aggregation",
                "secure_aggregation": {"sites": keys, "weight_cap": 100},
                "vote": {"tolerance": 1.0},  # a few held-out patients each: their AUC jumps
            },
        )
        world.file.write_bytes(world.project.file_bytes())
        world.folder = world.config.run_folder(world.project.digest)
        for one in world.hospitals:
            one.approve(world.project)
            one.start()
        process, east = world.coordinate("run"), world.hospitals[2]
        advert = world.folder / "summing" / "0001" / "sum.advert"
        until(lambda: advert.exists() or process.poll() is not None, 200, "the end of training")
        east.process.terminate()
        east.process.wait()
        trained, counts = {}, {}
        for one in world.hospitals:  # read before the evaluation clears them away
            (folder,) = list((one.config.storage.federation / "work").glob("*-train"))
            trained[one.name] = weights.load(folder / "out" / "model.safetensors")
            counts[one.name] = json.loads((folder / "out" / "result.json").read_text())["samples"]
        until(
            lambda: (world.folder / "summing" / "0001" / "sum.shares").exists() or process.poll() is not None,
            200,
            "shares",
        )
        east.start()  # it is back for the evaluation
        assert world.result(280)["rounds"] == 1
        with closing(RunState(world.folder, readonly=True)) as state:
            model, start = state.model(1), state.model(0)
        there = [name for name in trained if name != "East"]
        plain = weights.average([trained[name] for name in there], [counts[name] for name in there])
        step = 8.0 / ((2**31 - 1) // 4 - 1) * 100 * 4 / sum(counts[name] for name in there)
        floats = [name for name in model if model[name].dtype.kind == "f"]
        assert any(not np.array_equal(model[name], start[name]) for name in floats)
        for name in floats:
            np.testing.assert_allclose(model[name], plain[name], rtol=1e-6, atol=step + 1e-6, err_msg=name)
        for one in world.hospitals:
            with closing(AuditLog(one.config.storage.audit, readonly=True)) as audit:
                left = [r.facts for r in audit.records("egress")]
                assert audit.verify().ok and all(f["privacy"]["mode"] == "secure_aggregation" for f in left)
                if one is not east:
                    whats = ["update", *(f"{s}.answer" for s in SUMMING), "ballot", "metrics"]
                    assert [f["what"] for f in left] == whats
                    assert [r.facts["vote"] for r in audit.records("round.voted")] == ["accept"]
    finally:
        world.close()
