"""The tables of `fedpacs coordinator status`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dicom_node.cli.output import print_table

SITE_COLUMNS = (
    "hospital",
    "link",
    "last seen",
    "round",
    "state",
    "cases",
    "loss",
    "metric",
    "change",
    "bytes in",
    "why it stalls",
)
ROUND_COLUMNS = ("round", "state", "answers", "cases", "mean loss", "mean metric", "worst", "spread", "seconds")


def show(runs: list[dict[str, Any]]) -> None:
    """Print every run (see coordinator.overview) as two tables."""
    if not runs:
        print("No project was run here yet.")
    for run in runs:
        why = f"; {run['reason']}" if run.get("reason") else ""
        print(
            f"{run.get('project', '')} ({run['digest'][:12]}): {run.get('state', 'begun')},"
            f" round {run.get('round', 0)} of {run.get('rounds', '?')}{why}"
        )
        print_table("Hospitals", SITE_COLUMNS, [_site(site) for site in run["sites"]])
        print_table(
            "Rounds (metric of the model the round began with)", ROUND_COLUMNS, [_round(row) for row in run["history"]]
        )


def _site(site: Mapping[str, Any]) -> list[Any]:
    link = "online" if site["online"] else "away"
    seen = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(site["last_seen"])) if site["last_seen"] else "never"
    figures = [site["cases"], _number(site["loss"]), _number(site["metric"]), _change(site["change"]), site["bytes_in"]]
    return [site["site"], link, seen, site["round"], site["state"], *figures, site["reason"]]


def _round(row: Mapping[str, Any]) -> list[Any]:
    worst = f"{_number(row['worst_metric'])} {row['worst_site'] or ''}".strip()
    means = [_number(row["mean_loss"]), _number(row["mean_metric"])]
    return [
        row["round"],
        row["state"],
        row["accepted"],
        row["cases"],
        *means,
        worst,
        _number(row["spread"]),
        row["seconds"],
    ]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"


def _change(value: Any) -> str:
    """Against the round before, with its sign."""
    return "" if value is None else f"{value:+.4f}"
