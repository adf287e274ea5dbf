"""`fedpacs audit`: read the hash-chained log, prove it whole, take it out as JSON lines."""

from __future__ import annotations

import getpass
import hashlib
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.audit import AuditLog
from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError
from dicom_node.vault import Vault

app = typer.Typer(help="The hash-chained record of what happened and what left the hospital.", no_args_is_help=True)
KindOption = Annotated[str | None, typer.Option("--kind", help="Only records of this kind, e.g. egress.")]


def _open(config: NodeConfig) -> AuditLog:
    if not config.storage.audit.exists():
        raise InputError(f"{config.storage.audit} does not exist: the node has not run yet.")
    return AuditLog(config.storage.audit, readonly=True)


@app.command()
def show(
    config: ConfigOption = None,
    kind: KindOption = None,
    since: Annotated[int, typer.Option("--since", help="Only records after this number.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show the records, oldest first."""
    records = list(_open(find_config(config)).records(kind, since))
    if as_json:
        print_json({"records": [record.as_dict() for record in records]})
        return
    rows = [
        (record.seq, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.at)), record.kind, _short(record.facts))
        for record in records
    ]
    print_table("Audit log (times in UTC)", ("no.", "when", "what", "facts"), rows)


@app.command()
def verify(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Prove the chain whole; exit code 8 and the first broken record when it is not."""
    log = _open(find_config(config))
    verdict = log.verify()
    if as_json:
        print_json(verdict.__dict__)
        if not verdict.ok:
            raise typer.Exit(8)
        return
    log.require_whole()
    print(f"The audit log is whole: {verdict.records} records, head {verdict.head}.")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write, one JSON record per line.")],
    config: ConfigOption = None,
    kind: KindOption = None,
) -> None:
    """Write the records as JSON lines, with their hashes, for keeping elsewhere."""
    log = _open(find_config(config))
    try:
        with out.open("w", encoding="utf-8") as file:
            for record in log.records(kind):
                file.write(json.dumps(record.as_dict(), sort_keys=True, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): choose another file.") from None


@app.command()
def reidentify(
    pseudonym: Annotated[str, typer.Argument(help="Patient pseudonym, or new Study Instance UID (see --kind).")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit log, so name no patient.")],
    config: ConfigOption = None,
    kind: Annotated[str, typer.Option("--kind", help="patient, study or accession.")] = "patient",
    by: Annotated[str | None, typer.Option("--by", help="Who asks [default: the user of this system].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which original identifier stands behind a pseudonym; needs the vault key, and is recorded before it is told."""
    if kind not in ("patient", "study", "accession"):
        raise InputError(f"'{kind}' is no kind of identifier: name patient, study or accession with --kind.")
    if not reason.strip():
        raise InputError("Re-identification needs a reason: give one with --reason.")
    node = find_config(config)
    vault = Vault.open(node)
    originals = vault.originals(kind, pseudonym.strip())
    vault.close()
    # what was asked for is kept as a digest where nothing is known: it may be a real identifier typed by mistake
    asked = pseudonym.strip() if originals else "sha256:" + hashlib.sha256(pseudonym.strip().encode()).hexdigest()[:16]
    AuditLog(node.storage.audit).append(
        "patient.reidentified",
        of=kind,
        pseudonym=asked,
        found=len(originals),
        by=by or getpass.getuser(),
        reason=reason,
    )
    if as_json:
        print_json({"kind": kind, "pseudonym": pseudonym.strip(), "originals": originals})
    elif originals:
        print("\n".join(originals))
    if not originals:
        raise InputError(f"The vault knows no such {kind} pseudonym: check it, and --kind.")


def _short(facts: dict[str, object]) -> str:
    return ", ".join(f"{name}={str(value)[:40]}" for name, value in facts.items())
