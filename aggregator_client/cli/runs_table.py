"""The tables of `fedpacs coordinator status`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

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
ROUND_COLUMNS = (
    "round",
    "state",
    "answers",
    "cases",
    "mean loss",
    "mean metric",
    "worst",
    "worst group",
    "spread",
    "seconds",
)


def show(runs: list[dict[str, Any]]) -> None:
    """Print every run (see coordinator.overview) as two tables."""
    (Console() if os.isatty(1) else Console(width=180)).print(tables(runs))


def tables(runs: list[dict[str, Any]]) -> Group:
    """Every run with its hospitals and rounds, and the worst hospital and group of patients beside the mean."""
    if not runs:
        return Group("No project was run here yet.")
    parts: list[RenderableType] = []
    for run in runs:
        why = f"; {run['reason']}" if run.get("reason") else ""
        parts.append(
            Text(
                f"{run.get('project', '')} ({run['digest'][:12]}): {run.get('state', 'begun')},"
                f" round {run.get('round', 0)} of {run.get('rounds', '?')}{why}"
            )
        )
        parts.append(_table("Hospitals", SITE_COLUMNS, [_site(site) for site in run["sites"]]))
        title = "Rounds (metric of the model the round began with)"
        parts.append(_table(title, ROUND_COLUMNS, [_round(row) for row in run["history"]]))
    return Group(*parts)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


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
        "voted down" if row.get("vote") == "rejected" else row["state"],
        row["accepted"],
        row["cases"],
        *means,
        worst,
        _group(row.get("worst_subgroup")),
        _number(row["spread"]),
        row["seconds"],
    ]


def _group(group: Mapping[str, Any] | None) -> str:
    """The weakest group of patients."""
    if not group:
        return ""
    return f"{_number(group['metric'])} {group['attribute'].replace('_', ' ')} {group['value']} ({group['site']})"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"


def _change(value: Any) -> str:
    """Against the round before, with its sign."""
    return "" if value is None else f"{value:+.4f}"
