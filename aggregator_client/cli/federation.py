"""`fedpacs federation`: a hospital accepts a coordinator's invitation and answers with its own public keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from aggregator_client.cli import rotation
from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json
from dicom_node.config import NodeConfig

app = typer.Typer(help="A hospital's membership in a federation: join it, show it.", no_args_is_help=True)
app.command("rotate")(rotation.rotate_node)
app.command("revoke")(rotation.revoke_coordinator)


@app.command()
def join(
    invitation: Annotated[Path, typer.Argument(metavar="INVITATION", help="The file the coordinator sent.")],
    out: Annotated[Path, typer.Option("--out", help="Enrolment to write and send back.")],
    config: ConfigOption = None,
    expect: Annotated[
        str, typer.Option("--expect", help="Fingerprint the coordinator read out; refuse any other.")
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Leave the federation joined before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accept an invitation: keep it, make this node's keys, write the enrolment to send back.

    Fills in `[federation] coordinator` in node.toml; restart the node afterwards when it is running.
    """
    from aggregator_client import invitations
    from aggregator_client.approvals import audit
    from aggregator_client.errors import RefusedError
    from aggregator_client.keys import node_keys

    node = find_config(config)
    found = invitations.Invitation.read(invitation)
    if expect and expect.strip().lower() != found.fingerprint:
        raise RefusedError(
            f"{invitation} carries keys with fingerprint {found.fingerprint}, not {expect}: it was replaced on its way;"
            " do not join, and call the coordinator."
        )
    _require_free(node, found, replace)
    keys = node_keys(node.storage.keys)
    invitations.accept(found, keys).write(out)
    found.write(node.federation.invitation)
    written = _set_coordinator(node, found.address)
    audit(
        node, "federation.joined", coordinator=found.coordinator, address=found.address, fingerprint=found.fingerprint
    )
    facts = {
        "coordinator": found.coordinator,
        "address": found.address,
        "coordinator_fingerprint": found.fingerprint,
        "site": found.site,
        "fingerprint": keys.fingerprint,
        "enrolment": str(out),
        "node_toml_changed": written,
    }
    if as_json:
        print_json(facts)
        return
    print(f"Joined the federation of {found.coordinator} ({found.address}) as {found.site!r}.")
    print(f"Coordinator's fingerprint: {found.fingerprint}  (compare over the telephone)")
    print(f"Your node's fingerprint:   {keys.fingerprint}  (read it to the coordinator)")
    print(f"Send {out} back to the coordinator.")
    if node.federation.coordinator not in ("", found.address):
        print(f"node.toml names {node.federation.coordinator} as coordinator: set it to {found.address}.")


@app.command()
def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which federation this hospital joined, and both fingerprints."""
    from aggregator_client.approvals import invitation_of
    from aggregator_client.keys import node_keys

    node = find_config(config)
    found = invitation_of(node)
    facts = {
        "coordinator": found.coordinator,
        "address": found.address,
        "coordinator_fingerprint": found.fingerprint,
        "site": found.site,
        "fingerprint": node_keys(node.storage.keys).fingerprint,
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name.replace('_', ' ') + ':':26}{value}")


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Connect to the coordinator as the node would, and say whether it answers. Exit code 6 when it does not."""
    from aggregator_client.approvals import invitation_of
    from aggregator_client.reach import reach

    node = find_config(config)
    found = invitation_of(node)
    address = node.federation.coordinator or found.address
    milliseconds = reach(address, found.ca_pem)
    if as_json:
        print_json({"coordinator": found.coordinator, "address": address, "connect_ms": milliseconds})
        return
    print(f"{found.coordinator} answers at {address} with the certificate of the invitation ({milliseconds} ms).")


@app.command()
def relay(
    project: Annotated[Path, typer.Option("--project", help="The signed project whose members may use the relay.")],
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where it keeps their sealed messages.")],
    host: Annotated[str, typer.Option("--host", help="Name or address the members dial.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The port they dial.", min=1, max=65535)] = 9095,
    listen: Annotated[
        str, typer.Option("--listen", help="Address of this machine to listen on; that of --host if left out.")
    ] = "",
) -> None:
    """Run a mailbox for a decentralised project, at any hospital. It holds sealed messages and reads none of them.

    Its address, with the digest of its own certificate, is what the project names under peers.relays:
    `fedpacs federation relay-address`.
    """
    import base64

    from aggregator_client.decentral.serve import address_of, serve
    from aggregator_client.errors import ProjectError
    from aggregator_client.project import SignedProject

    signed = SignedProject.read(project)
    members = [base64.b64decode(one.signing_public) for one in signed.document.peers.sites.values()]
    if not members:
        raise ProjectError(f"The project {signed.document.name} is not decentralised: it needs no relay.")
    url = address_of(folder, host, port)
    serve(folder, signed.digest, members, listen or host, port, lambda: print(f"The relay serves {url}", flush=True))


@app.command("relay-address")
def relay_address(
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="The relay's folder; made when it is new.")],
    host: Annotated[str, typer.Option("--host", help="Name or address the members will dial.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The port they dial.", min=1, max=65535)] = 9095,
    as_json: JsonOption = False,
) -> None:
    """Make a relay's certificate and print the address that the project's draft names under peers.relays."""
    from aggregator_client.decentral.serve import address_of

    url = address_of(folder, host, port)
    print_json({"address": url}) if as_json else print(url)


@app.command()
def ledger(
    project: Annotated[
        str, typer.Argument(metavar="PROJECT", help="A signed project file, or the digest of one known here.")
    ],
    file: Annotated[Path | None, typer.Option("--file", help="Another node's ledger, to check it offline.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the ledger of a decentralised project and show its rounds: whose updates, which model, who signed."""
    from aggregator_client.cli.project import resolve
    from aggregator_client.decentral.chain import read, verify
    from aggregator_client.decentral.rounds import home_of

    node = None if file is not None and config is None and Path(project).is_file() else find_config(config)
    signed = resolve(project, node)
    chain = read(home_of(find_config(config), signed.digest) / "ledger.jsonl" if file is None else file)
    members = signed.document.peers.members()
    model = verify(chain, members, signed.digest)
    rounds = [
        {
            "round": one.block.round,
            "block": one.block.digest(),
            "model": one.block.model,
            "used": ", ".join(name for name, _ in one.block.used),
            "signed": ", ".join(sorted(one.votes)),
        }
        for one in chain
    ]
    if as_json:
        print_json(
            {"project": signed.digest, "members": [one.name for one in members], "rounds": rounds, "model": model}
        )
        return
    for one in rounds:
        print(f"round {one['round']}: model {str(one['model'])[:16]} of {one['used']}; signed by {one['signed']}")
    print(f"{len(rounds)} of {signed.document.rounds} rounds are agreed; every block and signature holds.")


def _require_free(node: NodeConfig, found: object, replace: bool) -> None:
    from aggregator_client.errors import RefusedError
    from aggregator_client.invitations import Invitation

    file = node.federation.invitation
    if replace or not file.exists():
        return
    known = Invitation.read(file)
    if isinstance(found, Invitation) and known.fingerprint != found.fingerprint:
        raise RefusedError(
            f"This hospital has joined the federation of {known.coordinator!r} ({known.fingerprint}) already: give --replace"
            " to leave it, which makes projects approved for it unusable."
        )


def _set_coordinator(node: NodeConfig, address: str) -> bool:
    """Fill in an empty [federation] coordinator in node.toml; a value somebody set is theirs to change."""
    if node.federation.coordinator:
        return False
    lines = node.path.read_text(encoding="utf-8").splitlines()
    wanted = f'coordinator = "{address}"'
    section = next((index for index, line in enumerate(lines) if line.strip() == "[federation]"), None)
    if section is None:
        lines += ["", "[federation]", wanted]
    else:
        end = next((index for index in range(section + 1, len(lines)) if lines[index].startswith("[")), len(lines))
        empty = re.compile(r'coordinator\s*=\s*""')
        place = next((index for index in range(section + 1, end) if empty.match(lines[index])), None)
        if place is None:
            lines.insert(section + 1, wanted)
        else:
            lines[place] = empty.sub(lambda _: wanted, lines[place], count=1)
    _replace(node.path, "\n".join(lines) + "\n")
    return True


def _replace(file: Path, text: str) -> None:
    from aggregator_client.invitations import write_file

    mode = file.stat().st_mode & 0o777
    write_file(file, text.encode())
    file.chmod(mode)
