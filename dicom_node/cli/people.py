"""Who acts: the option that names them for the audit log, and how a password is read."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.errors import InputError

ByOption = Annotated[
    str | None,
    typer.Option("--by", help="Who does it, for the audit log [default: the login name].", show_default=False),
]


def read_password(file: Path | None) -> str:
    """From a file, standard input ("-") or the terminal. Raises InputError."""
    if file is None:
        first, second = getpass.getpass("Password: "), getpass.getpass("Again: ")
        if first != second:
            raise InputError("The two passwords differ: try again.")
        return first
    try:
        return (sys.stdin.readline() if str(file) == "-" else file.read_text(encoding="utf-8")).rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"The password file {file} cannot be read: name a text file that holds the password."
        ) from None
