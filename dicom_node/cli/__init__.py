"""The `fedpacs` command: finds every room's commands by entry point and turns errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
import typer
import typer.core
from typer.utils import get_params_from_function

GROUP = "fedpacs.commands"
# Shown by `fedpacs --help`, so that help needs to import no room.
HELP = {
    "demo": "A federation on this machine, end to end, on shipped data.",
    "doctor": "What is missing on this machine, and how to mend it.",
    "deid": "De-identify DICOM files.",
    "node": "The hospital's node: make it, run it, ask it.",
    "plugin": "The plugin in Orthanc: install, uninstall.",
    "audit": "The hash-chained record of what happened and what left.",
    "project": "Projects: write, read, approve, reject.",
    "federation": "A hospital's membership in a federation: join it, show it.",
    "coordinator": "The federation's coordinator.",
    "model": "Use a trained model on studies.",
}


class Commands(click.Group):
    """The top level, loading a room only when one of its commands is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = {name for name in _entries() if "." not in name}
        return [name for name in HELP if name in found] + sorted(found - HELP.keys())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = _entries()
        return _load(name, found) if name in found and "." not in name else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP.get(name, "")) for name in self.list_commands(ctx)])


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(name: str, found: Mapping[str, EntryPoint]) -> click.Command:
    """A command, or a group with what rooms further right add to it: the entry point "audit.attack" is `fedpacs audit attack`."""
    command = _command(name, found[name].value)
    for added in sorted(one for one in found if one.startswith(f"{name}.")):
        child = _command(added.partition(".")[2], found[added].value)
        command.add_command(child)  # type: ignore[attr-defined]
    _tell_arguments(command)
    return command


def _command(name: str, value: str) -> click.Command:
    module, _, attribute = value.partition(":")
    target: Any = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name)(target)
        target = app
    target.rich_markup_mode = "markdown"  # the default takes "[federation]" in a help text for mark-up, and drops it
    command = typer.main.get_command(target)
    command.name = name
    return command


def _tell_arguments(command: click.Command) -> None:
    """Give arguments their help back, which click 8.5 takes from typer's (it has one of its own, set last)."""
    for child in getattr(command, "commands", {}).values():
        _tell_arguments(child)
    arguments = [one for one in command.params if isinstance(one, typer.core.TyperArgument) and not one.help]
    if arguments and command.callback is not None:
        told = get_params_from_function(inspect.unwrap(command.callback))
        for one in arguments:
            one.help = getattr(told[one.name].default, "help", None) if one.name in told else None


def build() -> Commands:
    return Commands(
        name="fedpacs",
        help="Makes a hospital's PACS a node of a federation that trains imaging models together.",
        epilog="Exit codes and what to do about each: docs/exit-codes.md.",
        params=[
            click.Option(
                ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show it."
            )
        ],
        no_args_is_help=True,
    )


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"fedpacs {version('fedpacs')}")
        ctx.exit()


def main(arguments: list[str] | None = None) -> None:
    """Run one command; never shows a traceback unless FEDPACS_TRACE=1."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code (docs/exit-codes.md)."""
    try:
        result = build().main(args=arguments, prog_name="fedpacs", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("stopped.")
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader of our pipe went away; nothing is left to tell
        return 0
    except Exception as error:
        if os.environ.get("FEDPACS_TRACE") == "1":
            raise
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            _say(str(error))
            return code
        _say(
            f"unexpected {type(error).__name__}: this is a fault of ours; set FEDPACS_TRACE=1 and report what it shows."
        )
        return 1


def _say(sentence: str) -> None:
    print(f"fedpacs: {sentence}", file=sys.stderr, flush=True)
