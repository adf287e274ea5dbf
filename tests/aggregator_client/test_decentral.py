"""Decentralised rounds: one model at every node, whatever minority is gone and whatever the relay does."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator_client.decentral.chain import Peer, append, read, verify
from aggregator_client.decentral.node import Node, weights_digest
from aggregator_client.decentral.relay import FolderRelay, MemoryRelay
from aggregator_client.errors import SignatureError
from aggregator_client.keys import node_keys
from trainer.weights import average, to_bytes

NAMES = ["east", "north", "south", "west", "middle"]
PROJECT = "d" * 64


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    root = tmp_path_factory.mktemp("keys")
    return {name: node_keys(root / name) for name in NAMES}


def start():
    return {"w": np.arange(6, dtype=np.float32), "n": np.array(0)}


def trained(model, name, number):
    """A known update, another for each node and round."""
    return {"w": model["w"] + np.float32(0.01 * number * (1 + NAMES.index(name))), "n": model["n"] + 1}


class World:
    def __init__(self, root, keys, relay=None):
        self.root, self.keys, self.relay = root, keys, relay or MemoryRelay()
        self.members = [Peer(n, k.signing_public, k.sealing_public) for n, k in sorted(keys.items())]
        self.nodes = {name: self.node(name) for name in NAMES}

    def node(self, name):
        return Node(name, self.keys[name], self.members, self.relay, PROJECT, self.root / name, start())

    def round(self, alive, ballots=range(1, 30)):
        """Train and agree among `alive` until all of them have closed the round."""
        number = self.nodes[alive[0]].round
        for name in alive:
            node = self.nodes[name]
            node.offer(trained(node.model, name, number), 10 + NAMES.index(name))
        left = set(alive)
        for ballot in ballots:
            for _ in range(3):
                left -= {name for name in sorted(left) if self.nodes[name].turn(ballot)}
            if not left:
                return
        raise AssertionError(f"no agreement; {left} are left")


def expected(model, alive, number):
    ordered = sorted(alive)
    return average([trained(model, n, number) for n in ordered], [10 + NAMES.index(n) for n in ordered])


def test_every_node_computes_the_same_model_and_ledger(tmp_path, keys):
    world, wanted = World(tmp_path, keys, FolderRelay(tmp_path / "relay")), start()
    for number in (1, 2, 3):
        world.round(NAMES)
        wanted = expected(wanted, NAMES, number)
        assert {to_bytes(node.model) for node in world.nodes.values()} == {to_bytes(wanted)}
    heads = {verify(read(tmp_path / name), world.members, PROJECT) for name in NAMES}
    assert heads == {weights_digest(wanted)}
    assert {node.chain[-1].block for node in world.nodes.values()} == {world.nodes["east"].chain[-1].block}


@pytest.mark.parametrize("gone", [["east"], ["north", "west"], ["south", "middle"]])
def test_any_minority_may_be_gone_and_comes_back_to_the_same_ledger(tmp_path, keys, gone):
    world, alive = World(tmp_path, keys), [name for name in NAMES if name not in gone]
    world.round(alive)
    world.round(alive)
    wanted = expected(expected(start(), alive, 1), alive, 2)
    assert weights_digest(world.nodes[alive[0]].model) == weights_digest(wanted)
    back = world.nodes[gone[0]]  # it finds both rounds on the relay; the updates were sealed to it as well
    assert back.turn(1) and back.turn(1)
    assert to_bytes(back.model) == to_bytes(wanted) and back.chain == world.nodes[alive[0]].chain


def test_a_minority_alone_closes_nothing(tmp_path, keys):
    world = World(tmp_path, keys)
    with pytest.raises(AssertionError, match="no agreement"):
        world.round(["east", "north"], range(1, 8))
    assert not read(tmp_path / "east") and not read(tmp_path / "north")


class BadRelay(MemoryRelay):
    """Loses, repeats, reorders and forges."""

    def __init__(self, seed):
        super().__init__()
        self.random, self.calm = random.Random(seed), False

    def put(self, topic, data):
        for _ in range(1 if self.calm else self.random.choice([0, 1, 1, 2])):
            super().put(topic, data)
        if not self.calm and self.random.random() < 0.3:
            changed = bytearray(data)
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
            super().put(topic, bytes(changed))
        if not self.calm and self.random.random() < 0.2:
            super().put(topic, b"nonsense")

    def get(self, topic):
        found = list(super().get(topic))
        self.random.shuffle(found)
        return [data for data in found if self.calm or self.random.random() < 0.8]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_nodes_killed_at_random_on_a_bad_relay_never_disagree(tmp_path_factory, keys, seed):
    """Safety under any schedule: no two ledgers differ; and with everybody back there is progress."""
    root, chance = tmp_path_factory.mktemp("world"), random.Random(seed)
    world = World(root, keys, BadRelay(seed))
    ballots = dict.fromkeys(NAMES, 1)
    for _ in range(100):
        name = chance.choice(NAMES)
        node = world.nodes[name]
        if chance.random() < 0.1:
            node = world.nodes[name] = world.node(name)  # killed; only the disk is left
        if chance.random() < 0.3:
            ballots[name] += chance.randrange(3)  # its clock runs as it likes
        node.offer(trained(node.model, name, node.round), 10 + NAMES.index(name))
        if node.turn(ballots[name]):
            ballots[name] = 1
    goal = max(len(read(root / name)) for name in NAMES) + 1
    world.relay.calm = True
    for ballot in range(max(ballots.values()) + 1, max(ballots.values()) + 60):
        for name in NAMES:
            node = world.nodes[name]
            if len(node.chain) < goal:
                node.offer(trained(node.model, name, node.round), 10 + NAMES.index(name))
                node.turn(ballot)
    chains = sorted((read(root / name) for name in NAMES), key=len)
    assert len(chains[0]) >= goal
    for chain in chains:
        verify(chain, world.members, PROJECT)
        assert [one.block for one in chain] == [one.block for one in chains[-1][: len(chain)]]


def test_a_changed_ledger_or_a_stranger_s_block_proves_nothing(tmp_path, keys):
    world = World(tmp_path, keys)
    for _ in range(2):
        world.round(NAMES)
    good = (tmp_path / "east").read_text()
    for change in (
        lambda lines: lines[0]["block"].update(model="0" * 64),
        lambda lines: lines[0]["votes"].update(dict.fromkeys(NAMES[:3], "00")),
        lambda lines: lines.reverse(),
        lambda lines: lines[1].update(ballot=99),
        lambda lines: lines[1]["block"].update(used=lines[1]["block"]["used"][:1]),
    ):
        lines = [json.loads(line) for line in good.splitlines()]
        change(lines)
        (tmp_path / "changed").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(SignatureError, match=r"Round [12] of the ledger does not hold"):
            verify(read(tmp_path / "changed"), world.members, PROJECT)
    strangers = [Peer(peer.name, keys["east"].signing_public, peer.sealing_public) for peer in world.members]
    with pytest.raises(SignatureError):
        verify(read(tmp_path / "east"), strangers, PROJECT)


def test_a_torn_last_line_is_made_again(tmp_path, keys):
    world = World(tmp_path, keys)
    world.round(NAMES)
    entry = world.nodes["east"].chain[0]
    (tmp_path / "torn").write_bytes(entry.line() + b'{"block": {"pro')
    assert read(tmp_path / "torn") == [entry]
    append(tmp_path / "torn", entry)
    assert read(tmp_path / "torn") == [entry, entry]


def test_a_bad_update_is_left_out_and_nobody_reads_another_s_letters(tmp_path, keys):
    world = World(tmp_path, keys)
    bad = world.nodes["west"]
    bad.offer({"w": np.full(6, np.nan, np.float32), "n": np.array(1)}, 5)
    alive = [name for name in NAMES if name != "west"]
    world.round(alive)
    assert [name for name, _ in world.nodes["east"].chain[0].block.used] == sorted(alive)
    secret = to_bytes(trained(start(), "north", 1))
    assert all(secret not in data for topic in world.relay.topics.values() for data in topic)


class Curtain(MemoryRelay):
    """Keeps what is put under topics of `hidden` kinds from everybody's sight."""

    hidden: tuple[str, ...] = ()

    def get(self, topic):
        return [] if topic.endswith(self.hidden) else super().get(topic)


def proposals(world):
    found = [json.loads(data)["body"] for data in world.relay.topics.get(f"{PROJECT}/1/proposal", [])]
    return {body["ballot"]: body["block"] for body in found}


def test_a_later_ballot_takes_up_the_block_that_may_have_been_chosen(tmp_path, keys):
    world = World(tmp_path, keys, Curtain())
    early, late = ["middle", "north", "east"], "west"  # in order of names, ballot 1 is middle's and ballot 2 north's
    for name in early:
        world.nodes[name].offer(trained(start(), name, 1), 10)
    world.relay.hidden = ("/vote",)
    for _ in range(3):
        for name in early:
            assert not world.nodes[name].turn(1)  # all three vote, and nobody sees it
    world.nodes[late].offer(trained(start(), late, 1), 10)  # one more update: a fresh block would be another one
    for _ in range(3):
        for name in [*early, late]:
            world.nodes[name].turn(2)
    made = proposals(world)
    assert made[2] == made[1] and len(made[1]["used"]) == 3
    assert len(world.nodes["north"].agreed()) == 4
    world.relay.hidden = ()
    assert all(world.nodes[name].turn(3) for name in [*early, late])


def test_a_node_keeps_its_promise_also_after_it_was_killed(tmp_path, keys):
    world = World(tmp_path, keys, Curtain())
    three = ["middle", "north", "east"]
    for name in three:
        world.nodes[name].offer(trained(start(), name, 1), 10)
    world.relay.hidden = ("/proposal",)
    for _ in range(2):
        for name in three:
            world.nodes[name].turn(1)
    assert 1 in proposals(world)
    world.nodes["north"].turn(7)  # has heard of a later ballot, and is killed
    world.nodes["north"] = world.node("north")
    world.relay.hidden = ()
    for name in three:
        world.nodes[name].turn(1)
    voters = {json.loads(data)["by"] for data in world.relay.topics.get(f"{PROJECT}/1/vote", [])}
    assert voters == {"middle", "east"}
