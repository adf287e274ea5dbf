"""Metrics by subgroup of patients, with small cells suppressed so that no figure points at a few people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

SMALLEST_CELL = 10  # samples; below it neither count nor metric is told
_BANDS = ((0, 18), (18, 40), (40, 65), (65, 200))


def age_band(years: int | None) -> str:
    """The band of an age in whole years."""
    if years is None:
        return "unknown"
    low, high = next((band for band in _BANDS if band[0] <= years < band[1]), _BANDS[-1])
    return f"{low}+" if high == 200 else f"{low}-{high - 1}"


def field_band(tesla: float | None) -> str:
    """The nominal field of an MR scanner (1.494 T is a 1.5 T scanner); values in gauss are understood."""
    if tesla is None:
        return "unknown"
    value = float(tesla) / 10000 if float(tesla) > 100 else float(tesla)
    nominal = min((0.5, 1.0, 1.5, 3.0, 7.0), key=lambda one: abs(one - value))
    return f"{nominal:g} T" if abs(nominal - value) <= 0.25 else f"{value:.1f} T"


def kvp_band(kvp: float | None) -> str:
    """Tube voltage by bands of 20 kV."""
    if kvp is None:
        return "unknown"
    low = int(float(kvp) // 20) * 20
    return f"{low}-{low + 19} kV"


def subgroups(
    facts: Sequence[Mapping[str, Any]],
    measure: Callable[[np.ndarray], float | None],
    smallest: int = SMALLEST_CELL,
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """{attribute: {value: {"cases", "metric"}}} for sex, age band, manufacturer, and field strength or tube voltage.

    facts: one mapping a sample. measure: row numbers → the metric. A cell below `smallest` becomes {"cases": None,
    "metric": None}; when only one cell of an attribute is that small, the next smallest is suppressed with it, so that the
    total does not give it away.
    """
    columns = {
        "sex": [str(f.get("sex") or "unknown") for f in facts],
        "age": [age_band(f.get("age_years")) for f in facts],
        "manufacturer": [str(f.get("manufacturer") or "unknown") for f in facts],
    }
    for name, text in (("field_strength", field_band), ("kvp", kvp_band)):
        if any(f.get(name) is not None for f in facts):  # an MR has no tube voltage and an X-ray no field strength
            columns[name] = [text(f.get(name)) for f in facts]
    return {name: _cells(np.array(values, dtype=object), measure, smallest) for name, values in columns.items()}


def _cells(
    values: np.ndarray, measure: Callable[[np.ndarray], float | None], smallest: int
) -> dict[str, dict[str, float | int | None]]:
    rows = {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
    hidden = {value for value, mine in rows.items() if len(mine) < smallest}
    if len(hidden) == 1 and len(rows) > 1:
        hidden.add(min((v for v in rows if v not in hidden), key=lambda v: len(rows[v])))
    out: dict[str, dict[str, float | int | None]] = {}
    for value, mine in rows.items():
        if value in hidden:
            out[value] = {"cases": None, "metric": None}
        else:
            found = measure(mine)
            out[value] = {"cases": len(mine), "metric": None if found is None else round(found, 6)}
    return out


def worst(groups: Mapping[str, Mapping[str, Mapping[str, float | int | None]]]) -> dict[str, Any] | None:
    """The told cell with the lowest metric: {"attribute", "value", "cases", "metric"}; None when no cell is told."""
    cells = [
        {"attribute": name, "value": value, **cell}
        for name, mine in groups.items()
        for value, cell in mine.items()
        if cell["metric"] is not None
    ]
    return min(cells, key=lambda cell: float(cell["metric"] or 0.0)) if cells else None
