"""`fedpacs node pull`: retrieve a retrospective cohort from a PACS into the node."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json
from dicom_node.cli.peers import CaOption, CertificateOption, KeyOption, PeerArgument

TIMEOUT_SECONDS = 60.0


def pull(
    peer: PeerArgument,
    modality: Annotated[list[str] | None, typer.Option("--modality", help="CT, MR …; repeatable.")] = None,
    first: Annotated[str, typer.Option("--from", metavar="DATE", help="Earliest study date.")] = "",
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="Latest study date.")] = "",
    description: Annotated[
        str, typer.Option("--description", help="Study description; * and ? stand for anything.")
    ] = "",
    patients: Annotated[
        Path | None, typer.Option("--patients", metavar="FILE", help="Patient IDs, one a line.")
    ] = None,
    accessions: Annotated[
        Path | None, typer.Option("--accessions", metavar="FILE", help="Accession numbers, one a line.")
    ] = None,
    via: Annotated[
        str, typer.Option("--via", help="get, move (the PACS sends to this node's AE), or web for an https:// address.")
    ] = "get",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be retrieved.")] = False,
    per_minute: Annotated[float, typer.Option("--per-minute", help="At most so many studies a minute.", min=0.0)] = 0.0,
    hours: Annotated[str, typer.Option("--hours", metavar="22:00-06:00", help="Only in these hours, local time.")] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed for good.")] = False,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help='For DICOMweb: a file with "user:password".')
    ] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="For DICOMweb: a file with a token.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retrieve studies from a PACS; run again after a stop, it goes on where it was. Exit code 10: some could not be had."""
    from dicom_node.retrieve.run import Pull, Window
    from dicom_node.retrieve.selection import Selection
    from dicom_node.retrieve.source import Dimse, Source
    from dicom_node.scu import Peer

    settings = find_config(config)
    selection = Selection.of(modality or [], first, last, description, patients, accessions)
    source: Source
    if via == "web" or peer.startswith(("https://", "http://")):
        from dicom_node.retrieve.web import Web

        source = Web(peer, password_file=password_file, token_file=token_file, ca=tls_ca)
    else:
        remote = Peer.parse(peer, tls_ca=tls_ca, tls_certificate=tls_cert, tls_key=tls_key)
        source = Dimse(remote, via, settings.dicom.ae_title, TIMEOUT_SECONDS)
    window = Window.parse(hours) if hours else None
    work = Pull(settings, source, selection, per_minute=per_minute, window=window, tell=_tell)
    try:
        summary = work.prepare()
        if not as_json:
            print(
                f"{summary.studies} studies, {summary.instances} instances, about {summary.megabytes_estimated:.0f} MB"
                " (estimated by modality; a PACS does not tell sizes)."
            )
        if not dry_run:
            if retry_failed:
                work.plan.retry_failed()
            summary = work.run()
    finally:
        work.close()
    if as_json:
        print_json({"dry_run": dry_run, **asdict(summary)})
    else:
        print(
            ", ".join(f"{count} {state}" for state, count in sorted(summary.states.items())) or "Nothing to retrieve."
        )
        for reason, count in summary.reasons.items():
            print(f"  {count}: {reason}")
    if not dry_run and summary.states.get("failed"):
        raise typer.Exit(10)


def _tell(event: str, facts: dict[str, Any]) -> None:
    if sys.stderr.isatty() and event != "instance":
        print(f"{event}: " + ", ".join(f"{name} {value}" for name, value in facts.items()), file=sys.stderr)
