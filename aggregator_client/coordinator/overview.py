"""What a coordinator must see of its runs: a site × round table, the mean and the worst site, and why somebody stalls."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from aggregator_client.coordinator.card import fairness
from aggregator_client.coordinator.rounds import best_model
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.coordinator.state import RunState, SiteRound
from aggregator_client.errors import DocumentError


def find_runs(config: CoordinatorConfig, prefix: str = "") -> list[Path]:
    """The folders of all runs whose digest starts with `prefix`, newest last. Raises DocumentError when none does."""
    found = [
        folder
        for folder in config.storage.runs.glob("*")
        if folder.name.startswith(prefix) and (folder / "state.db").exists() and (folder / "project.json").exists()
    ]
    if prefix and not found:
        raise DocumentError(f"No run here with a digest that starts with {prefix!r}: see `fedpacs coordinator status`.")
    return sorted(found, key=lambda folder: (folder / "project.json").stat().st_mtime)


def one_run(config: CoordinatorConfig, prefix: str = "") -> Path:
    """The one run meant. Raises DocumentError when there is none, or several and no prefix tells which."""
    found = find_runs(config, prefix)
    if not found:
        raise DocumentError(
            f"No project was run in {config.root} yet: start one with `fedpacs coordinator run PROJECT`."
        )
    if len(found) > 1:
        names = ", ".join(folder.name[:12] for folder in found)
        raise DocumentError(f"Several runs are meant ({names}): name one by the beginning of its digest.")
    return found[0]


def is_running(folder: Path) -> bool:
    """Whether a process runs it now: that process holds the lock file until it ends, however it ends."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def running_pid(folder: Path) -> int | None:
    """The process that runs it now."""
    try:
        return int((folder / "lock").read_text()) if is_running(folder) else None
    except (OSError, ValueError):  # it is only just starting
        return None


def overview(folder: Path) -> dict[str, Any]:
    """One run as JSON values. `round` is the last round with a checkpoint; metrics are of the model a round began with."""
    with closing(RunState(folder, readonly=True)) as state:
        run, rounds, table, sites = state.run(), state.rounds(), state.table(), state.sites()
        last, scores = state.last_checkpoint(), state.model_scores()
        votes = {one.round: one.outcome for one in state.candidates()}
    running = is_running(folder)
    facts: dict[str, Any] = {"digest": folder.name, "running": running, "folder": str(folder)}
    if run is not None:
        stated = "stopped" if run.state in ("running", "paused") and not running else run.state
        pausing = running and stated == "running" and (folder / "paused").exists()
        facts |= {
            "project": run.project,
            "algorithm": run.algorithm,
            "rounds": run.rounds,
            "round": max(0, last),
            "best_round": best_model(scores) if scores else None,
            "state": stated,
            "reason": run.reason
            or ("the round under way is its last one until it is resumed" if pausing else "")
            or ("its process ended: `fedpacs coordinator resume` goes on" if stated == "stopped" else ""),
            "pausing": pausing,
            "started_at": run.started_at,
            "ended_at": run.ended_at,
        }
    seen = {site.site: site for site in sites}
    names = sorted(seen.keys() | {cell.site for cell in table})
    facts["sites"] = [
        {
            "site": name,
            "online": running and name in seen and seen[name].online,
            "last_seen": seen[name].last_seen if name in seen else 0.0,
            **_newest([cell for cell in table if cell.site == name]),
        }
        for name in names
    ]
    facts["history"] = [
        {
            "round": one.number,
            "state": one.state,
            "seconds": _seconds(one.started_at, one.ended_at),
            "sha256": one.sha256,
            "vote": votes.get(one.number, ""),
        }
        | _summary([cell for cell in table if cell.round == one.number])
        for one in rounds
        if one.number > 0
    ]
    return facts


def table(folder: Path) -> list[dict[str, Any]]:
    """Every site in every round, in that order, as JSON values."""
    with closing(RunState(folder, readonly=True)) as state:
        cells = state.table()
    return [
        {
            "round": cell.round,
            "site": cell.site,
            "state": cell.state,
            "reason": cell.reason,
            "cases": cell.cases,
            "seconds": cell.seconds,
            "loss": cell.loss,
            "metric": cell.metric,
            "worst_subgroup": _subgroup(cell),
            "bytes_in": cell.bytes_in,
            "bytes_out": cell.bytes_out,
        }
        for cell in sorted(cells, key=lambda cell: (cell.round, cell.site))
    ]


def _newest(cells: Sequence[SiteRound]) -> dict[str, Any]:
    """A site's last cell, the figures of its last accepted one, and its bytes so far."""
    total = {"bytes_in": sum(cell.bytes_in for cell in cells), "bytes_out": sum(cell.bytes_out for cell in cells)}
    if not cells:
        return {
            "round": 0,
            "state": "not asked",
            "reason": "",
            "cases": 0,
            "loss": None,
            "metric": None,
            "change": None,
            **total,
        }
    last = max(cells, key=lambda cell: cell.round)
    accepted = [cell for cell in cells if cell.state == "accepted"]
    figures = max(accepted, key=lambda cell: cell.round) if accepted else last
    metrics = [cell.metric for cell in sorted(accepted, key=lambda cell: cell.round) if cell.metric is not None]
    return {
        "round": last.round,
        "state": last.state,
        "reason": last.reason,
        "cases": figures.cases,
        "loss": figures.loss,
        "metric": figures.metric,
        "change": metrics[-1] - metrics[-2] if len(metrics) > 1 else None,
        "personal": figures.metrics.get("personal"),
        "worst_subgroup": _subgroup(figures),
        "seconds": figures.seconds,
        **total,
    }


def _summary(cells: Sequence[SiteRound]) -> dict[str, Any]:
    accepted = [cell for cell in cells if cell.state == "accepted"]
    fair = fairness({cell.site: cell.metric for cell in accepted if cell.metric is not None})
    losses = [cell.loss for cell in accepted if cell.loss is not None]
    return {
        "accepted": len(accepted),
        "cases": sum(cell.cases for cell in accepted),
        "mean_loss": sum(losses) / len(losses) if losses else None,
        "mean_metric": fair["mean"],
        "worst_metric": fair["worst"],
        "worst_site": fair["worst_site"],
        "best_metric": fair["best"],
        "spread": fair["spread"],
        "worst_subgroup": _worst_subgroup(accepted),
        "missing": {cell.site: cell.reason for cell in cells if cell.state not in ("accepted", "asked")},
        "bytes_in": sum(cell.bytes_in for cell in cells),
        "bytes_out": sum(cell.bytes_out for cell in cells),
    }


def _subgroup(cell: SiteRound) -> dict[str, Any] | None:
    """A site's weakest group of patients, as it told: {"attribute", "value", "cases", "metric"}, checked, for it is foreign."""
    told = cell.metrics.get("worst_subgroup")
    if not isinstance(told, dict) or not isinstance(told.get("metric"), int | float):
        return None
    words = {name: str(told.get(name, ""))[:60] for name in ("attribute", "value")}
    return {**words, "cases": told.get("cases"), "metric": float(told["metric"])}


def _worst_subgroup(cells: Sequence[SiteRound]) -> dict[str, Any] | None:
    """The weakest group over the sites of a round, with its site."""
    told = [{**group, "site": cell.site} for cell in cells if (group := _subgroup(cell)) is not None]
    return min(told, key=lambda group: float(group["metric"])) if told else None


def _seconds(start: float, end: float | None) -> float:
    return round((time.time() if end is None else end) - start, 2)
