"""How commands speak: one JSON object for machines, tables for people, and where the configuration is found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.config import NodeConfig, load_config
from dicom_node.errors import ConfigError

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="node.toml [default: $FEDPACS_CONFIG, then ./node.toml].", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def find_config(path: Path | None) -> NodeConfig:
    """The configuration named by --config, FEDPACS_CONFIG or ./node.toml. Raises ConfigError when there is none."""
    if path is not None:
        return load_config(path)
    named = os.environ.get("FEDPACS_CONFIG")
    if named:
        return load_config(named)
    if Path("node.toml").exists():
        return load_config("node.toml")
    raise ConfigError(
        "No node.toml here: give --config FILE, set FEDPACS_CONFIG, or make a node with `fedpacs node init DIR`."
    )


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1, default=str), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for people; wide enough on a pipe that no cell is cut."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console() if os.isatty(1) else Console(width=160)
    console.print(table)
