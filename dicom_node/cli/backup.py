"""`fedpacs node backup` and `fedpacs node restore`: one encrypted file, made while the node runs, and the way back."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json

KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Key file of the backup; else $FEDPACS_BACKUP_PASSPHRASE, else a passphrase is asked for.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write; it must not exist.")]
ToOption = Annotated[Path, typer.Option("--to", metavar="DIR", help="An empty or new folder to restore into.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")]


def add_to(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)


def backup(out: OutOption, key: KeyOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Keep the whole node in one encrypted file, while it runs: received studies, vault, keys, audit log, everything."""
    from dicom_node import backup as keeping
    from dicom_node.audit import AuditLog
    from dicom_node.backup.node import node_source, not_kept

    found = find_config(config)
    report = keeping.backup(node_source(found), out, keeping.read_secret(key, twice=True))
    audit = AuditLog(found.storage.audit)
    audit.append("node.backup", by=getpass.getuser(), files=report.files, bytes=report.bytes, sha256=report.sha256)
    audit.close()
    missing = not_kept(found)
    if as_json:
        print_json({**asdict(report), "not_kept": missing})
        return
    print(f"Wrote {report.file}: {report.files} files, {report.bytes / 1e6:.1f} MB, SHA-256 {report.sha256}.")
    print("It holds identified data and all keys: keep it, and its passphrase apart from it, as safe as the node.")
    for path in missing:
        print(f"Not in it, because it lies elsewhere: {path}")


def restore(
    file: FileArgument,
    to: ToOption = Path(),
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a node back from its backup into an empty folder, check every byte and the audit log's chain."""
    from dicom_node import backup as keeping
    from dicom_node.audit import AuditLog
    from dicom_node.audit_checkpoint import verify
    from dicom_node.config import load_config
    from dicom_node.errors import IntegrityError

    report = keeping.restore(file, to, keeping.read_secret(key), "node", "node.toml")
    found = load_config(to)
    audit = AuditLog(found.storage.audit)
    verdict = verify(audit, found.storage.keys)
    if not verdict.ok:
        raise IntegrityError(f"The node is restored, but its audit log is broken: {verdict.reason}")
    audit.append("node.restored", by=getpass.getuser(), sha256=report.sha256, made_at=report.made_at)
    audit.close()
    if as_json:
        print_json({**asdict(report), "config": str(found.path), "audit_records": verdict.records})
        return
    print(f"Restored {report.files} files, {report.bytes / 1e6:.1f} MB, to {to}; the audit log is whole.")
    print(
        "Repeat the opt-outs, withdrawals and approvals made since the backup, then: fedpacs doctor, fedpacs node run."
    )
