"""Starts and stops runs, each a `fedpacs coordinator` process of its own, which outlives the dashboard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from aggregator_client.coordinator import overview
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import RefusedError
from aggregator_client.project import SignedProject
from aggregator_client.rotation import lineage

_COMMAND = (sys.executable, "-c", "from dicom_node.cli import main; main()", "coordinator")
_FIRST_SECONDS = 20.0


def startable(config: CoordinatorConfig) -> list[tuple[Path, SignedProject]]:
    """Signed projects of this coordinator that lie in its folder and were never run."""
    found = []
    for file in sorted(config.root.glob("*.json")):
        try:
            signed = SignedProject.read(file)
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            continue  # another kind of JSON file
        ours = signed.document.coordinator.signing_key in {pair.signing for pair in lineage(config.keys())}
        if ours and not (config.run_folder(signed.digest) / "state.db").exists():
            found.append((file, signed))
    return found


def start(config: CoordinatorConfig, digest: str) -> None:
    """Start a project that lies in the coordinator's folder. Raises RefusedError."""
    for file, signed in startable(config):
        if signed.digest == digest:
            _spawn(config, ["run", str(file)], digest)
            return
    raise RefusedError("No signed project with this digest lies in the coordinator's folder, or it was run already.")


def pause(config: CoordinatorConfig, digest: str) -> None:
    """Let the round under way end and begin no further one until it is resumed. Raises RefusedError."""
    folder = _folder(config, digest)
    if not overview.is_running(folder):
        raise RefusedError("This run does not go on: there is nothing to pause.")
    if _paused(folder).exists():
        raise RefusedError("This run is paused already.")
    _paused(folder).touch()


def resume(config: CoordinatorConfig, digest: str) -> None:
    """Go on with a paused or stopped run. Raises RefusedError."""
    folder = _folder(config, digest)
    paused = _paused(folder).exists()
    _paused(folder).unlink(missing_ok=True)
    if overview.is_running(folder):
        if paused:
            return
        raise RefusedError("This run is going on already.")
    _spawn(config, ["resume", digest], digest)


def stop(config: CoordinatorConfig, digest: str, wait_seconds: float = 30.0) -> None:
    """Ask a run to stop; what it has is kept, and `resume` goes on. Raises RefusedError when it does not run or end."""
    folder = _folder(config, digest)
    pid = overview.running_pid(folder)
    if pid is None:
        raise RefusedError("This run does not go on.")
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + wait_seconds
    while overview.is_running(folder):
        if time.monotonic() > end:
            raise RefusedError("The run was asked to stop and has not ended yet: look again in a moment.")
        time.sleep(0.1)


def _paused(folder: Path) -> Path:
    return folder / "paused"


def _folder(config: CoordinatorConfig, digest: str) -> Path:
    return overview.one_run(config, digest)


def _spawn(config: CoordinatorConfig, action: list[str], digest: str) -> None:
    """Start the command in a session of its own and wait until it holds the run, or said why it cannot."""
    folder = config.run_folder(digest)
    folder.mkdir(parents=True, exist_ok=True)
    argv = [*_COMMAND, *action, "--dir", str(config.root)]
    with (folder / "run.log").open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=config.root
        )
    end = time.monotonic() + _FIRST_SECONDS
    while process.poll() is None and overview.running_pid(folder) != process.pid and time.monotonic() < end:
        time.sleep(0.1)
    if process.poll():
        said = (folder / "run.log").read_bytes()[began:].decode(errors="replace").splitlines()
        told = [line.removeprefix("fedpacs: ") for line in said if line.startswith("fedpacs: ")]
        raise RefusedError(told[-1] if told else f"The run ended at once; see {folder / 'run.log'}.")
