"""Every claim of docs/threat-model.md names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = TESTS.parent / "docs" / "threat-model.md"


def test_every_named_test_exists() -> None:
    named = 0
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        file = ""
        for given, test in re.findall(r"`([\w/]+\.py)?::(\w+)`", row):
            file = (given if "/" in given else f"aggregator_client/{given}") if given else file
            assert file, f"::{test} stands before any file"
            assert re.search(rf"^(async )?def {test}\(", (TESTS / file).read_text(encoding="utf-8"), re.M), (
                f"{file}::{test}"
            )
            named += 1
    assert named >= 20
