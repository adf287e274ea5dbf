"""The coordinator of the demo: its folder, its project file, its process, and what it says about the rounds.

Everything goes through the `fedpacs coordinator`, `fedpacs project` and `fedpacs federation` commands, as it would
between institutions; files that people would hand to each other (invitation, enrolment, signed project) are files here too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator_client.demo.cohort import Hospital
from aggregator_client.demo.processes import Child, Children, DemoError, fedpacs
from aggregator_client.demo.progress import human_bytes

SEED = 0
PROJECT = """\
# What the hospitals are asked to approve. `fedpacs project sign` turns it into the file they receive.
name = "chest-xray-pneumonia"
version = "1"
purpose = "Tell normal, bacterial and viral pneumonia apart on chest X-rays of children (a demonstration)."
rounds = {rounds}
min_sites = {sites}
deadline_s = 120
seed = {seed}

[task]
name = "classification"
label = "finding"
classes = ["normal", "bacterial", "viral"]
size = 64

[cohort]
modalities = ["DX", "CR"]
body_parts = ["CHEST"]
label = "finding"
classes = ["normal", "bacterial", "viral"]
min_patients = 20

[network]
name = "monai_resnet"
args = {{ in_channels = 1, classes = 3, widths = [8, 16, 32, 64], stem = 1, norm = "batch" }}

[algorithm]
name = "fedavg"

[local]
epochs = 4
batch = 32
lr = 0.003
weight_decay = 0.0001
augment = "style"
class_weighted = true
"""


@dataclass
class Coordination:
    """The coordinator's side. `sites` are the hospitals that are to take part."""

    root: Path
    port: int
    rounds: int
    sites: Sequence[Hospital]
    _child: Child | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return self.root / "coordinator"

    @property
    def project_file(self) -> Path:
        return self.root / "project.json"

    def init(self, children: Children) -> None:
        """Make the coordinator's folder."""
        where = ["--host", "127.0.0.1", "--port", self.port, "--name", "Demo coordinator"]
        self.root.mkdir(parents=True, exist_ok=True)
        children.run(fedpacs("coordinator", "init", self.folder, *where))

    def enrol(self, children: Children, hospital: Hospital, config: Path) -> None:
        """Invitation → the hospital joins with it → its enrolment comes back."""
        files = self.root / "exchanged"
        files.mkdir(exist_ok=True)
        invitation = files / f"{hospital.folder}-invitation.json"
        enrolment = files / f"{hospital.folder}-enrolment.json"
        children.run(fedpacs("coordinator", "invite", hospital.name, "--out", invitation, "--dir", self.folder))
        children.run(fedpacs("federation", "join", invitation, "--config", config, "--out", enrolment))
        children.run(fedpacs("coordinator", "enrol", enrolment, "--dir", self.folder))

    def sign_project(self, children: Children) -> None:
        """Write project.toml and sign it into the file the hospitals receive."""
        source = self.root / "project.toml"
        source.write_text(PROJECT.format(rounds=self.rounds, sites=len(self.sites), seed=SEED), encoding="utf-8")
        children.run(fedpacs("project", "sign", source, "--coordinator", self.folder, "--out", self.project_file))

    def approve_at(self, children: Children, config: Path, words: Path, by: str) -> None:
        """The hospital reads the project in plain words (kept in `words`) and approves exactly this file."""
        words.write_text(
            children.run(fedpacs("project", "show", self.project_file, "--config", config)), encoding="utf-8"
        )
        children.run(fedpacs("project", "approve", self.project_file, "--by", by, "--config", config))

    def start(self, children: Children) -> Child:
        """`fedpacs coordinator run PROJECT` as a process of its own; it ends by itself after the last round."""
        self._child = children.start(
            "the coordinator",
            fedpacs("coordinator", "run", self.project_file, "--dir", self.folder),
            self.root / "coordinator.log",
            passing=True,
        )
        return self._child

    @property
    def child(self) -> Child:
        if self._child is None:
            raise DemoError("the coordinator was not started")
        return self._child

    def done(self) -> bool:
        return self.child.process.poll() == 0

    def document(self) -> dict[str, Any]:
        """The signed document's payload, as every hospital saw it."""
        return tomllib.loads((self.root / "project.toml").read_text(encoding="utf-8"))

    def checkpoints(self) -> list[Path]:
        """The global model before the first round and after each, in that order."""
        runs = sorted((self.folder / "runs").glob("*"))
        found = sorted(runs[0].rglob("*.safetensors")) if runs else []
        if len(found) < self.rounds + 1:
            raise DemoError(f"the coordinator kept {len(found)} models of {self.rounds} rounds; see {self.child.log}")
        return found

    def job(self) -> Mapping[str, Any]:
        """The JobSpec keys that the project fixes, for the yardsticks."""
        document = self.document()
        return {key: document[key] for key in ("network", "task", "cohort", "local", "seed") if key in document}

    def summary(self) -> dict[str, str]:
        """What the report tells about the project."""
        document = self.document()
        local = document["local"]
        signed = json.loads(self.project_file.read_text(encoding="utf-8"))
        size = human_bytes(self.checkpoints()[-1].stat().st_size)
        return {
            "name": f"{document['name']}, version {document['version']}",
            "purpose": document["purpose"],
            "digest (SHA-256)": str(signed.get("digest", "")),
            "model": f"{document['network']['name']}, {size}",
            "algorithm": f"{document['algorithm']['name']}, {self.rounds} rounds of {local['epochs']} local epochs, "
            f"batch {local['batch']}",
            "privacy": "updates sealed to the coordinator's key and signed by the node; no noise is added in this demo",
        }
