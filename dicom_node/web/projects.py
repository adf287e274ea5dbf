"""Decisions about projects from the console: what a document means, and the signed decision, are another room's commands.

`fedpacs project show|approve|reject|suspend|withdraw` are started as processes, because nothing of this room may import the room
that knows projects (docs/architecture.md); the decision they record is signed with the node's key and audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, NodeError, RefusedError

_COMMAND = (sys.executable, "-c", "from dicom_node.cli import main; main()", "project")
_SECONDS = 60.0


def decide(config: NodeConfig, digest: str, command: str, by: str, role: str, reason: str) -> None:
    """`command` is approve, reject, suspend or withdraw. Blocks; raises RefusedError or InputError."""
    _run(config, command, digest, f"--by={by}", f"--role={role}", f"--reason={reason}")


def sheet(config: NodeConfig, digest: str) -> dict[str, Any]:
    """The project in plain words with this hospital's cohort, as `fedpacs project show --json` has it; blocks.

    {"problem": sentence} when it cannot be shown.
    """
    try:
        return dict(json.loads(_run(config, "show", digest, "--json")))
    except (NodeError, ValueError) as error:
        return {"problem": str(error)}


def sections(words: str) -> list[tuple[str, list[str]]]:
    """The sheet's headings with their lines; what stands before the first heading is under ""."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in words.splitlines():
        if line.startswith("  - "):
            found[-1][1].append(line.removeprefix("  - "))
        elif line.startswith("    ") and found[-1][1]:
            found[-1][1][-1] += " " + line.strip()
        elif line.strip():
            found.append((line.strip(), []))
    return [one for one in found if one[0] or one[1]]


def _run(config: NodeConfig, command: str, digest: str, *options: str) -> str:
    argv = [*_COMMAND, command, digest, *options, f"--config={config.path}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NodeError(
            f"`fedpacs project {command}` took longer than {_SECONDS:.0f} s; try it on the command line."
        ) from None
    if done.returncode == 0:
        return done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith("fedpacs: ")]
    sentence = said[-1].removeprefix("fedpacs: ") if said else f"`fedpacs project {command}` failed; run it by hand."
    kind = {4: InputError, 5: RefusedError, 8: RefusedError}.get(done.returncode, NodeError)
    raise kind(sentence)
