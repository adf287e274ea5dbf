"""`fedpacs coordinator backup` and `restore`: the coordinator's folder in one encrypted file, made while runs go on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.backup import FileArgument, KeyOption, OutOption, ToOption
from dicom_node.cli.output import JsonOption, print_json

FolderOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.", envvar="FEDPACS_COORDINATOR")
]


def backup(out: OutOption, key: KeyOption = None, folder: FolderOption = Path(), as_json: JsonOption = False) -> None:
    """Keep keys, members, runs and audit log in one encrypted file; runs may go on meanwhile."""
    from aggregator_client.coordinator import settings
    from dicom_node import backup as keeping

    config = settings.load(folder)
    paths = {"keys": config.storage.keys, "runs": config.storage.runs}
    source = keeping.Source(
        kind="coordinator",
        home=config.root,
        settings_file=config.path.name,
        first=(config.storage.keys, *sorted(config.storage.runs.glob("*/state.db"))),
        roots={name: path for name, path in paths.items() if not path.is_relative_to(config.root)},
    )
    report = keeping.backup(source, out, keeping.read_secret(key, twice=True))
    if as_json:
        print_json(asdict(report))
        return
    print(f"Wrote {report.file}: {report.files} files, {report.bytes / 1e6:.1f} MB, SHA-256 {report.sha256}.")
    print("It holds your signing keys: keep it, and its passphrase apart from it, as safe as the coordinator.")


def restore(file: FileArgument, to: ToOption = Path(), key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Bring a coordinator back from its backup into an empty folder, and check every byte."""
    from aggregator_client.coordinator import settings
    from dicom_node import backup as keeping

    report = keeping.restore(file, to, keeping.read_secret(key), "coordinator", "coordinator.toml")
    config = settings.load(to)
    fingerprint = config.keys().fingerprint
    if as_json:
        print_json({**asdict(report), "config": str(config.path), "fingerprint": fingerprint})
        return
    print(
        f"Restored {report.files} files, {report.bytes / 1e6:.1f} MB, to {to}. Fingerprint of the keys: {fingerprint}."
    )
    print(f"Go on with: fedpacs coordinator resume --dir {to}")
