"""Begins a project again from its first round, for what the hospitals' data are now: after a withdrawal, without that patient.

A finished run keeps its model and its evidence. The project is signed anew under another version, and therefore another digest:
each hospital is asked again, and the model starts from the same seed as the first time.
"""

from __future__ import annotations

import base64
from pathlib import Path

from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import DocumentError
from aggregator_client.invitations import write_file
from aggregator_client.project import ProjectDocument, SignedProject, sign, validated


def again(config: CoordinatorConfig, earlier: SignedProject, version: str, out: Path) -> SignedProject:
    """Sign `earlier` anew as `version`, with the coordinator's and the hospitals' present keys, into `out`.

    Raises DocumentError for the version it has already, ProjectError, StateError.
    """
    if version == earlier.document.version:
        raise DocumentError(
            f"The project {earlier.document.name} has version {version} already: give another with --version."
        )
    keys = config.keys()
    values = earlier.document.model_dump(mode="json")
    values |= {"version": version, "coordinator": {"name": config.name, **keys.public_base64()}}
    named = values["privacy"]["secure_aggregation"]["sites"]
    present = {one.name: base64.b64encode(one.signing_public).decode() for one in config.members.list()}
    values["privacy"]["secure_aggregation"]["sites"] = {name: present[name] for name in named if name in present}
    signed = sign(validated(ProjectDocument, values, f"project {earlier.document.name}"), keys.signing)
    write_file(out, signed.file_bytes())
    out.chmod(0o644)
    return signed
