"""The curves of a run: every site's metric by round, the mean thick, and the worst site beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator_client import charts

COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6")
MEAN, WORST = "mean", "worst site"


def draw(table: Sequence[Mapping[str, Any]]) -> str:
    """An SVG, or "" while no round has figures from every site. A site that sat a round out keeps its last figure.

    A round's figures are those of the model it began with, so they stand at the number of rounds trained before it.
    """
    sites = sorted({str(cell["site"]) for cell in table if cell["metric"] is not None})
    rounds = sorted({int(cell["round"]) for cell in table if cell["metric"] is not None})
    known = {(cell["site"], cell["round"]): float(cell["metric"]) for cell in table if cell["metric"] is not None}
    series: dict[str, list[float]] = {site: [] for site in sites}
    points = []
    for number in rounds:
        now = {site: known.get((site, number), series[site][-1] if series[site] else None) for site in sites}
        if any(value is None for value in now.values()):
            continue  # before its first figure a site has no place on the chart
        points.append(number - 1)
        for site, value in now.items():
            series[site].append(float(value or 0.0))
    if not points:
        return ""
    mean = [sum(values) / len(sites) for values in zip(*series.values(), strict=True)]
    worst = [min(values) for values in zip(*series.values(), strict=True)]
    drawn = {**series, WORST: worst, MEAN: mean} if len(sites) > 1 else {**series, MEAN: mean}
    colours = {site: COLOURS[index % len(COLOURS)] for index, site in enumerate(sites)}
    colours |= {MEAN: "--act", WORST: "--bad"}
    alt = (
        f"Metric of the global model after each round at {len(sites)} sites; mean {mean[-1]:.3f}, worst {worst[-1]:.3f}"
    )
    return charts.lines(points, drawn, colours, {}, MEAN, alt)


def compare(runs: Sequence[Mapping[str, Any]]) -> str:
    """The mean metric of several runs after each round, over the rounds that all of them have; "" when there is none."""
    series = {
        f"{run['project']} {run['digest'][:6]}": {
            int(row["round"]) - 1: float(row["mean_metric"]) for row in run["history"] if row["mean_metric"] is not None
        }
        for run in runs
        if "project" in run
    }
    series = {name: points for name, points in series.items() if points}
    common = sorted(set.intersection(*(set(points) for points in series.values()))) if series else []
    if not common:
        return ""
    drawn = {name: [points[number] for number in common] for name, points in series.items()}
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(drawn)}
    alt = "Mean metric after each round: " + "; ".join(
        f"{name} ends at {values[-1]:.3f}" for name, values in drawn.items()
    )
    return charts.lines(common, drawn, colours, {}, next(iter(drawn)), alt)
