"""Coordinator and hospitals as real processes over TLS, killed with SIGKILL in the middle: the same model as undisturbed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from aggregator_client.coordinator import settings
from aggregator_client.coordinator.state import RunState
from aggregator_client.errors import StateError
from dicom_node.audit import AuditLog
from dicom_node.errors import StorageError
from tests.aggregator_client import hospital
from tests.aggregator_client.hospital import until

LIMIT = 300  # seconds that only a very crowded machine needs
RUN = """
import sys, json
from pathlib import Path
from aggregator_client.coordinator import server
from aggregator_client.errors import FederationError
try:
    print(json.dumps(server.run(Path(sys.argv[1]), Path(sys.argv[2]), resume=sys.argv[3] == "resume",
                                progress=lambda facts: print(json.dumps(dict(facts)), file=sys.stderr, flush=True))))
except FederationError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class World:
    """A coordinator and two hospitals on this machine."""

    def __init__(self, root: Path, **changes: object) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.config = settings.create(root / "coordinator", name="University", host="127.0.0.1", port=port)
        names = ["North", "South"]
        self.hospitals = [hospital.hospital(root / n, n, self.config, 30, seed) for seed, n in enumerate(names)]
        settled = {"local": {"epochs": 1, "batch": 12, "lr": 3e-3}, "deadline_s": 600.0} | changes
        self.project = hospital.project(self.config, **settled)
        self.file = root / "project.json"
        self.file.write_bytes(self.project.file_bytes())
        self.folder = self.config.run_folder(self.project.digest)
        self.process: subprocess.Popen[bytes] | None = None
        for one in self.hospitals:
            one.approve(self.project)

    def coordinate(self, how: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", RUN, str(self.config.root), str(self.file), how]
        log = (self.root / "coordinator.stderr").open("ab")
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return self.process

    def result(self, seconds: float = 600) -> dict:
        out, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, (self.root / "coordinator.stderr").read_text()[-3000:]
        return json.loads(out)

    def table(self) -> dict:
        try:
            with closing(RunState(self.folder, readonly=True)) as state:
                return {(cell.round, cell.site): cell for cell in state.table()}
        except (StateError, StorageError):
            return {}

    def done(self, number: int) -> bool:
        return (self.folder / "checkpoints" / f"round-{number:04d}.safetensors").exists()

    def forget(self) -> None:
        """The coordinator forgets its run, so that the next one is another to the sites, which stay as they are."""
        shutil.rmtree(self.config.root / "runs")

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for one in self.hospitals:
            one.kill()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_killed_coordinator_and_killed_site_go_on_to_the_same_model(world):
    for one in world.hospitals:
        one.start()
    world.coordinate("run")
    undisturbed = world.result()
    assert undisturbed["rounds"] == 3
    cells = world.table()
    assert all(cells[number, site].state == "accepted" for number in (1, 2, 3, 4) for site in ("North", "South"))
    for one in world.hospitals:
        with closing(AuditLog(one.config.storage.audit, readonly=True)) as audit:
            left = list(audit.records("egress"))
            assert audit.verify().ok and [record.facts["what"] for record in left] == ["update"] * 3 + ["metrics"]
            assert sum(record.facts["bytes"] for record in left) == sum(
                cell.bytes_in for (_, site), cell in cells.items() if site == one.name
            )

    world.forget()
    south = world.hospitals[1]
    world.coordinate("run")
    until(lambda: world.done(1), LIMIT, "the first round")
    world.process.kill()  # the coordinator, in round 2
    world.process.wait()
    world.coordinate("resume")
    until(
        lambda: (2, "South") in world.table() and world.table()[2, "South"].state in ("asked", "accepted"),
        LIMIT,
        "round 2",
    )
    south.kill()  # a site, at work
    south.start()
    until(lambda: any(cell.state == "accepted" for key, cell in world.table().items() if key[0] == 3), LIMIT, "round 3")
    world.process.kill()  # the coordinator, with one update of the last round kept
    world.process.wait()
    world.coordinate("resume")
    disturbed = world.result()
    assert disturbed["sha256"] == undisturbed["sha256"]


@pytest.mark.slow
def test_a_site_that_did_not_approve_is_named_with_its_reason(world):
    from aggregator_client.approvals import Decision, decide

    south = world.hospitals[1]
    decide(south.config, world.project, Decision(world.project.digest, "rejected", "Dr. Test", "pacs-admin"))
    for one in world.hospitals:
        one.start()
    world.coordinate("run")
    until(lambda: (1, "South") in world.table() and world.table()[1, "South"].state == "refused", LIMIT, "the refusal")
    assert "rejected" in world.table()[1, "South"].reason
    south.approve(world.project)  # it is asked again while the round is short, so the run goes on by itself
    assert world.result()["rounds"] == 3
