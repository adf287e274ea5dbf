"""Split learning moves exactly as the whole network does, everything travels sealed, and labels and images never do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from aggregator_client import messages
from aggregator_client.coordinator.strategies.split import SplitCoordinator, SplitServer
from aggregator_client.errors import MessageError, SignatureError
from aggregator_client.split_site import SplitMember
from tests.aggregator_client import federation
from trainer import networks
from trainer.errors import SpecError, WeightsError
from trainer.local.data import Samples
from trainer.local.split import SplitSite, parts_of

DIGEST = "d" * 64


def network(norm="group"):
    torch.manual_seed(0)
    return networks.build("small_resnet", {"classes": 2, "widths": [8, 16], "norm": norm})


def samples(seed=0, count=12):
    random = np.random.default_rng(seed)
    return Samples(random.normal(size=(count, 1, 16, 16)).astype(np.float32), random.integers(0, 2, count))


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.01)


class World:
    """A coordinator and sites in one process; `seen` is every byte string that travelled."""

    def __init__(self, root, parts, names=("north",), batch=4):
        self.coordinator, keys = federation.keys_of(root, *names)
        self.seen, self.members = [], {}
        front, middle, head = parts
        batches = lambda number: [np.arange(12)[i : i + batch] for i in range(0, 12, batch)]  # noqa: E731
        publics = (self.coordinator.sealing_public, self.coordinator.signing_public)
        for seed, name in enumerate(names):
            own = copy.deepcopy((front, head))
            site = SplitSite(*own, samples(seed), sgd(*own))
            self.members[name] = SplitMember(name, keys[name], publics, site, batches, DIGEST)
        public = {n: (keys[n].sealing_public, keys[n].signing_public) for n in names}
        self.server = SplitServer(middle, sgd(middle))
        self.split = SplitCoordinator(self.server, self.coordinator, public, self.wire, DIGEST)

    def wire(self, site, blob):
        reply = self.members[site].handle(blob)
        self.seen += [blob, reply]
        return reply


def test_one_site_moves_as_the_whole_network_does(tmp_path):
    whole = network()
    world = World(tmp_path, parts_of(copy.deepcopy(whole)))
    loss = [world.split.one_pass(number) for number in (1, 2)]
    data, optimizer, wanted = samples(), sgd(whole), []
    whole.train()
    for _ in range(2):
        losses = []
        for start in range(0, 12, 4):
            images, labels = data.batch(np.arange(start, start + 4))
            found = functional.cross_entropy(whole(images), labels)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            losses.append(float(found.detach()))
        wanted.append(np.mean(losses))
    assert np.allclose(loss, wanted, atol=1e-6)
    site = world.members["north"].site
    after = [*site.front.parameters(), *world.server.middle.parameters(), *site.head.parameters()]
    front, middle, head = parts_of(whole)
    for mine, truth in zip(after, [*front.parameters(), *middle.parameters(), *head.parameters()], strict=True):
        assert torch.allclose(mine, truth, atol=1e-6)


def test_sites_share_their_layers_after_a_pass_and_bytes_are_counted(tmp_path):
    world = World(tmp_path, parts_of(network("batch")), ("north", "south"))
    world.split.one_pass(1)
    north, south = (member.site.weights() for member in world.members.values())
    assert north.keys() == south.keys() and all(np.array_equal(north[n], south[n]) for n in north)
    travelled = sum(world.split.sent.values()) + sum(world.split.received.values())
    assert travelled == sum(map(len, world.seen))
    activations = 3 * 4 * 8 * 8 * 8 * 4  # steps · batch · channels · 8 × 8 pixels · bytes
    assert world.split.received["north"] > activations


def test_neither_labels_nor_images_nor_activations_stand_in_what_travels(tmp_path):
    world = World(tmp_path, parts_of(network()))
    site = world.members["north"].site
    first = site.forward(np.arange(4)).tobytes()
    world.split.one_pass(1)
    labels, image = site.samples.labels.tobytes(), site.samples.images[0].tobytes()
    for blob in world.seen:
        assert labels not in blob and image not in blob and first[:64] not in blob


def test_a_step_that_does_not_belong_is_not_taken(tmp_path):
    world = World(tmp_path, parts_of(network()), ("north", "south"))
    north = world.members["north"]
    with pytest.raises(WeightsError, match="no batch under way"):
        north.site.backward(np.zeros((4, 8, 8, 8), np.float32))
    with pytest.raises(WeightsError, match="no batch under way"):
        world.server.backward(np.zeros((4, 16, 4, 4), np.float32))
    features = world.server.forward(north.site.forward(np.arange(4)))
    for wrong in (features[:2], np.full_like(features, np.nan), features.astype(np.float64)):
        with pytest.raises(WeightsError, match="NaN, another batch"):
            north.site.loss(wrong)
    world.split.wire = lambda site, blob: world.members["north"].handle(blob)  # south's step brought to north
    with pytest.raises(SignatureError):
        world.split._ask("south", 1, "forward")
    reply = world.members["south"].handle

    def replayed(site, blob):
        return kept[0] if kept else kept.append(reply(blob)) or kept[0]

    kept = []
    world.split.wire = replayed
    world.split._ask("south", 1, "forward")
    with pytest.raises(MessageError, match=r"another step|where a"):
        world.split._ask("south", 1, "collect")
    assert messages.peek(kept[0])[0].kind == "split.forward"


def test_only_a_network_that_can_be_cut_is_split():
    with pytest.raises(SpecError, match="cannot be split"):
        parts_of(networks.build("monai_unet", {"classes": 2, "widths": [4, 8]}))
