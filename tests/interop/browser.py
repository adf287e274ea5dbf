"""Debian's chromium driven by Playwright, and axe-core from npm; tests skip out loud where one is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ARTEFACTS = Path(__file__).resolve().parents[2] / ".artefacts"
AXE = "axe-core@4.14.1"
SERIOUS = ("serious", "critical")


@contextmanager
def browser() -> Iterator[Any]:
    """Headless, ended with the block."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    ARTEFACTS.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield one
        finally:
            one.close()


@cache
def axe(folder: Path) -> str:
    """axe-core's script, installed by npm into `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing, so axe-core cannot be installed: apt-get install npm")
    argv = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), AXE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {AXE}: {done.stderr.strip()[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Any, script: str) -> list[str]:
    """axe's serious and critical findings on the page as it stands (WCAG 2.2 A and AA, and its best practices)."""
    page.evaluate(script)
    found = page.evaluate("() => axe.run()")["violations"]
    return [
        f"{one['id']}: {one['help']}: {'; '.join(node['html'][:120] for node in one['nodes'][:3])}"
        for one in found
        if one["impact"] in SERIOUS
    ]
