"""A hospital's node folder with de-identified images and an accepted invitation, ready to answer a coordinator."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator_client import invitations
from aggregator_client.approvals import Decision, decide
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.keys import node_keys
from aggregator_client.project import ProjectDocument, SignedProject, sign
from dicom_node.config import NodeConfig, load_config
from dicom_node.setup import write_default_config

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))
from side import CLASSES, build


@dataclass
class Hospital:
    name: str
    config: NodeConfig
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The federation process, as the daemon starts it."""
        argv = [sys.executable, "-m", "aggregator_client.site", "--config", str(self.config.path)]
        log = (self.config.root / "site.stderr").open("ab")
        self.process = subprocess.Popen(argv, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def approve(self, project: SignedProject) -> None:
        decide(self.config, project, Decision(project.digest, "approved", "Dr. Test", "pacs-admin"))


def hospital(root: Path, name: str, coordinator: CoordinatorConfig, count: int = 45, seed: int = 0) -> Hospital:
    """A node with `count` patients that has joined `coordinator`'s federation."""
    file = write_default_config(root, ae_title="TEST", name=name)
    text = file.read_text()
    file.write_text(
        text.replace('coordinator = ""', f'coordinator = "{coordinator.url}"').replace(
            "poll_seconds = 1.0", "poll_seconds = 0.2"
        )
    )
    config = load_config(file)
    build(root, count, seed=seed, first=1 + 1000 * seed)
    invitation = coordinator.invite(name)
    invitation.write(config.federation.invitation)
    coordinator.members.enrol(invitations.accept(invitation, node_keys(config.storage.keys)))
    return Hospital(name, config)


def project(coordinator: CoordinatorConfig, **changes: Any) -> SignedProject:
    keys = coordinator.keys()
    values: dict[str, Any] = {
        "name": "patterns",
        "version": "1",
        "purpose": "Tell three patterns apart, for tests only.",
        "rounds": 3,
        "min_sites": 2,
        "deadline_s": 60.0,
        "task": {"name": "classification", "classes": CLASSES, "label": "finding", "size": 32},
        "cohort": {"modalities": ["DX"], "label": "finding", "classes": CLASSES},
        "network": {"name": "small_resnet", "args": {"in_channels": 1, "classes": 3, "widths": [8, 16]}},
        "local": {"epochs": 3, "batch": 12, "lr": 3e-3},
        "coordinator": {"name": coordinator.name, **keys.public_base64()},
    }
    return sign(ProjectDocument.model_validate(values | changes), keys.signing)


def until(condition: Any, seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")
