"""Draws docs/*.svg from the rows that benchmarks/algorithms.py and malicious.py keep with --out.

python benchmarks/plots.py --algorithms chest.jsonl --malicious malicious.jsonl --skews skews.jsonl --docs docs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.algorithms import SCENARIOS, kept_rows, summary
from benchmarks.malicious import ATTACKS, RULES

STYLE = {
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedpacs",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def algorithms(rows: list[dict[str, Any]], out: Path) -> None:
    """Every algorithm in per cent of CDS on the same seeds, seeds as dots, in the order of the means."""
    found = summary(rows)
    pooled = {row["seed"]: row["test"] for row in rows if row["algorithm"] == "cds"}
    names = sorted(found, key=lambda name: found[name]["percent_of_cds"])
    figure, axes = pyplot.subplots(figsize=(6.5, 0.19 * len(names) + 0.8))
    places = np.arange(len(names))
    axes.barh(places, [found[name]["percent_of_cds"] for name in names], color="#8fb4d9", height=0.7)
    for place, name in zip(places, names, strict=True):
        seeds = [100 * row["test"] / pooled[row["seed"]] for row in rows if row["algorithm"] == name]
        axes.plot(seeds, [place] * len(seeds), ".", color="#1f3b57", markersize=4)
    axes.axvline(100, color="#b04a3a", linewidth=1)
    axes.set_yticks(places, names)
    axes.set_xlim(80, 103)
    axes.set_xlabel(
        "macro AUC on all hospitals' test patients, per cent of pooled data on the same seeds (dots: seeds)"
    )
    _save(figure, out)


def skews(rows: list[dict[str, Any]], out: Path) -> None:
    """Algorithms in per cent of CDS on the same seeds, a group of bars for each way to deal the patients, seeds as dots."""
    by_scenario = {name: [row for row in rows if row["scenario"] == name] for name in SCENARIOS}
    shown = {name: found for name, found in by_scenario.items() if any(row["algorithm"] == "cds" for row in found)}
    names = list(dict.fromkeys(row["algorithm"] for row in rows if row["algorithm"] != "cds"))
    figure, axes = pyplot.subplots(figsize=(6.5, 2.8))
    width = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        for place, (scenario, found) in enumerate(shown.items()):
            percents = percent_by_seed(found, name)
            at = place - 0.4 + (number + 0.5) * width
            mean = float(np.mean(percents)) if percents else np.nan
            axes.bar(at, mean, width * 0.9, color=f"C{number}", label=name if scenario == next(iter(shown)) else None)
            axes.plot([at] * len(percents), percents, ".", color="#1f3b57", markersize=4)
    axes.axhline(100, color="#b04a3a", linewidth=1)
    axes.set_xticks(range(len(shown)), list(shown))
    axes.set_ylim(60, 103)
    axes.set_ylabel("per cent of pooled data (dots: seeds)")
    axes.legend(ncols=max(len(names), 1), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, out)


def percent_by_seed(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Test metric of one algorithm in per cent of CDS on the same seed, seeds without CDS left out."""
    pooled = {row["seed"]: row["test"] for row in rows if row["algorithm"] == "cds"}
    return [
        100 * row["test"] / pooled[row["seed"]] for row in rows if row["algorithm"] == name and row["seed"] in pooled
    ]


def malicious(rows: list[dict[str, Any]], out: Path) -> None:
    """A table of rules against attacks, coloured by the AUC."""
    values = np.array([[_mean(rows, rule, attack) for attack in ATTACKS] for rule in RULES])
    figure, axes = pyplot.subplots(figsize=(6.5, 2.6))
    axes.imshow(values, cmap="RdYlGn", vmin=0.5, vmax=0.9, aspect="auto")
    axes.set_xticks(range(len(ATTACKS)), ATTACKS)
    axes.set_yticks(range(len(RULES)), list(RULES))
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, "" if np.isnan(value) else f"{value:.2f}", ha="center", va="center")
    _save(figure, out)


def _mean(rows: list[dict[str, Any]], rule: str, attack: str) -> float:
    found = [row["test"] for row in rows if (row["rule"], row["attack"]) == (rule, attack)]
    return float(np.mean(found)) if found else float("nan")


def _save(figure: Any, out: Path) -> None:
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--algorithms", type=Path)
    parser.add_argument("--malicious", type=Path)
    parser.add_argument("--skews", type=Path, help="rows of several scenarios of the chest X-rays")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    given = parser.parse_args()
    pyplot.rcParams.update(STYLE)
    if given.algorithms:
        rows = [
            one for one in kept_rows(given.algorithms) if (one["task"], one["scenario"]) == ("chest", "dirichlet-0.3")
        ]
        algorithms(rows, given.docs / "algorithms.svg")
    if given.skews:
        skews([one for one in kept_rows(given.skews) if one["task"] == "chest"], given.docs / "skews.svg")
    if given.malicious:
        malicious(kept_rows(given.malicious), given.docs / "malicious.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
