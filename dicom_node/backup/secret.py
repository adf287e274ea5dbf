"""Where the passphrase or key of a backup comes from; it never stands on a command line."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from dicom_node.errors import ConfigError, InputError

VARIABLE = "FEDPACS_BACKUP_PASSPHRASE"
_SHORTEST = 12


def read_secret(key: Path | None, twice: bool = False) -> bytes:
    """The content of the key file, else of FEDPACS_BACKUP_PASSPHRASE, else what a person types (`twice` when it is new).

    Raises ConfigError when there is none, it is short, or others may read the key file.
    """
    if key is not None:
        return _from_file(key)
    phrase = os.environ.get(VARIABLE, "")
    if not phrase:
        if not sys.stdin.isatty():
            raise ConfigError(f"A backup is encrypted: give --key FILE, or set {VARIABLE}.")
        phrase = getpass.getpass("Passphrase of the backup: ")
        if twice and getpass.getpass("Once more: ") != phrase:
            raise InputError("The two passphrases differ: begin again.")
    if len(phrase) < _SHORTEST:
        raise ConfigError(f"The passphrase of the backup is shorter than {_SHORTEST} characters: take a longer one.")
    return phrase.encode()


def _from_file(key: Path) -> bytes:
    try:
        mode = key.stat().st_mode & 0o777
        secret = key.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"The backup key {key} cannot be read ({error.strerror}): restore it from your copy."
        ) from None
    if mode & 0o077:
        raise ConfigError(f"The backup key {key} can be read by others than its owner (mode {mode:o}): chmod 600 it.")
    if len(secret) < 32:
        raise ConfigError(f"The backup key {key} holds less than 32 characters: make one with `openssl rand -hex 32`.")
    return secret
