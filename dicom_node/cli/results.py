"""`fedpacs node results`: give back what was made of de-identified studies, under its original patient and study."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.cli.people import ByOption
from dicom_node.errors import NodeError

app = typer.Typer(help="Results that go back to the PACS: give, list.", no_args_is_help=True)


@app.command()
def give(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILE_OR_DIR...", help="DICOM-SEG and SR, or folders of them.")
    ],
    config: ConfigOption = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Re-identify results and keep them for the followed Orthanc, where the node stores each once. Audited.

    Exit codes: 4 or 5 nothing could be taken, 10 some could not.
    """
    from dicom_node.orthanc_reader.connect import open_clients
    from dicom_node.results import Results
    from dicom_node.results.store import in_order
    from dicom_node.scu.store import expand

    settings = find_config(config)
    files = in_order(path for path in expand(sources) if path.suffix not in (".json", ".jsonl"))
    clients, results = open_clients(settings), Results(settings)

    def fetch(sop_uid: str) -> bytes | None:
        return next(filter(None, (client.find_file(sop_uid) for client in clients)), None)

    taken: list[dict[str, object]] = []
    refused: dict[str, NodeError] = {}
    try:
        for path in files:
            try:
                one, new = results.take(path.read_bytes(), by or getpass.getuser(), fetch)
                taken.append({"file": str(path), "new": new, **asdict(one)})
            except NodeError as error:
                refused[str(path)] = error
    finally:
        results.close()
        for client in clients:
            client.close()
    if as_json:
        print_json({"taken": taken, "refused": {name: str(why) for name, why in refused.items()}})
    else:
        print(f"Took {len(taken)} of {len(files)}; the node stores them in the PACS.")
        for name, why in refused.items():
            print(f"  {name}: {why}")
    if refused and not taken:
        raise next(iter(refused.values()))
    if refused:
        raise typer.Exit(10)


@app.command("list")
def list_results(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List results and whether the PACS has them; nothing that identifies anybody."""
    from dicom_node.results import Results

    results = Results(find_config(config))
    found = results.all()
    results.close()
    if as_json:
        print_json({"results": [asdict(one) for one in found]})
        return
    rows = [(one.kind, one.title, one.study, one.state, one.reason) for one in found]
    print_table(f"Results: {len(found)}", ("kind", "title", "study", "state", "why it waits"), rows)
