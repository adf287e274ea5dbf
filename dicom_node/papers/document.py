"""A paper as sections of sentences and tables, written as Markdown or HTML, with every blank marked."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_BLANK = re.compile(r"\[BLANK: [^\]]+\]")


def blank(what: str) -> str:
    """What only the hospital can say."""
    return f"[BLANK: {what}]"


@dataclass(frozen=True)
class Section:
    """A heading, sentences (one bullet each) and at most one table, whose first row is its header."""

    title: str
    lines: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Paper:
    title: str
    made: str
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def blanks(self) -> list[str]:
        """Every blank that is left, in order."""
        return _BLANK.findall(self.markdown().split("\n## ", 1)[-1])

    def markdown(self) -> str:
        parts = [f"# {self.title}", "", self.made, ""]
        for section in self.sections:
            parts += [f"## {section.title}", ""]
            parts += [f"- {line}" for line in section.lines]
            if section.lines:
                parts.append("")
            if section.table:
                rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in section.table]
                parts += [rows[0], "|" + "---|" * len(section.table[0]), *rows[1:], ""]
        return "\n".join(parts)

    def html(self) -> str:
        body = [f"<h1>{_escaped(self.title)}</h1>", f"<p>{_escaped(self.made)}</p>"]
        for section in self.sections:
            body.append(f"<h2>{_escaped(section.title)}</h2>")
            if section.lines:
                body.append("<ul>" + "".join(f"<li>{_escaped(line)}</li>" for line in section.lines) + "</ul>")
            if section.table:
                body.append(_table(section.table))
        style = (
            "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
            "table{border-collapse:collapse}td,th{border:1px solid #999;padding:.3em .6em;text-align:left;vertical-align:top}"
            "mark{background:#ffe08a}"
        )
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_escaped(self.title)}</title>'
            f"<style>{style}</style></head><body>{''.join(body)}</body></html>\n"
        )


def _escaped(text: str) -> str:
    return _BLANK.sub(lambda found: f"<mark>{found[0]}</mark>", html.escape(text))


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_escaped(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
