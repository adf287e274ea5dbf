"""Small line charts as SVG for the training page; colours are CSS classes, so that light and dark need no second drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

Point = tuple[float, float]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 240, 52, 14, 14, 38
_TICKS = 4


def rounds(done: Sequence[Mapping[str, Any]]) -> str:
    """AUC or Dice of the model each round began with, on this hospital's held-out patients; "" without a figure."""
    points: list[Point] = []
    for one in done:
        value = one["metrics"].get("auc", one["metrics"].get("dice"))
        if isinstance(value, int | float):
            points.append((float(one["round"]) - 1, float(value)))  # so many rounds were trained before it
    name = "Dice" if any("dice" in one["metrics"] for one in done) else "AUC"
    return lines(points, f"{name} on this hospital's held-out patients after each round", "rounds trained", (0.0, 1.0))


def losses(done: Sequence[Mapping[str, Any]]) -> str:
    """The training loss each round ended with."""
    points = [(float(one["round"]), float(one["loss"])) for one in done if isinstance(one.get("loss"), int | float)]
    return lines(points, "Training loss by round", "round")


def steps(curve: Sequence[Sequence[Any]]) -> str:
    """The loss of the job under way, step by step."""
    points = [(float(step), float(loss)) for step, loss in curve if isinstance(loss, int | float)]
    return lines(points, "Training loss of this round by step", "step")


def lines(points: Sequence[Point], title: str, across: str, bounds: tuple[float, float] | None = None) -> str:
    """One line; its axis spans `bounds` or what the points need. "" without points; what is not finite is left out."""
    points = sorted(point for point in points if math.isfinite(point[1]))
    if not points:
        return ""
    low, high = bounds or _bounds([value for _, value in points])
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(at: float) -> float:
        return _LEFT + (at - first) / (last - first) * wide

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * tall

    told = f"{title}: from {points[0][1]:.3g} to {points[-1][1]:.3g}"
    out = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told, quote=True)}">']
    for number in range(_TICKS + 1):
        value = low + (high - low) * number / _TICKS
        out.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in points)
    out.append(f'<path class="line" d="M{path}"/>')
    if len(points) <= 40:
        out += [f'<circle class="dot" cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5"/>' for at, value in points]
    for at in sorted({points[0][0], points[-1][0]}):
        anchor = "start" if at == first and len(points) > 1 else "end" if len(points) > 1 else "start"
        out.append(f'<text x="{x(at):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="{anchor}">{at:g}</text>')
    out.append(f'<text x="{_LEFT + wide / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(across)}</text></svg>')
    return Markup("".join(out))  # our own SVG; every text in it is escaped above


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    return low, high + (high - low or 1.0) * 0.08
