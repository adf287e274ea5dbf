"""A site answers what it approved, once, and writes down what leaves before it leaves; everything else it refuses."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from aggregator_client import gpu_queue, local_job, messages
from aggregator_client.approvals import Decision, decide, invitation_of
from aggregator_client.compression import decompress
from aggregator_client.coordinator import settings
from aggregator_client.executor import Executor
from aggregator_client.keys import node_keys
from aggregator_client.ledger import Ledger
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.sealing import Context
from aggregator_client.trainer_process import TrainerProcess
from dicom_node import pause
from dicom_node.audit import AuditLog
from tests.aggregator_client import hospital
from trainer import networks, weights


class Desk:
    """One hospital's executor and what a coordinator needs to talk to it."""

    def __init__(self, root, trainer, **changes):
        self.coordinator = settings.create(root / "coordinator", name="University", host="127.0.0.1", port=9443)
        self.hospital = hospital.hospital(root / "north", "North", self.coordinator)
        self.config, self.keys = self.hospital.config, node_keys(self.hospital.config.storage.keys)
        self.project = hospital.project(self.coordinator, **changes)
        self.audit, self.ledger = AuditLog(self.config.storage.audit), Ledger(self.config.storage.federation)
        self.reports = []
        self.executor = Executor(
            self.config,
            invitation_of(self.config),
            self.keys,
            self.audit,
            self.ledger,
            lambda **facts: self.reports.append(facts),
            trainer,
        )
        network = self.project.document.network
        self.model = weights.to_bytes(networks.initial_weights(network.name, network.args, 0))

    def request(self, number=1, kind="train", model=None, signer=None, recipient="North", digest=None, **header):
        made = Message(
            {"v": 1, "kind": kind, "run": "r1", "round": number, "rounds": 3, "deadline_s": 60} | header,
            {"model": model or self.model},
        )
        context = Context(digest or self.project.digest, number, COORDINATOR, recipient, kind)
        signer = signer or self.coordinator.keys().signing
        return messages.wrap(made, context, recipient_public=self.keys.sealing_public, signer=signer)

    def ask(self, *args, **kwargs):
        return self.read(self.executor.handle(self.request(*args, **kwargs)))

    def read(self, blob):
        _, answer = messages.unwrap(
            blob, private=self.coordinator.keys().sealing, sender_public=self.keys.signing_public
        )
        return answer

    def close(self):
        self.ledger.close()
        self.audit.close()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with closing(TrainerProcess(tmp_path_factory.mktemp("trainer") / "trainer.log")) as made:
            made.warm()
            yield made


@pytest.fixture
def desk(tmp_path, trainer):
    made = Desk(tmp_path, trainer)
    yield made
    made.close()


def refused(answer, words):
    assert answer.header["kind"] == "refused" and words in answer.header["reason"], answer.header
    assert not answer.parts


def test_a_round_is_trained_recorded_and_answered_once(desk):
    desk.hospital.approve(desk.project)
    blob = desk.executor.handle(desk.request(1))
    answer = desk.read(blob)
    assert answer.header["kind"] == "update" and answer.header["samples"] == 27
    assert 0 <= answer.header["metrics"]["auc"] <= 1 and answer.header["evaluated_on"] == "validation"
    trained, given = weights.from_bytes(answer.parts["model"]), weights.from_bytes(desk.model)
    assert trained.keys() == given.keys() and weights.to_bytes(trained) != desk.model

    (left,) = desk.audit.records("egress")
    assert left.facts["sha256"] == hashlib.sha256(blob).hexdigest() and left.facts["bytes"] == len(blob)
    assert (left.facts["what"], left.facts["recipient"], left.facts["round"]) == ("update", "University", 1)
    (done,) = desk.audit.records("round.trained")
    assert done.facts["samples"] == 27 and done.seq < left.seq and desk.audit.verify().ok

    # the same request again: the same bytes, no second training
    assert desk.executor.handle(desk.request(1)) == blob
    assert len(list(desk.audit.records("round.trained"))) == 1
    # another model for the same round: the coordinator says two things
    other = weights.to_bytes({n: v + v.dtype.type(1) for n, v in given.items()})
    refused(desk.ask(1, model=other), "a second time with another model")
    # a later round, then the first again
    assert desk.ask(2).header["kind"] == "update"
    refused(desk.ask(1), "has been passed")
    assert desk.ask(4, kind="evaluate").header["kind"] == "metrics"
    refused(desk.ask(5), "none of the 3 rounds")


def test_only_an_approved_project_of_the_known_coordinator_is_answered(desk):
    refused(desk.ask(1), "never approved here")
    changed = hospital.project(desk.coordinator, rounds=4)
    desk.hospital.approve(desk.project)
    refused(desk.ask(1, digest=changed.digest), "never approved here")
    decide(desk.config, desk.project, Decision(desk.project.digest, "suspended", "Dr. Test", "pacs-admin"))
    refused(desk.ask(1), "suspended")
    assert not list(desk.audit.records("round.trained"))
    assert {record.facts["what"] for record in desk.audit.records("egress")} == {"refused"}


def test_a_stranger_a_misdirected_and_a_broken_message_are_refused(desk, tmp_path):
    desk.hospital.approve(desk.project)
    stranger = settings.create(tmp_path / "stranger", name="Stranger", host="127.0.0.1", port=9444).keys()
    refused(desk.ask(1, signer=stranger.signing), "not signed by")
    refused(desk.ask(1, recipient="South"), "not a request to this site")
    refused(desk.ask(1, v=2), "another version")
    whole = desk.request(1)
    for broken in (whole[:-1], whole[:100], b"", b"nonsense", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        refused(desk.read(desk.executor.handle(broken)), "")
    refused(desk.ask(1, model=b"cos\nsystem\n(S'id'\ntR."), "not a whole safetensors file")
    assert not list(desk.audit.records("round.trained"))


def test_a_round_waits_for_a_free_gpu_and_no_longer_than_it_may(desk, monkeypatch):
    desk.hospital.approve(desk.project)
    monkeypatch.setattr(gpu_queue, "cards", lambda: ("0",))
    with gpu_queue.of_node(desk.config).turn(1, lambda: None):
        refused(desk.ask(1, deadline_s=0.5), "had no GPU free in the 0.5 s of the round")
        monkeypatch.setattr(local_job, "is_paused", lambda config: True)
        refused(desk.ask(1), "paused by its administrator")
    assert {"activity": "waiting for a GPU"} in desk.reports
    assert desk.ask(1).header["kind"] == "update"  # a GPU is free now


def test_a_paused_node_does_not_train(desk):
    desk.hospital.approve(desk.project)
    pause.pause(desk.config, by="Dr. Test")
    refused(desk.ask(1), "paused")
    pause.resume(desk.config, by="Dr. Test")
    assert desk.ask(1).header["kind"] == "update"


def test_a_node_trains_only_inside_its_hours(desk):
    desk.hospital.approve(desk.project)
    now = datetime.now(UTC)
    later = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=4):%H:%M}"
    federation = desk.config.federation.model_copy(update={"hours": (later,)})
    desk.executor.config = desk.config.model_copy(update={"federation": federation})
    refused(desk.ask(1), f"trains only at {later}")
    assert not list(desk.audit.records("round.trained"))
    desk.executor.config = desk.config
    assert desk.ask(1).header["kind"] == "update"


def test_the_egress_record_names_who_takes_part(desk):
    desk.hospital.approve(desk.project)
    assert desk.ask(1, roster=["South", "North"]).header["kind"] == "update"
    refused(desk.ask(2, roster="everybody"), "no list of site names")
    told = {record.facts["what"]: record.facts["roster"] for record in desk.audit.records("egress")}
    assert told == {"update": ["North", "South"], "refused": []}


@pytest.mark.parametrize("form", ["int8", "topk"])
def test_an_update_leaves_compressed_and_what_it_left_out_is_kept_once(tmp_path, trainer, form):
    with closing(Desk(tmp_path, trainer, transfer={"compression": form})) as made:
        made.hospital.approve(made.project)
        first = made.executor.handle(made.request(1))
        answer = made.read(first)
        setting = made.project.document.transfer
        assert "model" not in answer.parts and len(answer.parts["change"]) < 0.5 * len(made.model)
        given = weights.from_bytes(made.model)
        arrived = decompress(answer.parts["change"], given, setting)
        work = next((made.config.storage.federation / "work").glob("*-0001-train"))
        trained = weights.load(work / "out" / "model.safetensors")
        assert arrived.keys() == trained.keys()
        left = list((made.config.storage.federation / "kept").glob("*/*/left-00001.safetensors"))
        assert len(left) == (1 if form == "topk" else 0)
        if form == "topk":
            rest = weights.load(left[0])
            for name, missing in rest.items():
                assert np.allclose(arrived[name] + missing, trained[name], atol=1e-5)
        made.ledger._db.execute(
            "DELETE FROM answered"
        )  # killed before the answer was noted: the job's result is used again
        again = made.read(made.executor.handle(made.request(1)))
        assert again.parts["change"] == answer.parts["change"]
        assert made.ask(2).header["kind"] == "update"


def test_a_head_of_its_own_and_a_personal_model_stay_at_the_site(tmp_path, trainer):
    changes = {"algorithm": {"name": "fedper", "args": {"head": ["head."]}}, "personal": {"epochs": 1}}
    with closing(Desk(tmp_path, trainer, **changes)) as made:
        made.hospital.approve(made.project)
        sent = weights.from_bytes(made.ask(1).parts["model"])
        assert sent and not [name for name in sent if name.startswith("head.")]
        final = made.ask(4, kind="evaluate")
        assert not final.parts and 0 <= final.header["personal"]["metrics"]["auc"] <= 1
        personal = list((made.config.storage.federation / "personal").glob("*/model.json"))
        assert len(personal) == 1


def test_training_that_takes_longer_than_the_round_is_stopped(desk):
    desk.hospital.approve(desk.project)
    refused(desk.ask(1, deadline_s=0.3), "longer than the 0.3 s")


def test_a_hospital_whose_data_do_not_fulfil_the_contract_sits_it_out(tmp_path, trainer):
    with closing(Desk(tmp_path, trainer, contract={"min_train_images": 500})) as made:
        made.hospital.approve(made.project)
        refused(made.ask(1), "data contract")


def test_fedbn_keeps_statistics_alone_where_asked_and_re_estimates_them_before_it_evaluates(tmp_path, trainer):
    with closing(Desk(tmp_path, trainer, algorithm={"name": "fedbn", "args": {"keep": "statistics"}})) as made:
        made.hospital.approve(made.project)
        sent = weights.from_bytes(made.ask(1).parts["model"])
        given = weights.from_bytes(made.model)
        assert given.keys() - sent.keys() == weights.norm_statistics(given) and weights.norm_statistics(given)
        kept = weights.load(next((made.config.storage.federation / "kept").glob("*/*/own.safetensors")))
        assert kept.keys() == weights.norm_statistics(given)
        made.ask(2)
        spec = next((made.config.storage.federation / "work").glob("*-0002-train")) / "spec.json"
        assert json.loads(spec.read_text())["reestimate_norm"]


@pytest.mark.parametrize("algorithm", ["fedbn", "scaffold", "fedprox"])
def test_what_an_algorithm_keeps_at_the_site_stays_there(tmp_path, trainer, algorithm):
    with closing(Desk(tmp_path, trainer, algorithm={"name": algorithm, "args": {}})) as made:
        made.hospital.approve(made.project)
        first, second = made.ask(1), made.ask(2)
        model = weights.from_bytes(second.parts["model"])
        norm = weights.norm_layers(weights.from_bytes(made.model))
        assert norm and (not norm & model.keys()) == (algorithm == "fedbn")
        assert ("extra" in first.parts) == (algorithm == "scaffold")
        if algorithm == "scaffold":
            assert all(name.startswith("delta.") for name in weights.from_bytes(first.parts["extra"]))


def test_request_and_answer_are_bound_to_roster_and_schema(desk):
    """What the seal says of the roster and the model must be what it holds; the answer is bound to the same."""
    desk.hospital.approve(desk.project)
    roster = ["North", "South"]
    right = {"roster_hash": messages.roster_hash(roster), "schema_hash": messages.schema_hash(desk.model)}
    other = weights.to_bytes({"other": np.zeros((2, 2), np.float32)})
    for bound, taken in (
        (right, True),
        (right | {"roster_hash": messages.roster_hash(["North"])}, False),
        (right | {"schema_hash": messages.schema_hash(other)}, False),
    ):
        context = Context(desk.project.digest, 1, COORDINATOR, "North", "train", **bound)
        header = {"v": 1, "kind": "train", "run": "r", "round": 1, "rounds": 3, "deadline_s": 60, "roster": roster}
        request = messages.wrap(
            Message(header, {"model": desk.model}),
            context,
            recipient_public=desk.keys.sealing_public,
            signer=desk.coordinator.keys().signing,
        )
        blob = desk.executor.handle(request)
        if taken:
            claimed, _ = messages.peek(blob)
            assert desk.read(blob).header["kind"] == "update"
            assert (claimed.roster_hash, claimed.schema_hash) == (right["roster_hash"], right["schema_hash"])
        else:
            refused(desk.read(blob), "another roster or model")
