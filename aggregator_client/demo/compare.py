"""Runs the yardsticks and the judge as processes of their own and turns their figures into results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator_client.demo.hospital import Site
from aggregator_client.demo.processes import Child, Children
from aggregator_client.demo.results import AlgorithmResult, RoundPoint

MODULE = "aggregator_client.demo.yardsticks"


def write_plan(
    out: Path, sites: Sequence[Site], job: Mapping[str, Any], rounds: int, checkpoints: Sequence[Path]
) -> Path:
    """The plan file of aggregator_client.demo.yardsticks."""
    folder = out / "yardsticks"
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "sites": [
            {
                "name": site.hospital.name,
                "catalogue": str(site.folder / "catalogue.db"),
                "dataset": str(site.folder / "dataset"),
            }
            for site in sites
        ],
        "job": dict(job),
        "rounds": rounds,
        "federated": [str(path) for path in checkpoints],
        "out": str(folder),
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    return path


def train_yardsticks(children: Children, plan: Path, seconds: float = 240.0) -> dict[str, float]:
    """Train local-only and centralised side by side; {"local": seconds, "cds": seconds}."""
    running = {name: _start(children, plan, name) for name in ("local", "cds")}
    return {name: float(_finish(children, child, plan, name, seconds)["seconds"]) for name, child in running.items()}


def judge(children: Children, plan: Path, seconds: float = 120.0) -> dict[str, Any]:
    """The judge's figures (see aggregator_client.demo.yardsticks.judge)."""
    return _finish(children, _start(children, plan, "judge"), plan, "judge", seconds)


def algorithms(
    judged: Mapping[str, Any], seconds: Mapping[str, float], bytes_: Mapping[str, int], rounds: int
) -> dict[str, AlgorithmResult]:
    """The three lines of the table."""
    local = judged["local"]
    fed = judged["federated"][-1]
    cds = judged["cds"]
    union = {site: found["auc"] for site, found in local.items()}
    own = {site: found["per_site"][site] for site, found in local.items()}
    return {
        "local": AlgorithmResult(sum(union.values()) / len(union), own, 0, 0, seconds["local"], union),
        "fedavg": AlgorithmResult(fed["auc"], fed["per_site"], bytes_["fedavg"], rounds, seconds["fedavg"]),
        "cds": AlgorithmResult(cds["auc"], cds["per_site"], bytes_["cds"], 0, seconds["cds"]),
    }


def curve(judged: Mapping[str, Any]) -> list[RoundPoint]:
    """The global model from before the first round on."""
    return [RoundPoint(number, one["per_site"], one["auc"]) for number, one in enumerate(judged["federated"])]


def _start(children: Children, plan: Path, what: str) -> Child:
    return children.start(
        f"the yardstick {what}",
        [sys.executable, "-m", MODULE, str(plan), what],
        plan.parent / f"{what}.log",
        passing=True,
    )


def _finish(children: Children, child: Child, plan: Path, what: str, seconds: float) -> dict[str, Any]:
    children.finish(child, seconds)
    found: dict[str, Any] = json.loads((plan.parent / f"{what}.json").read_text(encoding="utf-8"))
    return found
