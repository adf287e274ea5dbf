"""The pictures of docs/results.md show what the benchmarks' rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots


def row(scenario: str, seed: int, algorithm: str, test: float) -> dict[str, Any]:
    return {"task": "chest", "scenario": scenario, "seed": seed, "algorithm": algorithm, "test": test}


ROWS = [
    row("iid", 0, "cds", 0.8),
    row("iid", 1, "cds", 0.5),
    row("iid", 1, "fedavg", 0.4),
    row("iid", 0, "fedavg", 0.4),
    row("iid", 2, "fedavg", 0.9),
    row("dirichlet-0.1", 0, "cds", 1.0),
    row("dirichlet-0.1", 0, "cyclic", 0.7),
    row("dirichlet-1.0", 0, "cyclic", 0.7),
]


def test_a_seed_is_compared_with_pooled_data_of_its_own_seed() -> None:
    assert plots.percent_by_seed(ROWS[:5], "fedavg") == pytest.approx([80.0, 50.0])


def test_the_picture_of_skews_names_what_was_measured_beside_pooled_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "rows.jsonl"
    kept.write_text(
        "".join(json.dumps(one) + "\n" for one in [*ROWS, {**ROWS[0], "task": "retina", "algorithm": "x1"}])
    )
    monkeypatch.setattr("sys.argv", ["plots", "--skews", str(kept), "--docs", str(tmp_path)])
    assert plots.main() == 0
    drawn = (tmp_path / "skews.svg").read_text()
    assert all(f">{word}<" in drawn for word in ("iid", "dirichlet-0.1", "fedavg", "cyclic"))
    assert not any(f">{word}<" in drawn for word in ("dirichlet-1.0", "feature-shift", "cds", "x1"))
