"""`fedpacs node echo` and `fedpacs node send`: can a peer be reached, and give it files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from dicom_node.cli.output import JsonOption, print_json

PeerArgument = Annotated[str, typer.Argument(metavar="AETITLE@HOST:PORT", help="The remote application entity.")]
CallingOption = Annotated[str, typer.Option("--calling", help="AE title to call with.")]
CaOption = Annotated[Path | None, typer.Option("--tls-ca", help="Use TLS; PEM file of the CA that signed the peer.")]
CertificateOption = Annotated[Path | None, typer.Option("--tls-cert", help="Our certificate (PEM), for mutual TLS.")]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).")]


def echo(
    peer: PeerArgument,
    calling: CallingOption = "FEDPACS",
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    commitment: Annotated[
        bool, typer.Option("--commitment", help="Ask too whether it offers Storage Commitment.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a peer with C-ECHO: reachable, lets us in, answers. Exit code 6: no answer; 5: refused."""
    from dicom_node.scu import Peer, takes_commitment
    from dicom_node.scu import echo as verify

    remote = Peer.parse(peer, tls_ca=tls_ca, tls_certificate=tls_cert, tls_key=tls_key)
    report = verify(remote, calling)
    offered = takes_commitment(remote, calling) if commitment else None
    if as_json:
        print_json({**report.__dict__, **({} if offered is None else {"storage_commitment": offered})})
        return
    print(f"{report.peer} answered C-ECHO in {report.echo_s * 1000:.1f} ms.")
    if offered is not None:
        print(f"It {'offers' if offered else 'does not offer'} Storage Commitment to us.")


def send(
    peer: PeerArgument,
    sources: Annotated[list[Path], typer.Argument(metavar="FILE_OR_DIR...", help="Part 10 files, or folders of them.")],
    calling: CallingOption = "FEDPACS",
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send files to a peer with C-STORE, byte for byte. Exit code 10: some were not taken."""
    from dicom_node.scu import Peer, send_files
    from dicom_node.scu.store import expand

    files = expand(sources)
    remote = Peer.parse(peer, tls_ca=tls_ca, tls_certificate=tls_cert, tls_key=tls_key)
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(f"sending to {remote}", total=len(files))
        report = send_files(remote, files, calling, progress=lambda *_: bar.advance(task))
    failed = {str(path): why for path, why in report.failed.items()}
    if as_json:
        print_json({"peer": report.peer, "sent": len(report.sent), "failed": failed})
    else:
        print(f"Sent {len(report.sent)} of {len(files)} to {report.peer}.")
        for path, why in failed.items():
            print(f"  {path}: {why}")
    if failed:
        raise typer.Exit(10)


def add_to(app: typer.Typer) -> None:
    """Make them commands of `fedpacs node`."""
    app.command()(echo)
    app.command()(send)
