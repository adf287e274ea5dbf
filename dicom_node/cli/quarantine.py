"""`fedpacs node quarantine`: what was set aside and why; send it through again, or erase it."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.cli.people import ByOption
from dicom_node.errors import InputError
from dicom_node.quarantine import Quarantine

app = typer.Typer(help="What was set aside, and why: list, release, purge.", no_args_is_help=True)
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[NUMBER...]", help="Numbers as `list` shows them.", show_default=False)
]
AllOption = Annotated[bool, typer.Option("--all", help="Everything that is listed.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]


@app.command("list")
def list_quarantine(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List what is set aside: number, study, modality, SOP class, reason; nothing that identifies anybody."""
    with Quarantine(find_config(config)) as quarantine:
        found = quarantine.entries()
    if as_json:
        print_json({"set_aside": [asdict(one) for one in found]})
        return
    rows = [(str(o.number), str(o.study), o.modality, o.sop_class, o.kind, o.reason) for o in found]
    print_table(
        f"Set aside: {len(found)}", ("number", "study", "modality", "SOP class", "set aside by", "reason"), rows
    )


@app.command()
def show(number: Annotated[int, typer.Argument(metavar="NUMBER")], config: ConfigOption = None) -> None:
    """Show one, as JSON."""
    with Quarantine(find_config(config)) as quarantine:
        found = {one.number: one for one in quarantine.entries()}
    if number not in found:
        raise InputError(f"Number {number} is not set aside; list what is with `fedpacs node quarantine list`.")
    print_json(asdict(found[number]))


@app.command()
def release(
    numbers: Numbers = None,
    everything: AllOption = False,
    config: ConfigOption = None,
    by: ByOption = None,
    reason: ReasonOption = "",
) -> None:
    """Send the studies of these through de-identification again; what still cannot be proven clean comes back here."""
    with Quarantine(find_config(config)) as quarantine:
        chosen = _chosen(quarantine, numbers, everything, releasable=True)
        studies = quarantine.release(chosen, by or getpass.getuser(), reason)
    print(f"{studies} {'study goes' if studies == 1 else 'studies go'} through de-identification again.")


@app.command()
def purge(
    numbers: Numbers = None,
    everything: AllOption = False,
    config: ConfigOption = None,
    by: ByOption = None,
    reason: ReasonOption = "",
) -> None:
    """Erase these for good, here and in the spool."""
    with Quarantine(find_config(config)) as quarantine:
        erased = quarantine.purge(
            _chosen(quarantine, numbers, everything, releasable=False), by or getpass.getuser(), reason
        )
    print(f"Erased {erased}.")


def _chosen(quarantine: Quarantine, numbers: list[int] | None, everything: bool, *, releasable: bool) -> list[int]:
    if bool(numbers) == everything:
        raise InputError("Name the numbers, or --all, and not both; `fedpacs node quarantine list` shows them.")
    if numbers:
        return numbers
    return [o.number for o in quarantine.entries() if not releasable or o.kind in ("worker", "study")]
