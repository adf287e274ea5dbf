"""report.html: one self-contained page a person can read without the demo, made from a DemoResult."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aggregator_client import charts
from aggregator_client.demo.headers import BeforeAfter
from aggregator_client.demo.images import FINDINGS
from aggregator_client.demo.progress import human_bytes
from aggregator_client.demo.results import ALGORITHMS, TITLES, DemoResult, SiteResult

UNION = "all hospitals"


def write_report(path: Path, result: DemoResult, example: BeforeAfter | None) -> Path:
    """Write the page to `path` and return it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(**_context(result, example))
    path.write_text(page, encoding="utf-8")
    return path


def _context(result: DemoResult, example: BeforeAfter | None) -> dict[str, Any]:
    return {
        "verdict": result.verdict(),
        "sites": [_site(site) for site in result.sites],
        "algorithms": [_algorithm(result, name) for name in ALGORITHMS],
        "bars": Markup(_bars(result)),  # our own SVG; every text in it is escaped by charts
        "curves": Markup(_curves(result)),
        "findings": FINDINGS,
        "example": example,
        "held_out": result.held_out_patients,
        "made": datetime.now(UTC).strftime("on %Y-%m-%d at %H:%M UTC"),
        "seconds": f"{result.seconds:.0f}",
        "project": result.project,
        "notes": result.notes,
    }


def _algorithm(result: DemoResult, name: str) -> dict[str, Any]:
    one = result.algorithms[name]
    each = human_bytes(one.bytes / len(result.sites))
    sent = {"local": "nothing", "cds": f"all images, {each}"}.get(name, f"{each} of sealed updates")
    return {"key": name, "title": TITLES[name], "sent": sent, **vars(one)}


def _site(site: SiteResult) -> dict[str, Any]:
    learn = {name: site.mix.get("train", {}).get(name, 0) for name in FINDINGS}
    alt = f"{site.name} trains on " + ", ".join(f"{count} {name}" for name, count in learn.items())
    return {
        **vars(site),
        "bytes_in": human_bytes(site.bytes_in),
        "bytes_out": human_bytes(site.bytes_out),
        "mix_chart": Markup(charts.stacked(learn, {name: f"--{name}" for name in FINDINGS}, alt)),
    }


def _bars(result: DemoResult) -> str:
    names = [site.name for site in result.sites]
    series = {
        TITLES[name]: [one.auc, *(one.per_site[site] for site in names)] for name, one in _ordered(result).items()
    }
    alt = "Macro AUC. " + "; ".join(
        f"{title}: " + ", ".join(f"{group} {value:.2f}" for group, value in zip([UNION, *names], values, strict=True))
        for title, values in series.items()
    )
    return charts.bars([UNION, *names], series, {TITLES[name]: f"--{name}" for name in ALGORITHMS}, alt)


def _curves(result: DemoResult) -> str:
    # the untrained model's figure says nothing and would squeeze the rest of the axis
    curve = [point for point in result.curve if point.round > 0]
    points = [point.round for point in curve]
    series = {site.name: [point.per_site[site.name] for point in curve] for site in result.sites}
    series[UNION] = [point.auc for point in curve]
    colours = {site.name: f"--site{index}" for index, site in enumerate(result.sites)} | {UNION: "--fedavg"}
    references = {
        "alone (mean)": (result.algorithms["local"].auc, "--local"),
        "centralised": (result.algorithms["cds"].auc, "--cds"),
    }
    alt = "AUC of the global model on all hospitals by round: " + ", ".join(
        f"{point.round}: {point.auc:.2f}" for point in curve
    )
    return charts.lines(points, series, colours, references, UNION, alt)


def _ordered(result: DemoResult) -> dict[str, Any]:
    return {name: result.algorithms[name] for name in ALGORITHMS}
