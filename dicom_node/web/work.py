"""What the console shows of training and of the machine: the job under way, rounds done, drift, graphics cards.

The federation process writes it (aggregator_client.training_log tells the files); nothing here is identified.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from dicom_node.config import NodeConfig

_STALE_SECONDS = 3.0
_ASK_SECONDS = 5.0
_QUERY = "name,utilization.gpu,memory.used,memory.total,temperature.gpu"


def now(config: NodeConfig) -> dict[str, Any]:
    """The federation process's state, and the job under way: {"state", "reason", "job": None or its facts with "left_s"}."""
    link = _read(config.storage.run / "federation.json")
    job = _read(config.storage.run / "training.json")
    alive = job.get("state") == "working" and Path(f"/proc/{job.get('pid')}").exists()
    if alive:
        job["left_s"] = _left(job, time.time())
    state = link.get("state", "off")
    if state not in ("off", "stopped") and not Path(f"/proc/{link.get('pid')}").exists():
        state = "stopped"
    return {
        "state": state,
        "coordinator": link.get("coordinator", ""),
        "reason": link.get("reason", ""),
        "job": job if alive else None,
    }


def rounds(config: NodeConfig, digest: str) -> list[dict[str, Any]]:
    """The finished jobs of one project, oldest first; a job that was done again counts once, as it ended last."""
    try:
        text = (config.storage.federation / "training" / f"{digest[:16]}.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            one = dict(json.loads(line))
        except ValueError:  # the line that a power cut tore
            continue
        found[(one.get("round"), one.get("kind"))] = one
    return sorted(found.values(), key=lambda one: (int(one.get("round") or 0), str(one.get("kind"))))


def drift(config: NodeConfig) -> dict[str, str]:
    """{digest16: warning} of the projects whose last job warned that images or scores have moved."""
    found = {}
    for file in sorted((config.storage.federation / "training").glob("*.jsonl")):
        done = rounds(config, file.stem)
        if done and done[-1].get("drift"):
            found[file.stem] = str(done[-1]["drift"])
    job = now(config)["job"]
    if job and job.get("drift"):
        found[str(job["project"])[:16]] = str(job["drift"])
    return found


def project_left(done: list[dict[str, Any]], total: int) -> float | None:
    """Seconds of work that the rounds still to come will take here, as the rounds so far went; None without any."""
    trained = [one for one in done if one.get("kind") == "train" and one.get("seconds")]
    if not trained:
        return None
    still = max(0, total - max(int(one["round"]) for one in trained))
    return still * statistics.median(float(one["seconds"]) for one in trained)


class Cards:
    """The graphics cards as nvidia-smi tells them, asked for in the background, so that no page waits for it."""

    def __init__(self) -> None:
        self._known: list[dict[str, Any]] = []
        self._asked, self._asking = -1e9, threading.Lock()

    def latest(self) -> list[dict[str, Any]]:
        """As last told; [] without any card, or before the first answer."""
        if time.monotonic() - self._asked > _ASK_SECONDS and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask, daemon=True).start()
        return self._known

    def _ask(self) -> None:
        try:
            self._known = gpus()
            self._asked = time.monotonic()
        finally:
            self._asking.release()


def load() -> dict[str, float]:
    """The machine's load of the last minute over its processors."""
    cores = len(os.sched_getaffinity(0))
    return {"load": os.getloadavg()[0], "cores": cores}


def gpus() -> list[dict[str, Any]]:
    """The graphics cards as nvidia-smi tells them now; [] without any. Takes a moment."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    argv = [command, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, timeout=_STALE_SECONDS, env=dict(os.environ))
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [card for line in said.stdout.splitlines() if (card := parse_card(line)) is not None]


def parse_card(line: str) -> dict[str, Any] | None:
    """One line of nvidia-smi's table; a figure that the card does not tell ("[N/A]") is None."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 5:
        return None
    figures = [int(part) if part.isdigit() else None for part in parts[1:]]
    return dict(zip(("name", "busy", "memory_mb", "memory_total_mb", "celsius"), [parts[0], *figures], strict=True))


def _left(job: dict[str, Any], at: float) -> float | None:
    step, steps = int(job.get("step") or 0), int(job.get("steps") or 0)
    curve = job.get("curve") or []
    if not curve or step <= 0 or steps < step:
        return None
    return max(0.0, (at - float(job["started_at"])) / step * (steps - step))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
