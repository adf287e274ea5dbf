"""Split learning moves exactly as the whole network does, everything travels sealed, and labels and images never do."""

from __future__ import annotations

import copy
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.nn import functional

from aggregator_client.coordinator.split_server import SplitServer, one_round
from aggregator_client.errors import MessageError, ProjectError
from aggregator_client.messages import Message
from aggregator_client.project import ProjectDraft, validated
from aggregator_client.sheet import plain_words
from aggregator_client.split_site import Turn
from dicom_node.audit import AuditLog
from tests.aggregator_client.hospital import until
from tests.aggregator_client.test_federation import LIMIT, World
from trainer import networks, weights
from trainer.errors import SpecError, WeightsError
from trainer.local.data import Samples
from trainer.local.split import SplitSite, own_layers, parts_of

NETWORK = {"classes": 2, "widths": [8, 16]}


def network(norm="group"):
    torch.manual_seed(0)
    return networks.build("small_resnet", NETWORK | {"norm": norm})


def samples(seed=0, count=12):
    random = np.random.default_rng(seed)
    return Samples(random.normal(size=(count, 1, 16, 16)).astype(np.float32), random.integers(0, 2, count))


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.01)


class Room:
    """A coordinator and sites in one process; `seen` is everything that sites answered."""

    def __init__(self, whole, names=("north",), batch=4):
        self.own = {n: v for n, v in weights.from_module(whole).items() if n in own_layers(whole)}
        middle = parts_of(copy.deepcopy(whole))[1]
        self.server, self.seen, self.sites, self.turns = SplitServer(middle, sgd(middle)), [], {}, {}
        for seed, name in enumerate(names):
            mine = copy.deepcopy(whole)
            front, _, head = parts_of(mine)
            self.sites[name] = SplitSite(mine, samples(seed), sgd(front, head))
        self.batch = batch

    def begin(self):
        rows = [np.arange(12)[i : i + self.batch] for i in range(0, 12, self.batch)]
        self.turns = {name: Turn(site, list(rows)) for name, site in self.sites.items()}

    def ask(self, site, what, arrays):
        told, out = self.turns[site].step(what, arrays)
        made = Message(told, {"arrays": weights.to_bytes(out)} if out else {})
        self.seen.append(made.encode())
        return made

    def round(self):
        self.begin()
        return one_round(self.server, list(self.sites), self.own, self.ask)


def test_one_site_moves_as_the_whole_network_does():
    whole = network()
    room = Room(whole)
    data, optimizer, losses = samples(), sgd(whole), []
    whole.train()
    for number in range(2):
        wanted = []
        for start in range(0, 12, 4):
            images, labels = data.batch(np.arange(start, start + 4))
            found = functional.cross_entropy(whole(images), labels)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            wanted.append(float(found.detach()))
        passed = room.round()
        room.own = passed.updates[0].weights
        losses.append((passed.losses["north"], np.mean(wanted)))
        assert passed.updates[0].samples == 12 and passed.updates[0].steps == 3, number
    assert all(np.isclose(mine, truth, atol=1e-6) for mine, truth in losses)
    site = room.sites["north"]
    after = [*site.front.parameters(), *room.server.middle.parameters(), *site.head.parameters()]
    front, middle, head = parts_of(whole)
    for mine, truth in zip(after, [*front.parameters(), *middle.parameters(), *head.parameters()], strict=True):
        assert torch.allclose(mine, truth, atol=1e-6)


def test_neither_labels_nor_images_stand_in_what_a_site_answers():
    room = Room(network("batch"), ("north", "south"))
    passed = room.round()
    site = room.sites["north"]
    labels, image = site.samples.labels.tobytes(), site.samples.images[0].tobytes()
    assert len(room.seen) == 2 * (1 + 3 * 2 + 1) and {update.site for update in passed.updates} == {"north", "south"}
    assert all(labels not in blob and image not in blob for blob in room.seen)
    assert passed.updates[0].weights.keys() == own_layers(site.network) < set(weights.from_module(site.network))


def test_a_step_that_does_not_belong_is_not_taken():
    room = Room(network())
    room.begin()
    north, turn = room.sites["north"], room.turns["north"]
    with pytest.raises(WeightsError, match="no batch under way"):
        north.backward(np.zeros((4, 8, 8, 8), np.float32))
    with pytest.raises(WeightsError, match="no batch under way"):
        room.server.backward(np.zeros((4, 16, 4, 4), np.float32))
    with pytest.raises(WeightsError, match="do not fit the middle"):
        room.server.forward(np.zeros((4, 5, 8, 8), np.float32))
    features = room.server.forward(north.forward(np.arange(4)))
    for wrong in (features[:2], np.full_like(features, np.nan), features.astype(np.float64)):
        with pytest.raises(WeightsError, match="NaN, another batch"):
            north.loss(wrong)
    for what, arrays in (("collect", {}), ("features", {}), ("labels", {})):
        with pytest.raises(MessageError, match="next one"):
            turn.step(what, arrays)
    with pytest.raises(WeightsError, match="not those of a site"):
        turn.step("forward", weights.from_module(north.network))


def test_only_a_network_that_can_be_cut_is_split():
    with pytest.raises(SpecError, match="cannot be split"):
        parts_of(networks.build("monai_unet", {"classes": 2, "widths": [4, 8]}))
    values = {
        "name": "p", "version": "1", "purpose": "For tests and nothing else.", "rounds": 2,
        "task": {"name": "classification", "classes": ["a", "b"], "label": "x", "size": 16}, "cohort": {},
        "network": {"name": "monai_densenet", "args": {}}, "algorithm": {"name": "split"},
    }  # fmt: skip
    with pytest.raises(ProjectError, match=r"network\.name small_resnet"):
        validated(ProjectDraft, values, "draft")
    told = " ".join(
        plain_words(validated(ProjectDraft, values | {"network": {"name": "small_resnet"}}, "draft")).split()
    )
    assert "For each batch of images: what the network's first layers make of them" in told
    assert "Activations of a network's first layers can show the very images" in told and "its weights" not in told


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, algorithm={"name": "split"}, rounds=1, local={"epochs": 1, "batch": 10, "lr": 3e-3})
    yield made
    made.close()


@pytest.mark.slow
def test_two_hospitals_and_a_killed_site_train_a_cut_network_to_the_same_model(world):
    for one in world.hospitals:
        one.start()
    world.coordinate("run")
    undisturbed = world.result()
    cells = world.table()
    assert undisturbed["rounds"] == 1 and all(cells[1, site].state == "accepted" for site in ("North", "South"))
    assert cells[2, "North"].metric is not None and cells[1, "North"].cases > 0 and cells[1, "North"].loss > 0
    for one in world.hospitals:
        with closing(AuditLog(one.config.storage.audit, readonly=True)) as audit:
            left = [record.facts for record in audit.records("egress")]
            assert audit.verify().ok
            assert {facts["what"] for facts in left} == {
                "split.forward.answer", "split.features.answer", "split.backward.answer", "split.collect.answer", "metrics"
            }  # fmt: skip
            assert sum(facts["bytes"] for facts in left) == sum(
                cell.bytes_in for (_, site), cell in cells.items() if site == one.name
            )
            assert len(list(audit.records("round.trained"))) == 1
    world.forget()
    south = world.hospitals[1]
    status = south.config.storage.run / "federation.json"
    south.kill()
    status.unlink()
    south.start()
    world.coordinate("run")
    until(lambda: status.exists() and "split learning" in status.read_text(), LIMIT, "its first step")
    south.kill()  # its half of the round is lost
    south.start()
    assert world.result()["sha256"] == undisturbed["sha256"]
