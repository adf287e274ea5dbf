"""`fedpacs plugin`: put the plugin into an Orthanc's configuration, and take it out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json
from dicom_node.plugin_setup import Done, OrthancFolder
from dicom_node.plugin_setup import install as put_in
from dicom_node.plugin_setup import uninstall as take_out

app = typer.Typer(
    help="The plugin in Orthanc: install, uninstall. Orthanc reads it at its next start.", no_args_is_help=True
)
OrthancOption = Annotated[
    Path, typer.Option("--orthanc", metavar="DIR", help="Orthanc's configuration folder, like /etc/orthanc.")
]
UrlOption = Annotated[
    str, typer.Option("--url", help="The node, as Orthanc reaches it [default: that of node.toml].", show_default=False)
]


@app.command()
def install(
    orthanc: OrthancOption, config: ConfigOption = None, url: UrlOption = "", as_json: JsonOption = False
) -> None:
    """Put the script folder, the token and a section Fedpacs into DIR; again after each update of fedpacs.

    Comments and settings that are there stay. Without node.toml on this machine, copy the token yourself.
    """
    folder = OrthancFolder(orthanc)
    token = ""
    if config is not None or os.environ.get("FEDPACS_CONFIG") or Path("node.toml").exists():
        from dicom_node.daemon import console_url
        from dicom_node.web.app import read_token

        settings = find_config(config)
        token, socket = read_token(settings), settings.web.unix_socket
        url = url or (f"unix://{socket}" if socket else console_url(settings.web).rstrip("/"))
    _tell(put_in(folder, url or "http://127.0.0.1:8080", token), as_json, "Restart Orthanc to load it.")


@app.command()
def uninstall(orthanc: OrthancOption, as_json: JsonOption = False) -> None:
    """Take out what `install` put in; a script that stood there before stands there again."""
    _tell(take_out(OrthancFolder(orthanc)), as_json, "Restart Orthanc to be without it.")


def _tell(done: Done, as_json: bool, next_step: str) -> None:
    if as_json:
        print_json({"changed": done.changed, "todo": done.todo})
        return
    for path in done.changed:
        print(f"changed {path}")
    print(next_step if done.changed else "Nothing to change.")
    for step in done.todo:
        print(f"To do: {step}.")
