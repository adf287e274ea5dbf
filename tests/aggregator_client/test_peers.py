"""Hospitals without a coordinator: real node processes and relays over TLS, some killed, agree on one model and ledger."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from aggregator_client.coordinator import settings
from aggregator_client.decentral.chain import read, verify
from aggregator_client.decentral.mailbox import HttpsRelay, Mailbox
from aggregator_client.decentral.relay import FolderRelay, place
from aggregator_client.decentral.rounds import home_of
from aggregator_client.decentral.serve import address_of
from aggregator_client.errors import ProjectError, SignatureError, UnreachableError
from aggregator_client.keys import node_keys
from aggregator_client.project import ProjectDraft, validated
from aggregator_client.sheet import plain_words
from dicom_node.audit import AuditLog
from tests.aggregator_client import hospital
from tests.aggregator_client.hospital import until

LIMIT = 240
NAMES = ("East", "North", "South")
FEDPACS = [sys.executable, "-c", "from dicom_node.cli import main; raise SystemExit(main())"]
PROJECT = "d" * 64


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RelayProcess:
    """`fedpacs federation relay` as somebody types it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = address_of(folder, "127.0.0.1", self.port)
        self.process: subprocess.Popen[str] | None = None

    def start(self, project: Path) -> None:
        argv = [*FEDPACS, "federation", "relay", "--project", str(project), "--folder", str(self.folder)]
        self.process = subprocess.Popen([*argv, "--port", str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"The relay serves {self.url}\n"

    def end(self, how: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)


@pytest.fixture
def world(tmp_path: Path):
    config = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=free_port())
    hospitals = [hospital.hospital(tmp_path / n, n, config, 30, seed) for seed, n in enumerate(NAMES)]
    relays = [RelayProcess(tmp_path / f"relay{n}") for n in (1, 2)]
    yield config, hospitals, relays
    for one in [*hospitals]:
        one.kill()
    for relay in relays:
        relay.end()


def project_of(config, relays, **changes):
    sites = {
        one.name: {"signing_public": one.enrolment.signing_public, "sealing_public": one.enrolment.sealing_public}
        for one in config.members.list()
    }
    return hospital.project(
        config,
        algorithm={"name": "decentralised"},
        peers={"relays": [one.url for one in relays], "sites": sites},
        min_sites=3,
        local={"epochs": 1, "batch": 12, "lr": 3e-3},
        deadline_s=float(LIMIT),
        **changes,
    )


@pytest.mark.slow
def test_three_hospitals_agree_without_a_coordinator_while_relays_and_a_node_are_killed(world, tmp_path):
    config, hospitals, relays = world
    project = project_of(config, relays)
    file = tmp_path / "project.json"
    file.write_bytes(project.file_bytes())
    for relay in relays:
        relay.start(file)
    for one in hospitals:
        one.approve(project)
        one.start()
    homes = [home_of(one.config, project.digest) for one in hospitals]

    def rounds(home: Path) -> int:
        return len(read(home / "ledger.jsonl"))

    until(lambda: rounds(homes[0]) >= 1, LIMIT, "the first round")
    relays[0].end()  # one relay is gone for good
    hospitals[2].kill()  # and a node dies wherever it is
    hospitals[2].start()
    until(lambda: rounds(homes[0]) >= 2, LIMIT, "the second round")
    relays[1].end(signal.SIGTERM)  # for a moment nobody can reach anybody
    relays[1].start(file)
    until(lambda: all((home / "result.json").exists() for home in homes), LIMIT, "the end at every hospital")
    models = {(home / "model.safetensors").read_bytes() for home in homes}
    assert len(models) == 1
    members = project.document.peers.members()
    chains = [read(home / "ledger.jsonl") for home in homes]
    assert len({verify(chain, members, project.digest) for chain in chains}) == 1
    assert {tuple(entry.block.digest() for entry in chain) for chain in chains} == {
        tuple(entry.block.digest() for entry in chains[0])
    }
    assert len(chains[0]) == 3 and all(len(entry.block.used) >= 2 for entry in chains[0])
    for one, home in zip(hospitals, homes, strict=True):
        result = json.loads((home / "result.json").read_text())
        assert result["rounds"] == 3 and 0 <= result["metrics"]["auc"] <= 1
        with closing(AuditLog(one.config.storage.audit, readonly=True)) as audit:
            left = [record.facts for record in audit.records("egress")]
            assert audit.verify().ok and {"peer.update", "peer.holding", "peer.vote"} <= {
                facts["what"] for facts in left
            }
            to = {facts["recipient"] for facts in left if facts["what"] == "peer.update"}
            assert to == set(NAMES)
    argv = [*FEDPACS, "federation", "ledger", str(file), "--file", str(homes[1] / "ledger.jsonl"), "--json"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
    assert told.returncode == 0 and len(json.loads(told.stdout)["rounds"]) == 3, told.stderr
    spoiled = (homes[1] / "ledger.jsonl").read_bytes().replace(b'"round":2', b'"round":3', 1)
    (tmp_path / "spoiled").write_bytes(spoiled)
    argv[argv.index("--file") + 1] = str(tmp_path / "spoiled")
    told = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
    assert told.returncode != 0 and "Round 2 of the ledger does not hold" in told.stderr


@pytest.fixture
def relay(world, tmp_path):
    config, hospitals, relays = world
    project = project_of(config, relays)
    file = tmp_path / "project.json"
    file.write_bytes(project.file_bytes())
    relays[0].start(file)
    return relays[0], project.digest, node_keys(hospitals[0].config.storage.keys).signing


def test_a_relay_serves_members_of_its_project_alone(relay, tmp_path, monkeypatch):
    served, project, key = relay
    mine = HttpsRelay(served.url, key)
    address = place(f"{project}/1/vote")
    name = mine.keep(address, b"sealed")
    assert mine.names(address) == [name] and mine.read(address, name) == b"sealed"
    stranger = HttpsRelay(served.url, node_keys(tmp_path / "stranger").signing)
    with pytest.raises(UnreachableError, match="signed by no member"):
        stranger.names(address)
    with pytest.raises(UnreachableError, match="another project"):
        mine.keep(place(f"{PROJECT}/1/vote"), b"x")
    with pytest.raises(UnreachableError, match="404"):
        mine.keep(address.rsplit("/", 1)[0] + "/../../../x", b"x")
    with pytest.raises(UnreachableError, match="404"):
        mine.read(address, "0" * 64)
    with pytest.raises(SignatureError, match="another certificate"):
        HttpsRelay(served.url[:-4] + "0000", key).names(address)
    from aggregator_client.decentral import door

    real = door.sign
    monkeypatch.setattr(door, "sign", lambda key, method, path, digest: real(key, method, path, digest, now=1e9))
    with pytest.raises(UnreachableError, match="clocks"):
        mine.names(address)
    monkeypatch.setattr(door, "sign", lambda key, method, path, digest: real(key, method, path + "x", digest))
    with pytest.raises(UnreachableError, match="does not hold"):
        mine.names(address)
    assert not (served.folder / "x").exists() and [p.name for p in (served.folder / "messages").iterdir()] == [
        place(f"{project}/1/vote").split("/")[0]
    ]


def test_a_mailbox_gives_a_relay_that_lost_its_disk_what_it_lacks(tmp_path):
    first, second = FolderRelay(tmp_path / "r1"), FolderRelay(tmp_path / "r2")
    told: list[str] = []
    one = Mailbox(tmp_path / "one", [first, second], lambda topic, data: told.append(topic))
    two = Mailbox(tmp_path / "two", [second], lambda topic, data: None)
    one.put(f"{PROJECT}/1/vote", b"a")
    one.put(f"{PROJECT}/1/vote", b"a")
    assert told == [f"{PROJECT}/1/vote"], "what leaves is told once"
    assert list(two.get(f"{PROJECT}/1/vote")) == [b"a"]
    for file in (tmp_path / "r2").rglob("*"):
        if file.is_file():
            file.unlink()
    late = Mailbox(tmp_path / "late", [second], lambda topic, data: None)
    assert list(late.get(f"{PROJECT}/1/vote")) == []
    one.spread(PROJECT, 1)
    assert list(late.get(f"{PROJECT}/1/vote")) == [b"a"]
    forged = tmp_path / "r2" / place(f"{PROJECT}/1/vote") / ("f" * 64)
    forged.write_bytes(b"not what its name says")
    assert list(late.get(f"{PROJECT}/1/vote")) == [b"a"]
    one.forget(PROJECT, 2)
    assert not list((tmp_path / "one" / "put").rglob("*" * 1 + "f")) and one.get(f"{PROJECT}/2/vote") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peers": {"relays": []}}, "peers.relays must name a relay"),
        ({"peers": {"relays": ["http://127.0.0.1:1"]}}, "relay-address|must hold addresses"),
        ({"min_sites": 2}, "min_sites must be 3 or more"),
        ({"stop": {"patience": 3}}, "stop left out"),
        ({"transfer": {"compression": "int8"}}, "compression none"),
    ],
)
def test_a_decentralised_draft_that_cannot_work_is_told_in_a_sentence(changes, sentence):
    values = {
        "name": "p", "version": "1", "purpose": "For tests and nothing else.", "rounds": 2, "min_sites": 3,
        "task": {"name": "classification", "classes": ["a", "b"], "label": "x", "size": 16}, "cohort": {},
        "network": {"name": "small_resnet", "args": {}}, "algorithm": {"name": "decentralised"},
        "peers": {"relays": ["https://relay.example:9095/#sha256=" + "0" * 64]},
    }  # fmt: skip
    assert validated(ProjectDraft, values, "draft").algorithm.name == "decentralised"
    with pytest.raises(ProjectError, match=sentence):
        validated(ProjectDraft, values | changes, "draft")


def test_the_sheet_says_who_reads_what(world):
    config, _, relays = world
    told = " ".join(plain_words(project_of(config, relays).document).split())
    assert "sealed to each other hospital of the project (East, North, South)" in told
    assert "Every other hospital of the project reads your hospital's own update" in told
    assert "The coordinator reads" not in told and "through a mailbox (relay) that cannot read them" in told


def test_a_coordinator_does_not_run_it():
    from aggregator_client.coordinator.strategies import choose

    with pytest.raises(ProjectError, match="No coordinator runs"):
        choose("decentralised", {})
