"""`fedpacs coordinator`: make a coordinator, let hospitals in, run a project, watch it, take its result out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import JsonOption, print_json, print_table

app = typer.Typer(help="The federation's coordinator: make it, let hospitals in, run projects.", no_args_is_help=True)
DirOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.", envvar="FEDPACS_COORDINATOR")
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make the coordinator in.")],
    host: Annotated[str, typer.Option("--host", help="Host name or IP address hospitals dial.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The one port they need.", min=1, max=65535)] = 9092,
    name: Annotated[str, typer.Option("--name", help="Who asks the hospitals.")] = "Coordinator",
    as_json: JsonOption = False,
) -> None:
    """Make DIR/coordinator.toml, the coordinator's keys, and its own TLS authority and certificate."""
    from aggregator_client.coordinator import settings

    config = settings.create(folder, name=name, host=host, port=port)
    fingerprint = config.keys().fingerprint
    if as_json:
        print_json({"config": str(config.path), "url": config.url, "fingerprint": fingerprint})
        return
    print(f"Made {config.path}; hospitals will dial {config.url}.")
    print(f"Fingerprint of your keys: {fingerprint} (read it out to each hospital you invite).")
    print(
        f"Keep a copy of {config.storage.keys} elsewhere. Next: fedpacs coordinator invite NAME --out FILE --dir {folder}"
    )


@app.command()
def invite(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name in the federation.")],
    out: Annotated[Path, typer.Option("--out", help="File to send to that hospital.")],
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write one hospital's invitation: address, TLS authority, your public keys and its token."""
    from aggregator_client.coordinator import settings

    config = settings.load(folder)
    invitation = config.invite(site)
    invitation.write(out)
    if as_json:
        print_json({"file": str(out), "site": site, "address": config.url, "fingerprint": invitation.fingerprint})
        return
    print(f"Wrote {out} for {site!r}. Send it to that hospital alone: whoever holds it can enrol under that name.")
    print(f"Read this fingerprint to them over the telephone: {invitation.fingerprint}")


@app.command()
def enrol(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The enrolment the hospital sent back.")],
    folder: DirOption = Path(),
    expect: Annotated[str, typer.Option("--expect", help="Fingerprint the hospital read out; refuse any other.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="The hospital made new keys: replace the old ones.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a hospital in with the public keys it sent."""
    from aggregator_client.coordinator import settings
    from aggregator_client.errors import RefusedError
    from aggregator_client.invitations import Enrolment

    config = settings.load(folder)
    enrolment = Enrolment.read(file)
    if expect and expect.strip().lower() != enrolment.fingerprint:
        raise RefusedError(
            f"{file} carries keys with fingerprint {enrolment.fingerprint}, not {expect}: call {enrolment.site!r} again."
        )
    member = config.members.enrol(enrolment, replace=replace)
    if as_json:
        print_json({"site": member.name, "fingerprint": member.fingerprint})
        return
    print(f"{member.name!r} is enrolled. Its fingerprint: {member.fingerprint} (compare it over the telephone).")


@app.command()
def members(folder: DirOption = Path(), as_json: JsonOption = False) -> None:
    """List the hospitals invited and enrolled."""
    from aggregator_client.coordinator import settings

    config = settings.load(folder)
    enrolled = {member.name: member for member in config.members.list()}
    names = sorted(set(config.members.invited()) | enrolled.keys())
    rows = [
        {
            "site": name,
            "enrolled": name in enrolled,
            "fingerprint": enrolled[name].fingerprint if name in enrolled else None,
            "since": enrolled[name].enrolled_at if name in enrolled else None,
        }
        for name in names
    ]
    if as_json:
        print_json({"members": rows})
        return
    table = [
        (row["site"], "enrolled" if row["enrolled"] else "invited", row["fingerprint"], _when(row["since"]))
        for row in rows
    ]
    print_table("Hospitals", ("site", "state", "fingerprint", "since"), table)


@app.command()
def remove(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The hospital to take out.")], folder: DirOption = Path()
) -> None:
    """Take a hospital out: its keys and its invitation are void from the next start of a run."""
    from aggregator_client.coordinator import settings

    settings.load(folder).members.remove(site)
    print(f"{site!r} is out.")


def _when(at: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if isinstance(at, float) else ""
