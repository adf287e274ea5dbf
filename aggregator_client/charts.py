"""The report's charts as SVG whose colours are CSS variables, so that light and dark need no second drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

MARKERS = ("circle", "square", "triangle", "diamond", "cross")
CHANCE = 0.5


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], colours: Mapping[str, str], alt: str) -> str:
    """Grouped bars that grow from chance (AUC 0.5). `series` maps a title to one value per group."""
    width, height, left, right, top, bottom = 920, 330, 46, 8, 18, 44
    low, high = _range([value for values in series.values() for value in values])
    y = _scale(low, high, height - bottom, top)
    slot = (width - left - right) / len(groups)
    bar = min(46.0, slot * 0.8 / len(series))
    out = [_open(width, height, alt), _grid(low, high, y, left, width - right)]
    for index, group in enumerate(groups):
        middle = left + slot * (index + 0.5)
        start = middle - bar * len(series) / 2
        for rank, (title, values) in enumerate(series.items()):
            x, value = start + bar * rank, values[index]
            head, foot = min(y(value), y(CHANCE)), max(y(value), y(CHANCE))
            out.append(
                f'<rect x="{x + 2:.1f}" y="{head:.1f}" width="{bar - 4:.1f}" height="{max(1.0, foot - head):.1f}" rx="2" '
                f'fill="var({colours[title]})"><title>{escape(group)}, {escape(title)}: {value:.3f}</title></rect>'
            )
            out.append(_text(x + bar / 2, head - 5, _short(value), "middle", "value"))
        out.append(_text(middle, height - bottom + 20, group, "middle", "strong" if index == 0 else "label"))
    return "".join([*out, "</svg>"])


def lines(
    points: Sequence[int],
    series: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    references: Mapping[str, tuple[float, str]],
    strong: str,
    alt: str,
) -> str:
    """One line per series over rounds trained; `strong` is drawn thick, `references` are dashed levels (value, colour)."""
    width, height, left, right, top, bottom = 920, 360, 46, 190, 16, 44
    everything = [v for values in series.values() for v in values] + [value for value, _ in references.values()]
    low, high = _range(everything)
    y = _scale(low, high, height - bottom, top)
    span = max(1, points[-1] - points[0])
    x = _scale(points[0], points[0] + span, left + 12, width - right)
    out = [_open(width, height, alt), _grid(low, high, y, left, width - right)]
    for value, colour in references.values():
        out.append(f'<path d="M{left} {y(value):.1f}H{width - right}" class="reference" stroke="var({colour})"/>')
    ends: list[tuple[float, str, str]] = [(y(value), name, colour) for name, (value, colour) in references.items()]
    for index, (name, values) in enumerate(sorted(series.items(), key=lambda item: item[0] == strong)):
        path = "L".join(f"{x(point):.1f} {y(value):.1f}" for point, value in zip(points, values, strict=True))
        thick = ' class="thick"' if name == strong else ' class="thin"'
        out.append(f'<path d="M{path}" fill="none" stroke="var({colours[name]})"{thick}/>')
        if name != strong:
            for point, value in zip(points, values, strict=True):
                out.append(_marker(MARKERS[index % len(MARKERS)], x(point), y(value), colours[name]))
        ends.append((y(values[-1]), name, colours[name]))
    for at, name, colour in _apart(ends, 17):
        out.append(f'<path d="M{width - right + 8} {at:.1f}h12" stroke="var({colour})" class="key"/>')
        out.append(_text(width - right + 26, at + 4, name, "start", "strong" if name == strong else "label"))
    for point in points:
        if len(points) <= 16 or point % 5 == 0:
            out.append(_text(x(point), height - bottom + 18, str(point), "middle", "label"))
    out.append(_text((left + width - right) / 2, height - 6, "rounds trained", "middle", "label"))
    return "".join([*out, "</svg>"])


def stacked(parts: Mapping[str, int], colours: Mapping[str, str], alt: str) -> str:
    """One horizontal bar split in proportion to `parts`, each part wide enough for its number to be read."""
    width, height, total = 260, 22, max(1, sum(parts.values()))
    out, x = [_open(width, height, alt)], 0.0
    for name, count in parts.items():
        part = width * count / total
        out.append(
            f'<rect x="{x:.1f}" y="0" width="{max(0.0, part - 1.5):.1f}" height="{height}" rx="2" '
            f'fill="var({colours[name]})"><title>{escape(name)}: {count}</title></rect>'
        )
        if part > 24:
            out.append(_text(x + part / 2, 15.5, str(count), "middle", "inside"))
        x += part
    return "".join([*out, "</svg>"])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """An axis from at most 0.45 (chance stays visible) to a round number above the best value, within [0, 1]."""
    finite = [value for value in values if math.isfinite(value)]
    low = min(0.45, math.floor((min(finite) - 0.02) * 20) / 20)
    high = max(0.8, math.ceil((max(finite) + 0.03) * 20) / 20)
    return max(0.0, low), min(1.05, high)


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _grid(low: float, high: float, y: Callable[[float], float], left: float, right: float) -> str:
    out = []
    for tenth in range(math.ceil(low * 10 - 1e-9), math.floor(min(high, 1.0) * 10 + 1e-9) + 1):
        value = tenth / 10
        kind = "chance" if tenth == 5 else "grid"
        out.append(f'<path d="M{left} {y(value):.1f}H{right}" class="{kind}"/>')
        out.append(_text(left - 8, y(value) + 4, f"{value:.1f}", "end", "label"))
    return "".join(out)


def _apart(ends: list[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """The labels' heights moved so that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for at, name, colour in sorted(ends):
        if placed and at < placed[-1][0] + gap:
            at = placed[-1][0] + gap
        placed.append((at, name, colour))
    overflow = placed[-1][0] - 330
    return [(at - overflow, name, colour) for at, name, colour in placed] if overflow > 0 else placed


def _marker(shape: str, x: float, y: float, colour: str) -> str:
    drawn = {
        "circle": f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "square": f"M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7z",
        "triangle": f"M{x:.1f} {y - 5:.1f}l5 8.5h-10z",
        "diamond": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        "cross": f"M{x - 4:.1f} {y - 1.5:.1f}h2.5v-2.5h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5z",
    }[shape]
    return f'<path d="{drawn}" fill="var({colour})" class="marker"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>' if text else ""


def _short(value: float) -> str:
    return f"{value:.2f}".lstrip("0")


def _open(width: int, height: int, alt: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt, quote=True)}">'
