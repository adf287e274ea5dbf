"""`fedpacs node labels`: attach labels to studies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json

app = typer.Typer(help="Labels of studies, from a CSV keyed by accession number.", no_args_is_help=True)


@app.command("import")
def import_labels(
    file: Annotated[
        Path, typer.Argument(metavar="CSV", help="Header row; accession_number and one column per label name.")
    ],
    config: ConfigOption = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="A label column that must be there (repeatable).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import labels; rows whose study has not arrived wait for it. Exit code 10 when single rows were set aside."""
    from dicom_node.labels import import_csv

    report = import_csv(find_config(config), file, tuple(column or ()))
    if as_json:
        print_json(report.as_dict())
    else:
        aside = len(report.problems)
        print(f"{report.rows} rows: {report.landed} landed, {report.waiting} wait for their study, {aside} set aside.")
        for problem in report.problems:
            print(f"fedpacs: {file.name}, {problem}", file=sys.stderr)
    if report.problems:
        raise typer.Exit(10)
