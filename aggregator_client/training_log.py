"""What the node's console shows of training: the job under way in run/training.json, each finished job in federation/training.

run/training.json                       {"pid", "state": working|idle, "project", "name", "round", "rounds", "kind", "activity",
                                        "started_at", "at", "step", "steps", "curve": [[step, loss]...], "device", "drift"}
federation/training/<digest16>.jsonl    one line a finished job: {"round", "kind", "at", "samples", "seconds", "loss", "metrics",
                                        "subgroups", "worst_subgroup", "drift"}
federation/models/<digest16>/           the model as trained here last, for example predictions

All of it stays at the hospital. Subgroups come from the trainer with small cells suppressed already.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aggregator_client.project import ProjectDocument
from aggregator_client.sealing import Context
from dicom_node.config import NodeConfig
from dicom_node.status import write_json

_POINTS = 200
_EVERY_SECONDS = 1.0
_TOLD = ("auc", "dice", "accuracy", "loss", "sensitivity", "specificity", "per_class")


class TrainingLog:
    """One job's. `heard` takes each line the trainer says, `finished` the result."""

    def __init__(self, config: NodeConfig, document: ProjectDocument, context: Context) -> None:
        self._storage, self._written = config.storage, 0.0
        self._short = context.project_digest[:16]
        self._facts: dict[str, Any] = {
            "pid": os.getpid(), "state": "working", "project": context.project_digest, "name": document.name,
            "round": context.round, "rounds": document.rounds, "kind": context.kind, "activity": "start",
            "started_at": time.time(), "step": 0, "steps": 0, "curve": [], "device": config.federation.device, "drift": None,
        }  # fmt: skip
        self._write()

    def heard(self, facts: Mapping[str, Any]) -> None:
        """One event of the trainer (docs/trainer.md): step, cohort, drift, ..."""
        event = str(facts.get("event", ""))
        if event == "drift":
            self._facts["drift"] = str(facts.get("warning") or "")[:500]
        if event == "start" and "device" in facts:
            self._facts["device"] = str(facts["device"])
        if event == "step":
            self._facts |= {"step": int(facts.get("step", 0)), "steps": int(facts.get("steps", 0))}
            self._facts["curve"] = _thinned([*self._facts["curve"], [facts.get("step"), facts.get("loss")]])
        self._facts["activity"] = event
        if event != "step" or time.monotonic() - self._written > _EVERY_SECONDS:
            self._write()

    def finished(self, result: Mapping[str, Any], out: Path) -> None:
        """Keep what the job found, and its model when it trained one."""
        metrics = result.get("metrics") or {}
        drift = result.get("drift") or {}
        line = {
            "round": self._facts["round"], "kind": self._facts["kind"], "at": time.time(),
            "samples": result.get("samples"), "seconds": result.get("seconds"), "loss": result.get("loss"),
            "metrics": {name: metrics[name] for name in _TOLD if name in metrics},
            "subgroups": result.get("subgroups") or {}, "worst_subgroup": result.get("worst_subgroup"),
            "drift": drift.get("warning"),
        }  # fmt: skip
        folder = self._storage.federation / "training"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self._short}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if (out / "model.json").exists():
            self._keep_model(out)

    def ended(self) -> None:
        """The job is over, however it went."""
        self._facts |= {"state": "idle"}
        self._write()

    def _keep_model(self, out: Path) -> None:
        home = self._storage.federation / "models" / self._short
        part = home.with_name(f"{home.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name in ("model.safetensors", "model.json"):
            with suppress(FileNotFoundError):
                shutil.copyfile(out / name, part / name)
        shutil.rmtree(home, ignore_errors=True)
        part.rename(home)

    def _write(self) -> None:
        self._written = time.monotonic()
        self._facts["at"] = time.time()
        self._storage.run.mkdir(parents=True, exist_ok=True)
        write_json(self._storage.run / "training.json", self._facts)


def _thinned(points: list[list[Any]]) -> list[list[Any]]:
    """Every second point once there are too many; the newest stays."""
    return points if len(points) <= _POINTS else [*points[:-1:2], points[-1]]
