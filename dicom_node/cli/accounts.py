"""`fedpacs node account`: who may log in to the console, in which role, and the tokens of scripts."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.cli.people import ByOption, read_password

if TYPE_CHECKING:
    from dicom_node.accounts import Accounts

app = typer.Typer(help="Who may log in to the console, and tokens for scripts.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="How they log in, and how the audit log calls them.")]
RoleOption = Annotated[str, typer.Option("--role", help="viewer, data-manager or admin.")]
PasswordOption = Annotated[
    Path | None,
    typer.Option("--password-file", help="Where the password stands; - is standard input [default: ask].", show_default=False),
]  # fmt: skip


@contextmanager
def _opened(config: Path | None) -> Iterator[Accounts]:
    from dicom_node.accounts import Accounts
    from dicom_node.audit import AuditLog

    storage = find_config(config).storage
    audit = AuditLog(storage.audit)
    accounts = Accounts(storage.accounts, audit.append)
    try:
        yield accounts
    finally:
        accounts.close()
        audit.close()


@app.command()
def add(
    name: NameArgument,
    role: RoleOption = "viewer",
    password_file: PasswordOption = None,
    config: ConfigOption = None,
    by: ByOption = None,
) -> None:
    """Make an account. The first one takes the console from the token file's holder: make it an admin."""
    with _opened(config) as accounts:
        accounts.add(name, role, read_password(password_file), by or getpass.getuser())
    print(f"{name} may log in as {role}.")


@app.command()
def role(name: NameArgument, to: RoleOption, config: ConfigOption = None, by: ByOption = None) -> None:
    """Give an account another role; its sessions end."""
    with _opened(config) as accounts:
        accounts.change(name, by or getpass.getuser(), role=to)
    print(f"{name} is {to} now.")


@app.command()
def password(
    name: NameArgument, password_file: PasswordOption = None, config: ConfigOption = None, by: ByOption = None
) -> None:
    """Give an account another password, and unlock it; its sessions end."""
    with _opened(config) as accounts:
        accounts.change(name, by or getpass.getuser(), password=read_password(password_file))
    print(f"{name} has a new password.")


@app.command()
def remove(name: NameArgument, config: ConfigOption = None, by: ByOption = None) -> None:
    """Remove an account; its sessions end."""
    with _opened(config) as accounts:
        accounts.remove(name, by or getpass.getuser())
    print(f"{name} may not log in any more.")


@app.command()
def token(
    name: NameArgument,
    role: RoleOption = "viewer",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="Confine it to this part of the REST interface; repeatable [default: all of its role]."
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the token back instead.")] = False,
    config: ConfigOption = None,
    by: ByOption = None,
) -> None:
    """Make a token for a script (Authorization: Bearer TOKEN); it is shown once."""
    with _opened(config) as accounts:
        if remove:
            accounts.remove_token(name, by or getpass.getuser())
            print(f"The token {name} is good for nothing now.")
        else:
            print(accounts.add_token(name, role, by or getpass.getuser(), scope or ()))


@app.command("list")
def list_accounts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Accounts and tokens, with their roles."""
    with _opened(config) as accounts:
        found = {"accounts": accounts.all(), "tokens": accounts.tokens()}
    if as_json:
        print_json(found)
        return
    rows = [
        (kind, one["name"], one["role"], time.strftime("%Y-%m-%d %H:%M", time.localtime(one["at"])), one["by"])
        for kind, several in (("account", found["accounts"]), ("token", found["tokens"]))
        for one in several
    ]
    print_table("Accounts", ("kind", "name", "role", "since", "by"), rows)
