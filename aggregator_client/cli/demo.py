"""`fedpacs demo`: a federation on this machine, end to end, on shipped data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run; an earlier demo's folder is cleared.")] = Path("demo"),
    sites: Annotated[int, typer.Option(min=2, max=5, help="How many hospitals.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How many rounds the project has.")] = 12,
    studies: Annotated[
        int | None, typer.Option(min=60, help="Only so many studies a hospital, for a quick look; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Run hospitals and a coordinator on this machine, from C-STORE to a global model, and report.

    Real parts throughout: node daemons with their own folders, AE titles and keys; a modality that sends chest X-rays
    (CC BY 4.0, shipped) by C-STORE; de-identification; labels by accession number; a project each hospital approves;
    training inside each node; sealed updates over Flower. The hospitals and every identity are invented.

    Leaves OUT/report.html and prints how training alone, federated and on pooled images compare. Ctrl-C stops everything.
    """
    from rich.console import Console

    from aggregator_client.demo.federation import run_demo

    result, report = run_demo(out, sites, rounds, studies)
    if as_json:
        print(json.dumps(result.contract(str(report))))
        return
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = 110  # a file or a pipe has no width to fit into
    console.print(result.table())
    console.print(result.verdict())
    for note in result.notes:
        console.print(f"Note: {note}")
    console.print(f"Report: {report}")
