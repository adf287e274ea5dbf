"""`fedpacs audit`: read the hash-chained log, prove it whole, take it out as JSON lines."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_node import audit_checkpoint, audit_export
from dicom_node.audit import AuditLog, require_whole
from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, IntegrityError
from dicom_node.usage import CHANGED, rounds_of_patient
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
def verify(
    config: ConfigOption = None,
    key: Annotated[str, typer.Option("--key", help="The audit key in hex as you noted it; refuse any other.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Prove the chain and its signed checkpoints whole; exit code 8 and the first broken record when they are not."""
    node = find_config(config)
    verdict = audit_checkpoint.verify(_open(node), node.storage.keys, key)
    if as_json:
        print_json(verdict.__dict__)
        if not verdict.ok:
            raise typer.Exit(8)
        return
    require_whole(verdict, node.storage.audit)
    print(f"The audit log is whole: {verdict.records} records, head {verdict.head}.")


@app.command()
def checkpoint(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Sign the log as it stands with the node's audit key; the node does so itself whenever it starts and stops."""
    node = find_config(config)
    _open(node).close()
    record = audit_checkpoint.sign_checkpoint(AuditLog(node.storage.audit), node.storage.keys)
    if as_json:
        print_json(record.as_dict())
        return
    print(f"Signed records 1 to {record.facts['seq']}. Note the audit key elsewhere: {record.facts['key']}")


@app.command()
def export(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder for DICOM audit messages, or a file (name.jsonl) for JSON lines."),
    ] = None,
    syslog: Annotated[
        str, typer.Option("--syslog", metavar="HOST:PORT", help="Send DICOM audit messages there (syslog over TLS).")
    ] = "",
    tls_ca: Annotated[Path | None, typer.Option("--tls-ca", help="Authority of the receiver's certificate.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Our certificate, where it asks for one.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its private key.")] = None,
    config: ConfigOption = None,
    kind: KindOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the records to an audit repository: DICOM audit messages (PS3.15 A.5) by syslog or in files, or JSON lines.

    Syslog and folder go on where they stopped. A syslog batch that broke is sent again, under the same numbers and hashes.
    """
    node = find_config(config)
    log = _open(node)
    if bool(syslog) == (out is not None):
        raise InputError("Say where to: give --out FOLDER, --out FILE.jsonl or --syslog HOST:PORT.")
    if out is not None and not out.is_dir() and (out.suffix or out.is_file() or kind):
        sent = _json_lines(log, out, kind)
    elif kind:
        raise InputError("A repository gets the whole chain: leave --kind out.")
    else:
        require_whole(log.verify(), node.storage.audit)
        name = f"{node.dicom.ae_title}@{node.node.name}"
        if out is not None:
            sent = audit_export.to_folder(log, out, name)
        else:
            sent = _to_syslog(log, node, syslog, tls_ca, tls_cert, tls_key, name)
    if as_json:
        print_json({"records": sent, "to": syslog or str(out)})
        return
    print(f"{sent} records to {syslog or out}.")


def _to_syslog(
    log: AuditLog, node: NodeConfig, address: str, ca: Path | None, cert: Path | None, key: Path | None, name: str
) -> int:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"'{address}' is no address: give --syslog HOST:PORT, e.g. siem.example.org:6514.")
    if ca is None:
        raise InputError("Without the receiver's authority nobody knows who listens: give --tls-ca FILE.")
    receiver = audit_export.Receiver(host.strip("[]"), int(port), ca, cert, key)
    place = re.sub(r"[^A-Za-z0-9.-]+", "_", address)
    position = audit_export.PositionFile(node.storage.run / f"audit-export-{place}.json")
    return audit_export.to_syslog(log, receiver, position, name)


def _json_lines(log: AuditLog, out: Path, kind: str | None) -> int:
    count = 0
    try:
        with out.open("w", encoding="utf-8") as file:
            for record in log.records(kind):
                file.write(json.dumps(record.as_dict(), sort_keys=True, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): choose another file.") from None
    return count


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


@app.command()
def rounds(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit log, so name no patient.")],
    patient: Annotated[str, typer.Option("--patient", help="Patient ID as the PACS shows it.")] = "",
    pseudonym: Annotated[str, typer.Option("--pseudonym", help="The patient's pseudonym instead.")] = "",
    config: ConfigOption = None,
    by: Annotated[str | None, typer.Option("--by", help="Who asks [default: the user of this system].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which past rounds used a patient, and whether the audit log proves it. The question itself is recorded.

    Exit code 8 when the list of a round's studies is not the one its audit record commits to.
    """
    node = find_config(config)
    who = by or getpass.getuser()
    uses = rounds_of_patient(node, by=who, reason=reason, patient_id=patient, pseudonym=pseudonym)
    if as_json:
        print_json({"rounds": [asdict(use) for use in uses]})
    else:
        rows = [
            (use.name or use.project[:12], use.round, _when(use.at), use.studies, use.proof, len(use.left))
            for use in uses
        ]
        print_table("Rounds that used the patient", ("project", "round", "when", "studies", "proof", "sent"), rows)
    if any(use.proof == CHANGED for use in uses):
        raise IntegrityError(
            "The catalogue's list of used studies is not the one the audit log commits to: `fedpacs audit verify`, restore"
            " catalogue.db from a backup and find out who changed it."
        )


@app.command()
def papers(
    out: Annotated[Path, typer.Option("--out", help="Folder to write them to.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft the hospital's papers from this node's settings: Article 30 record, DPIA, HIPAA statement, data-flow diagram.

    What a program cannot know stands as [BLANK: …].
    """
    from dicom_node.papers import write_papers

    written = write_papers(find_config(config), out)
    blanks = sum(file.read_text(encoding="utf-8").count("[BLANK: ") for file in written if file.suffix == ".md")
    if as_json:
        print_json({"files": [str(file) for file in written], "blanks": blanks})
        return
    print(f"Wrote {len(written)} files to {out}; {blanks} places marked [BLANK: …] are for you to fill in.")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _short(facts: dict[str, object]) -> str:
    return ", ".join(f"{name}={str(value)[:40]}" for name, value in facts.items())
