"""`fedpacs doctor`: looks at this machine and one node, and says for each thing that is missing how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.config import NodeConfig
from dicom_node.errors import NodeError
from dicom_node.storage_encryption import unencrypted

PACKAGES = ("pydicom", "pynetdicom", "highdicom", "torch", "monai", "flwr", "cryptography", "sqlite-utils")


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``mend`` says what to do when it is not ``ok``."""

    what: str
    ok: bool
    found: str
    mend: str = ""


OrthancOption = Annotated[
    Path | None,
    typer.Option("--orthanc", metavar="DIR", help="Also the plugin in this configuration folder of an Orthanc."),
]


def doctor(config: ConfigOption = None, orthanc: OrthancOption = None, as_json: JsonOption = False) -> None:
    """Check this machine and, with --config, a node. Exit code 3 when something must be mended."""
    findings = list(machine())
    if config is not None or os.environ.get("FEDPACS_CONFIG") or Path("node.toml").exists():
        findings += node(config)
    if orthanc is not None:
        findings += plugin(orthanc, config)
    if as_json:
        print_json({"ok": all(one.ok for one in findings), "findings": [asdict(one) for one in findings]})
    else:
        rows = [("ok" if one.ok else "MEND", one.what, one.found, "" if one.ok else one.mend) for one in findings]
        print_table("fedpacs doctor", ("", "what", "found", "how to mend it"), rows)
    if not all(one.ok for one in findings):
        raise typer.Exit(3)


def machine() -> Iterator[Finding]:
    """Python, packages and the optional programs of this machine."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info[:2] == (3, 11), version, "use Python 3.11")
    for name in PACKAGES:
        try:
            yield Finding(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "pip install -c constraints.txt .")
    for program, use in (("Orthanc", "an Orthanc beside the node"), ("storescu", "sending files by hand (dcmtk)")):
        where = shutil.which(program) or ""
        yield Finding(program, True, where or f"not installed; only needed for {use}")


def node(file: Path | None) -> Iterator[Finding]:
    """One node: its configuration, folders, keys, disk and ports."""
    try:
        config = find_config(file)
    except NodeError as error:
        yield Finding("node.toml", False, "wrong", str(error))
        return
    yield Finding("node.toml", True, str(config.path))
    yield from _folders(config)
    yield from _keys(config)
    free = shutil.disk_usage(config.root).free >> 20
    enough = free >= config.storage.min_free_mb
    yield Finding(
        "disk", enough, f"{free} MB free", f"free at least {config.storage.min_free_mb} MB, or C-STORE is refused"
    )
    for name, host, port in (
        ("DICOM port", config.dicom.host, config.dicom.port),
        ("console port", config.web.host, config.web.port),
    ):
        yield _port(config, name, host, port)


def plugin(folder: Path, file: Path | None) -> Iterator[Finding]:
    """The plugin in an Orthanc's configuration folder."""
    from dicom_node.plugin_setup import OrthancFolder, missing

    try:
        token = find_config(file).web.token_file.read_text(encoding="ascii") if file is not None else ""
        for finding in missing(OrthancFolder(folder), token):
            yield Finding(*finding)
    except (NodeError, OSError, UnicodeDecodeError) as error:
        yield Finding("plugin", False, "wrong", str(error))


def _folders(config: NodeConfig) -> Iterator[Finding]:
    for name in ("spool", "quarantine", "vault", "keys"):
        folder: Path = getattr(config.storage, name)
        if not folder.is_dir():
            yield Finding(name, False, "missing", f"mkdir -m 700 {folder}")
            continue
        mode = folder.stat().st_mode & 0o777
        yield Finding(name, mode & 0o077 == 0, f"mode {mode:o}", f"chmod 700 {folder}")


def _keys(config: NodeConfig) -> Iterator[Finding]:
    if config.vault.passphrase_env:
        set_ = bool(os.environ.get(config.vault.passphrase_env))
        yield Finding(
            "vault passphrase", set_, "set" if set_ else "not set", f"export {config.vault.passphrase_env}=..."
        )
    elif not config.vault.key_command:
        there = config.vault.key_file.is_file()
        yield Finding(
            "vault key", there, str(config.vault.key_file), "restore it from your copy, or run `fedpacs node init` anew"
        )
    if config.storage.encryption == "dm-crypt":
        bare = unencrypted(config)
        yield Finding("dm-crypt", not bare, ", ".join(bare) or "everything", "move these folders onto a LUKS device")
    else:
        yield Finding("encryption at rest", True, f"{config.storage.encryption} (the vault: always)")
    token = config.web.token_file.is_file()
    yield Finding("API token", token, str(config.web.token_file), "write a random token into it, mode 600")
    if config.federation.coordinator:
        invited = config.federation.invitation.is_file()
        mend = "put the coordinator's invitation there"
        yield Finding("invitation", invited, str(config.federation.invitation), mend)


def _port(config: NodeConfig, name: str, host: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            running = (config.storage.run / "status.json").exists()
            found = f"{port} is in use" + (", by this node if it runs" if running else "")
            return Finding(name, running, found, f"stop what listens on {port}, or choose another port in node.toml")
    return Finding(name, True, f"{port} is free")
