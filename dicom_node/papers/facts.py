"""What the papers are filled from: node.toml, the profile, the projects known here, counts of the catalogue and the audit log."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from anonymizer import load_profile
from anonymizer.profile import OPTIONS, Profile
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.projects import ProjectRecord, Projects
from dicom_node.records import Catalogue


@dataclass(frozen=True)
class ProjectFacts:
    """One project in the words of its own document."""

    name: str
    version: str
    digest: str
    state: str
    purpose: str
    coordinator: str
    mode: str
    algorithm: str
    rounds: int
    label: str
    classes: tuple[str, ...]
    decided_by: str
    role: str

    @property
    def leaves(self) -> str:
        """What leaves the hospital for it, in one sentence."""
        if self.mode == "secure_aggregation":
            return (
                "masked model changes that only their sum over the hospitals can be read of; counts of samples hidden in it;"
                " scores and losses readable by the coordinator"
            )
        return "model weights or changes, counts of samples, scores and losses, encrypted to the coordinator, who reads them"


@dataclass(frozen=True)
class Facts:
    """Everything the papers say that is not law."""

    config: NodeConfig
    profile: Profile
    options: tuple[str, ...]
    projects: tuple[ProjectFacts, ...]
    modalities: Mapping[str, int]
    studies: Mapping[str, int]
    optouts: int
    egress: Mapping[str, tuple[int, int]]
    """{what: (messages, bytes)} that left, as the audit log has it."""
    made: str

    @property
    def approved(self) -> tuple[ProjectFacts, ...]:
        return tuple(one for one in self.projects if one.state == "approved")

    @property
    def recipients(self) -> list[str]:
        return sorted({one.coordinator for one in self.approved})


def gather(config: NodeConfig) -> Facts:
    """Read all of it; a node that has not run yet has no projects and no studies. Raises ProfileError."""
    profile = load_profile(config.deid.profile)
    projects: list[ProjectFacts] = []
    modalities: Counter[str] = Counter()
    states: Counter[str] = Counter()
    optouts, egress = 0, dict[str, tuple[int, int]]()
    if config.storage.catalogue.exists():
        with closing(Projects(config.storage.catalogue)) as known:
            projects = [_project(record) for record in known.list()]
        with closing(Catalogue(config.storage.catalogue)) as catalogue:
            for study in catalogue.studies():
                states[study.state] += 1
                modalities[study.modality or "unknown"] += 1
            optouts = int(catalogue.connection.execute("SELECT count(*) FROM optouts").fetchone()[0])
    if config.storage.audit.exists():
        with closing(AuditLog(config.storage.audit, readonly=True)) as log:
            for record in log.records("egress"):
                what = str(record.facts.get("what", ""))
                count, size = egress.get(what, (0, 0))
                egress[what] = (count + 1, size + int(record.facts.get("bytes", 0)))
    version = importlib.metadata.version("fedpacs")
    made = (
        f"Draft written by fedpacs {version} on {time.strftime('%Y-%m-%d', time.gmtime())} from the configuration of the node"
        f" {config.node.name!r}. Places marked [BLANK: …] are for the hospital to fill in."
    )
    options = tuple(OPTIONS[name][1] for name in OPTIONS if name in profile.options)
    return Facts(config, profile, options, tuple(projects), modalities, states, optouts, egress, made)


def _project(record: ProjectRecord) -> ProjectFacts:
    payload: dict[str, Any] = json.loads(record.document)["project"]
    task = payload.get("task", {})
    return ProjectFacts(
        record.name,
        record.version,
        record.digest,
        record.state,
        str(payload.get("purpose", "")),
        str(payload.get("coordinator", {}).get("name", "")),
        str(payload.get("privacy", {}).get("mode", "sealed")),
        str(payload.get("algorithm", {}).get("name", "")),
        int(payload.get("rounds", 0)),
        str(task.get("label", "")),
        tuple(str(one) for one in task.get("classes", ())),
        record.decided_by,
        record.role,
    )
