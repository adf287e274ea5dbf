"""Subgroup metrics: told by attribute, small cells never."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.subgroups import age_band, subgroups, worst


def people(**counts: int) -> list[dict[str, object]]:
    return [{"sex": sex, "age_years": 50, "manufacturer": "A"} for sex, count in counts.items() for _ in range(count)]


def test_a_small_cell_and_the_next_smallest_are_suppressed() -> None:
    got = subgroups(people(F=30, M=20, O=3), lambda rows: float(len(rows)))
    assert got["sex"] == {
        "F": {"cases": 30, "metric": 30.0},
        "M": {"cases": None, "metric": None},
        "O": {"cases": None, "metric": None},
    }
    assert got["age"] == {"40-64": {"cases": 53, "metric": 53.0}}


@given(st.lists(st.sampled_from("FMO"), min_size=1, max_size=60), st.integers(2, 12))
def test_no_small_cell_can_be_computed_from_what_is_told(values: list[str], smallest: int) -> None:
    facts = [{"sex": v, "age_years": None, "manufacturer": ""} for v in values]
    cells = subgroups(facts, lambda rows: 0.5, smallest)["sex"]
    told = sum(int(c["cases"] or 0) for c in cells.values())
    assert all(c["cases"] is None or c["cases"] >= smallest for c in cells.values())
    hidden = [v for v, c in cells.items() if c["cases"] is None]
    if len(cells) > 1 and hidden:
        assert len(hidden) >= 2 and len(values) - told >= len(hidden)


def test_the_worst_subgroup_is_named() -> None:
    random = np.random.default_rng(0)
    facts = [{"sex": "FM"[n % 2], "age_years": 30, "manufacturer": "AB"[n // 50]} for n in range(100)]
    scores = random.random(100) + np.array([f["manufacturer"] == "A" for f in facts])
    got = subgroups(facts, lambda rows: float(scores[rows].mean()))
    found = worst(got)
    assert found is not None and (found["attribute"], found["value"], found["cases"]) == ("manufacturer", "B", 50)
    assert worst(subgroups(facts[:3], lambda rows: 1.0)) is None
    json.dumps(got)


def test_age_bands() -> None:
    assert [age_band(a) for a in (None, 0, 17, 18, 64, 65, 89)] == [
        "unknown",
        "0-17",
        "0-17",
        "18-39",
        "40-64",
        "65+",
        "65+",
    ]
