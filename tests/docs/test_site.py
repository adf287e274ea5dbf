"""The documentation builds strictly, every link and picture is there, and the site asks no other host for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documented import PAGES, ROOT, links


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_strictly_with_every_page(site: Path) -> None:
    assert (site / "index.html").exists()
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).exists(), f"{page.name} is not in the site"


def test_the_site_asks_no_other_host(site: Path) -> None:
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'> ]+)"""
        r"""|<link\b[^>]*\bhref=["']?((?:https?:)?//[^"'> ]+)|url\(["']?((?:https?:)?//[^"')]+)|@import\s+["']((?:https?:)?//)""",
        re.IGNORECASE,
    )
    assert loaded.search('<link href="https://fonts.example/x.css">') and loaded.search("url(//cdn.example/f.woff)")
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css"):
            found = loaded.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(site)}: {found and found.group(0)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_exists(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}, of {sorted(slugs)}"
