"""Options that name the person who acts, for the audit log."""

from __future__ import annotations

from typing import Annotated

import typer

ByOption = Annotated[
    str | None,
    typer.Option("--by", help="Who does it, for the audit log [default: the login name].", show_default=False),
]
