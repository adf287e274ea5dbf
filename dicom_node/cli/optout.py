"""`fedpacs node optout`: patients who do not take part."""

from __future__ import annotations

import getpass
import time
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.cli.people import ByOption

app = typer.Typer(help="Patients who do not take part, past and future.", no_args_is_help=True)
PatientArgument = Annotated[
    str,
    typer.Argument(metavar="PATIENT_ID", help="Patient ID as the PACS shows it; it is stored only as a keyed hash."),
]


@app.command()
def add(patient_id: PatientArgument, config: ConfigOption = None, by: ByOption = None) -> None:
    """Exclude a patient from now on, for all their studies."""
    from dicom_node.optout import opt_out

    withdrawn = opt_out(find_config(config), patient_id, by or getpass.getuser())
    print(f"Opted out; {withdrawn} studies withdrawn, future ones will be excluded.")


@app.command()
def remove(patient_id: PatientArgument, config: ConfigOption = None, by: ByOption = None) -> None:
    """Take an opt-out back."""
    from dicom_node.optout import opt_in

    readmitted = opt_in(find_config(config), patient_id, by or getpass.getuser())
    print(f"Opt-out removed; {readmitted} studies are eligible again.")


@app.command("list")
def list_optouts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List opt-outs by their keyed hash."""
    from dicom_node.optout import OptOuts
    from dicom_node.vault import Vault

    found = find_config(config)
    vault = Vault.open(found)
    optouts = OptOuts(found.storage.catalogue, vault).list()
    if as_json:
        print_json({"optouts": [one.__dict__ for one in optouts]})
        return
    rows = [(one.token[:16], time.strftime("%Y-%m-%d %H:%M", time.localtime(one.at)), one.by) for one in optouts]
    print_table("Opt-outs", ("keyed hash", "since", "by"), rows)
