"""`fedpacs node`: make a hospital's node, run it, ask how it is, steer it."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli import accounts, backup, labels, optout, peers, pull, quarantine, results
from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json
from dicom_node.cli.people import ByOption
from dicom_node.errors import RefusedError

app = typer.Typer(help="The hospital's node: make it, run it, ask it, steer it.", no_args_is_help=True)
app.add_typer(labels.app, name="labels")
app.add_typer(optout.app, name="optout")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(accounts.app, name="account")
app.add_typer(results.app, name="results")
peers.add_to(app)
backup.add_to(app)
app.command()(pull.pull)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make the node in.")],
    ae_title: Annotated[str, typer.Option("--ae-title", help="AE title modalities send to.")] = "FEDPACS",
    port: Annotated[int, typer.Option("--port", help="DICOM port.", min=1, max=65535)] = 11112,
    http_port: Annotated[
        int, typer.Option("--http-port", help="Port of the console and REST interface.", min=1, max=65535)
    ] = 8080,
    name: Annotated[str, typer.Option("--name", help="How this hospital is called in the federation.")] = "hospital",
    networks: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-network", metavar="CIDR", help="A network that may connect, like 10.20.0.0/16; repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make DIR/node.toml, commented and ready to run, with its guarded folders and keys."""
    from dicom_node.setup import write_default_config

    file = write_default_config(
        folder, ae_title=ae_title, port=port, http_port=http_port, name=name, networks=networks or ()
    )
    if as_json:
        print_json({"config": str(file), "ae_title": ae_title, "port": port, "http_port": http_port, "name": name})
        return
    where = " and in " + ", ".join(networks) if networks else " (for others: --allow-network, or node.toml)"
    print(f"Made {file}. It accepts any calling AE on this machine{where}; next: fedpacs node run --config {file}")


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run the node until Ctrl-C or SIGTERM: receiver, workers, console, Orthanc reader, federation."""
    from dicom_node import daemon

    raise typer.Exit(daemon.run(find_config(config)))


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What was received, from whom, how far it got, what waits, and what is wrong."""
    from dicom_node.web.view import NodeView
    from dicom_node.web.work import gpus

    found = find_config(config)
    if not found.storage.spool.exists():
        raise RefusedError(f"The node in {found.root} has no spool yet: run it once with `fedpacs node run`.")
    view = NodeView(found)
    try:
        facts = {**view.status(), "gpus": gpus(), "left": view.egress_total()}
    finally:
        view.close()
    if as_json:
        print_json(facts)
        return
    from dicom_node.cli.status import show

    show(facts)


@app.command()
def pause(
    config: ConfigOption = None,
    by: ByOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "",
) -> None:
    """Stop de-identification and training; receiving goes on."""
    from dicom_node.pause import pause as pause_node

    changed = pause_node(find_config(config), by or getpass.getuser(), reason)
    print("Paused." if changed else "It was paused already.")


@app.command()
def resume(config: ConfigOption = None, by: ByOption = None) -> None:
    """Take a pause back."""
    from dicom_node.pause import resume as resume_node

    changed = resume_node(find_config(config), by or getpass.getuser())
    print("Resumed." if changed else "It was not paused.")


@app.command()
def reindex(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Rebuild spool.db from the segment files (the node must be stopped)."""
    from dicom_node.spool import reindex as rebuild

    found = find_config(config)
    report = rebuild(found.storage.spool)
    if as_json:
        print_json(report.__dict__)
    else:
        print(
            f"Rebuilt {found.storage.spool / 'spool.db'}: " + ", ".join(f"{v} {k}" for k, v in report.__dict__.items())
        )
