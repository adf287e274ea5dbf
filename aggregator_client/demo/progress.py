"""What the demo shows while it works: a live table on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


@dataclass
class SiteLine:
    """What is known of one hospital; every figure is read from the hospital's own node."""

    name: str
    total: int = 0
    sent: int = 0
    received: int = 0
    deidentified: int = 0
    studies: int = 0
    set_aside: int = 0
    """Studies quarantined (not proven clean) or excluded by the hospital's policy."""
    labelled: int = 0
    approved: bool = False
    round: int = 0
    rounds: int = 0
    loss: float | None = None
    bytes_out: int = 0

    def words(self) -> str:
        """One plain line: what has been received, de-identified, labelled, trained."""
        parts = [f"received {self.received}/{self.total}", f"de-identified {self.deidentified}"]
        if self.set_aside:
            parts.append(f"set aside {self.set_aside} studies")
        if self.labelled:
            parts.append(f"labelled {self.labelled}")
        if self.approved:
            parts.append("project approved")
        if self.round:
            loss = f", loss {self.loss:.3f}" if self.loss is not None else ""
            parts.append(f"trained round {self.round}/{self.rounds}{loss}")
        return f"{self.name}: {', '.join(parts)}"


class Board(Protocol):
    """Where progress goes. `lines` are changed in place, then `refresh` is called."""

    lines: list[SiteLine]

    def say(self, text: str) -> None: ...
    def phase(self, text: str) -> None: ...
    def refresh(self) -> None: ...
    def __enter__(self) -> Board: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def board(names: Sequence[str], stream: IO[str] | None = None) -> Board:
    """A live board when `stream` (stderr by default) is a terminal, a plain one otherwise."""
    stream = stream or sys.stderr
    lines = [SiteLine(name) for name in names]
    return LiveBoard(lines, Console(file=stream)) if stream.isatty() else PlainBoard(lines, stream)


@dataclass
class PlainBoard:
    """Prints a hospital's line when it changes, at most one every `every` seconds a hospital."""

    lines: list[SiteLine]
    stream: IO[str]
    every: float = 5.0
    started: float = field(default_factory=time.monotonic)
    _said: dict[str, tuple[float, str]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", file=self.stream, flush=True)

    def phase(self, text: str) -> None:
        self.refresh(force=True)
        self.say(text)

    def refresh(self, force: bool = False) -> None:
        for line in self.lines:
            at, words = self._said.get(line.name, (float("-inf"), SiteLine(line.name).words()))
            blank = line.received == 0 and line.sent == 0
            if not blank and words != line.words() and (force or time.monotonic() - at >= self.every):
                self._said[line.name] = (time.monotonic(), line.words())
                self.say(line.words())

    def __enter__(self) -> PlainBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.refresh(force=True)


@dataclass
class LiveBoard:
    """A table of the hospitals that is redrawn in place, with the present step below it."""

    lines: list[SiteLine]
    console: Console
    started: float = field(default_factory=time.monotonic)
    _phase: str = ""

    def __post_init__(self) -> None:
        self._spinner = Spinner("dots")
        self._live = Live(self, console=self.console, refresh_per_second=8, transient=True)

    def say(self, text: str) -> None:
        self.console.print(Text(f"{time.monotonic() - self.started:6.1f} s  ", style="dim") + Text(text))

    def phase(self, text: str) -> None:
        if self._phase:
            self.say(self._phase)
        self._phase = text

    def refresh(self) -> None:
        """The live display draws itself from `lines`."""

    def __rich__(self) -> Group:
        self._spinner.text = Text(f" {self._phase}  ({time.monotonic() - self.started:.0f} s)")
        return Group(self._table(), self._spinner)

    def _table(self) -> Table:
        table = Table(title="fedpacs demo", title_justify="left", title_style="bold", expand=False)
        for heading in ("hospital", "received", "de-identified", "labelled", "project", "round", "loss", "sent out"):
            table.add_column(heading, justify="left" if heading in ("hospital", "project") else "right")
        for line in self.lines:
            table.add_row(
                line.name,
                f"{line.received}/{line.total}",
                str(line.deidentified),
                str(line.labelled),
                "approved" if line.approved else "–",
                f"{line.round}/{line.rounds}" if line.rounds else "–",
                f"{line.loss:.3f}" if line.loss is not None else "–",
                human_bytes(line.bytes_out),
            )
        return table

    def __enter__(self) -> LiveBoard:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()
        if kind is None:
            self.console.print(self._table())


def human_bytes(count: float) -> str:
    """1536 → "1.5 kB" (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
