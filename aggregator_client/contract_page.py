"""The page of a contract check: one HTML file with pictures inside, to look at in the hospital; it loads nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from aggregator_client.contract_check import Checked, examples
from aggregator_client.project import ProjectDraft
from dicom_node.records import CohortEntry
from trainer.errors import PixelError
from trainer.measured import StudyFacts, image_series
from trainer.pixels.read import read_frames
from trainer.volumes import read_volume

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d0d7de;"
    "vertical-align:top}td.n{text-align:right}figure{margin:0;max-width:16rem}.row{display:flex;flex-wrap:wrap;gap:1rem}"
    "img{max-width:100%}code{overflow-wrap:anywhere;font-size:.85em}"
)
_LISTED = 20  # pseudonyms shown for a reason; the JSON has all


def page(draft: ProjectDraft, checked: Checked, dataset: Path) -> str:
    """The whole document."""
    count = f"{len(checked.passing)} of {len(checked.passing) + len(checked.failing)} patients pass"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{escape(draft.name)}: data contract</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(draft.name)}, version {escape(draft.version)}</h1>",
        f"<p><b>{count}.</b> Studies are named by pseudonym; this page stays in the hospital.</p>",
        *(f"<p>Not enough: {escape(fault)}</p>" for fault in checked.readiness.faults),
        "<h2>Why studies fail</h2>" if checked.reasons else "<p>Every study here fits.</p>",
        _table(checked),
        "<h2>One study of each</h2><div class='row'>",
        *(_figure(dataset, why, entry) for why, entry in examples(checked)),
        "</div>",
        _measures(checked),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _table(checked: Checked) -> str:
    if not checked.reasons:
        return ""
    rows = [
        f"<tr><td>{escape(one.why)}</td><td class='n'>{len(one.studies)}</td><td class='n'>{len(one.patients)}</td>"
        f"<td><code>{escape(', '.join(one.studies[:_LISTED]))}{' …' if len(one.studies) > _LISTED else ''}</code></td></tr>"
        for one in checked.reasons
    ]
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("Reason", "Studies", "Patients", "Which"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(dataset: Path, why: str, entry: CohortEntry) -> str:
    """The middle slice of a study's first image series, or the sentence why there is none."""
    caption = escape(f"Left out: {why}" if why else "Passes")
    uid = f"<br><code>{escape(entry.study.study_uid)}</code>"
    try:
        picture = _png(_thumbnail(middle_slice(dataset, entry)))
    except PixelError as error:
        return f"<figure><p>{escape(str(error))}</p><figcaption>{caption}{uid}</figcaption></figure>"
    return f"<figure>{_image(picture, f'Middle slice: {caption}')}<figcaption>{caption}{uid}</figcaption></figure>"


def middle_slice(dataset: Path, entry: CohortEntry) -> np.ndarray:
    """float32 [H, W] in modality units. Errors: PixelError."""
    series = image_series(entry)
    if not series:
        raise PixelError("The study holds no image.")
    records = series[0]
    try:
        values = read_volume([dataset / record.path for record in records]).values
    except PixelError:  # no volume: the middle image of them, by number in the catalogue
        values = read_frames(dataset / records[len(records) // 2].path, records[len(records) // 2].sop_uid).values
    return np.asarray(values[len(values) // 2])


def _thumbnail(values: np.ndarray) -> Any:
    figure, axes = _blank((2.4, 2.4))
    low, high = np.percentile(values, (1, 99))
    axes.imshow(values, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axes.set_axis_off()
    return figure


def _measures(checked: Checked) -> str:
    """What the studies measure: spacing, slices and histogram landmarks, of those that pass and those that do not."""
    passing = {entry.study.study_uid for entry in checked.cohort.entries}
    groups = [
        ("pass", [facts for uid, facts in checked.facts.items() if uid in passing and not facts.fault]),
        ("fail", [facts for uid, facts in checked.facts.items() if uid not in passing and not facts.fault]),
    ]
    if not any(facts for _, facts in groups):
        return ""
    plots = [
        ("Distance of pixels (mm)", [[one.spacing_mm[1] for one in facts if one.spacing_mm] for _, facts in groups]),
        ("Distance between slices (mm)", [[one.slice_mm for one in facts if one.slice_mm] for _, facts in groups]),
        ("Slices", [[float(one.slices) for one in facts] for _, facts in groups]),
        ("99th percentile of intensity", [[one.intensity[1] for one in facts if one.intensity] for _, facts in groups]),
    ]
    names = [name for name, _ in groups]
    shown = [_image(_png(_histogram(title, names, values)), title) for title, values in plots if any(values)]
    shown.append(_image(_png(_landmarks(groups)), "Histogram landmarks of each study"))
    return f"<h2>What the studies measure</h2><div class='row'>{''.join(shown)}</div>"


def _histogram(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> Any:
    figure, axes = _blank((4.2, 2.6))
    axes.hist([list(one) for one in values], bins=20, stacked=True, label=list(names), color=["#1f6feb", "#d1570a"])
    axes.set_xlabel(title)
    axes.set_ylabel("studies")
    axes.legend(frameon=False)
    return figure


def _landmarks(groups: Sequence[tuple[str, Sequence[StudyFacts]]]) -> Any:
    from trainer.harmonise.landmarks import PERCENTILES

    figure, axes = _blank((4.2, 2.6))
    for (name, facts), colour in zip(groups, ("#1f6feb", "#d1570a"), strict=True):
        for number, one in enumerate(facts):
            axes.plot(PERCENTILES, one.landmarks, color=colour, alpha=0.4, label="_" * bool(number) + name)
    axes.set_xlabel("percentile of the image's values")
    axes.set_ylabel("share of its range")
    axes.legend(frameon=False)
    return figure


def _blank(inches: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _png(figure: Any) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": None})
    return base64.b64encode(data.getvalue()).decode()


def _image(png: str, alt: str) -> str:
    return f"<img src='data:image/png;base64,{png}' alt='{escape(alt, quote=True)}'>"
