"""What the documentation says: its pages, its command lines, its links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
WRITTEN_BY_CODE = {"commands.md", "settings.md"}


@dataclass(frozen=True)
class Line:
    """One command line. `inline` ones may name a command alone, without what it needs."""

    page: str
    number: int
    words: tuple[str, ...]
    inline: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {' '.join(self.words)}"


def command_lines(program: str = "fedpacs") -> Iterator[Line]:
    """Every `program ...` of an indented or fenced block, or between backticks."""
    for page in PAGES:
        if page.name in WRITTEN_BY_CODE or page.is_symlink():
            continue
        fenced = False
        lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
        for number, line in lines:
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif fenced or line.startswith("    "):
                while line.endswith("\\"):
                    line = line[:-1] + next(lines)[1]
                # at the start, by its path, or as the command of another program (podman, runuser, cron)
                found = re.search(rf"(?:^\s+|/bin/){program} |\s{program} (?=node |coordinator )", line.split(" # ")[0])
                if found:
                    text = program + " " + line[found.end() :].split("   ")[0]
                    yield Line(page.name, number, _words(text), False)
            else:
                for text in re.findall(rf"`({program} [^`]+)`", line):
                    yield Line(page.name, number, _words(text), True)


def _words(text: str) -> tuple[str, ...]:
    """The words as a person would type them: the first of `a|b` and `a | b`, optional `[...]` given, ellipses left out."""
    text = re.sub(r"\$\([^)]*\)", "x", text.replace("…", "...").split(" # ")[0].split(" | ")[0])
    words: list[str] = []
    for word in shlex.split(text):
        if word != "..." or (words and words[-1].startswith("--")):
            words.append(word.strip("[]").split("|")[0])
    return tuple(words)


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures, without those on other hosts."""
    text = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target
