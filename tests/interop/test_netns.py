"""Coordinator and four hospitals in network namespaces of their own, over lines with delay, loss and cuts.

Every process has its own network and the configuration files a hospital would have; only the bridge between them is the test's.
Needs root and `ip`. Delay and loss come from the kernel's netem, or where it has none from bad_line.py, which loses real frames.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
from tests.aggregator_client.test_federation import RUN
from tests.interop.network import Network, require_loss

SITES = ["East", "North", "South", "West"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 (ip) is not installed"),
]


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(["coordinator", *SITES])
    try:
        try:
            made.up()
        except OSError as error:
            pytest.skip(f"this machine makes no network namespaces ({error})")
        yield made
    finally:
        made.down()


class World:
    """The federation on that network."""

    def __init__(self, root: Path, network: Network) -> None:
        self.root, self.network = root, network
        self.config = settings.create(root / "coordinator", name="University", host=network.address(0), port=9443)
        self.hospitals = [hospital.hospital(root / n, n, self.config, 30, seed) for seed, n in enumerate(SITES)]
        self.project = hospital.project(
            self.config, min_sites=4, local={"epochs": 1, "batch": 12, "lr": 3e-3}, rounds=2
        )
        self.file = root / "project.json"
        self.file.write_bytes(self.project.file_bytes())
        self.processes: list[subprocess.Popen[bytes]] = []
        for one in self.hospitals:
            one.approve(self.project)

    def start(self, machine: str, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.root / f"{machine}.stderr").open("ab") as log:
            whole = [*self.network.inside(machine), sys.executable, *argv]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=log, env=environment)
        self.processes.append(process)
        return process

    def table(self) -> dict[tuple[int, str], str]:
        try:
            with closing(RunState(self.config.run_folder(self.project.digest), readonly=True)) as state:
                return {(cell.round, cell.site): cell.state for cell in state.table()}
        except (StateError, StorageError):
            return {}

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def test_four_hospitals_on_bad_lines_finish_every_round(tmp_path: Path, network: Network) -> None:
    network.worsen()
    world = World(tmp_path, network)
    try:
        for one in world.hospitals:
            world.start(one.name, ["-m", "aggregator_client.site", "--config", str(one.config.path)])
        coordinator = world.start("coordinator", ["-c", RUN, str(world.config.root), str(world.file), "run"])
        until(lambda: (1, "South") in world.table(), 120, "the first request")
        network.cut("South")  # at work, with a request in hand
        until(lambda: sum(state == "accepted" for state in world.table().values()) >= 2, 120, "the others' answers")
        network.mend("South")
        out, _ = coordinator.communicate(timeout=240)
        assert coordinator.returncode == 0, (tmp_path / "coordinator.stderr").read_text()[-3000:]
        assert json.loads(out)["rounds"] == 2
        assert world.table() == {(number, site): "accepted" for number in (1, 2, 3) for site in SITES}
        for one in world.hospitals:
            with closing(AuditLog(one.config.storage.audit, readonly=True)) as audit:
                left = [record.facts for record in audit.records("egress")]
                assert audit.verify().ok and [facts["what"] for facts in left] == ["update", "update", "metrics"]
                assert left[0]["roster"] == SITES
        require_loss(network)
    finally:
        world.close()
