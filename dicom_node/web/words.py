"""Figures as people read them on the pages: sizes, durations, shares. None becomes a dash."""

from __future__ import annotations

import re

from fastapi.templating import Jinja2Templates
from markupsafe import Markup, escape

NOTHING = "–"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def size(count: float | None) -> str:
    """Bytes in decimal units: 1.2 MB."""
    if count is None:
        return NOTHING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float | None) -> str:
    """The two largest units: 2 h 5 min."""
    if seconds is None:
        return NOTHING
    rest, parts = round(seconds), list[str]()
    for unit, factor in _UNITS:
        if rest >= factor or (unit == "s" and not parts):
            parts.append(f"{rest // factor} {unit}")
            rest %= factor
        elif parts:
            break
    return " ".join(parts[:2])


def figure(value: float | None, digits: int = 3) -> str:
    """A metric or loss."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def ticks(text: str) -> Markup:
    """Escaped text whose `commands` stand in <code>."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # escaped first: no word of it is markup


def teach(templates: Jinja2Templates) -> Jinja2Templates:
    """Give the templates these words as filters."""
    templates.env.filters |= {"size": size, "duration": duration, "figure": figure, "ticks": ticks}
    return templates
