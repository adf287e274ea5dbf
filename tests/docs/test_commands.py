"""Every command line in the documentation is one that the program takes, and the harmless ones run."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import click
import pytest

from dicom_node.cli import build, run
from dicom_node.config import load_config
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from tests.docs.documented import DOCS, ROOT, Line, command_lines

sys.path.insert(0, str(ROOT / "scripts"))
import reference

LINES = list(command_lines())
HARMLESS = (
    *("doctor", "node status", "node quarantine list", "node account list", "node optout list", "node results list"),
    *("audit verify", "audit show", "project list", "federation show"),
)


TOP = build()


@functools.cache
def loaded(name: str) -> click.Command | None:
    return TOP.get_command(click.Context(TOP), name)


def child(command: click.Command, context: click.Context, name: str) -> click.Command | None:
    return loaded(name) if command is TOP else command.get_command(context, name)  # type: ignore[attr-defined,no-any-return]


def parse(line: Line) -> None:
    """As far as click goes before it would run the command. Raises click.ClickException."""
    command: click.Command | None = TOP
    context, words = None, list(line.words)
    name = words.pop(0)
    while isinstance(command, click.Group) or hasattr(command, "list_commands"):
        context = click.Context(command, parent=context, info_name=name)  # type: ignore[arg-type]
        if not words or words[0].startswith("-"):
            assert line.inline or words, "names a group, no command"
            return
        name = words.pop(0)
        command = child(command, context, name)
        if command is None:
            raise click.UsageError(f"no such command {name!r}")
    assert command is not None
    try:
        command.make_context(name, words, parent=context)
    except (click.MissingParameter, click.BadOptionUsage):
        if not line.inline:
            raise
    except click.exceptions.Exit as leave:  # --help, --version
        assert leave.exit_code == 0


def test_there_is_something_to_check() -> None:
    assert len(LINES) > 80 and {line.page for line in LINES} > {"README.md", "pacs-admin.md", "backup.md"}


def test_every_documented_command_line_parses() -> None:
    wrong = []
    for line in LINES:
        try:
            parse(line)
        except click.ClickException as error:
            wrong.append(f"{line}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_what_does_not_exist() -> None:
    for words in ("fedpacs node fly", "fedpacs node status --no-such", "fedpacs node restore"):
        with pytest.raises(click.ClickException):
            parse(Line("x", 1, tuple(words.split()), False))


def test_the_harmless_ones_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_default_config(tmp_path / "node")
    Spool(load_config(file).storage.spool).close()
    done: set[str] = set()
    for line in LINES:
        command = next((one for one in HARMLESS if _is(line, one)), None)
        if command is None:
            continue
        words = [str(file) if word in ("F", "FILE") or word.endswith("node.toml") else word for word in line.words[1:]]
        if "--config" not in words:
            words += ["--config", str(file)]
        if {"--orthanc", "--key"} & set(words):  # need what is not here
            continue
        done.add(command)
        code = run(words)
        told = capsys.readouterr()
        assert code == 0 or (command in ("doctor", "federation show") and code in (3, 5)), f"{line}: {code} {told.err}"
    assert len(done) >= 6, done


def _is(line: Line, command: str) -> bool:
    words = tuple(command.split())
    return line.words[1 : 1 + len(words)] == words


def test_make_targets_and_scripts_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", text, re.MULTILINE)) <= targets, page
        for script in re.findall(r"\b((?:benchmarks|scripts|deploy)/[\w./-]*\w)", text):
            assert (ROOT / script).exists(), f"{page.name} names {script}"


def test_the_pages_of_commands_and_settings_are_what_the_code_says() -> None:
    for name, page in reference.PAGES.items():
        assert (DOCS / name).read_text(encoding="utf-8") == page(), f"docs/{name} is out of date: run `make reference`"


def test_every_command_option_and_setting_is_explained() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    for path, command in reference.commands(build(), ("fedpacs",)):
        assert f"    {' '.join(path)} " in text and command.help, f"{path} tells nothing"
        for option in command.params:
            if isinstance(option, click.Option) or option.param_type_name == "option":
                assert option.opts[0] in text
                assert getattr(option, "help", ""), f"{' '.join(path)} {option.opts[0]} has no help"
    empty = [line for line in (DOCS / "settings.md").read_text().splitlines() if re.match(r"\| `.*\|\s*\|$", line)]
    assert not empty, "explain these in the commented file that init writes, or in scripts/reference.py: " + str(empty)


def test_help_shows_arguments_and_keeps_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["federation", "join", "--help"]) == 0
    told = capsys.readouterr().out
    assert "The file the coordinator sent." in told and "[federation] coordinator" in told
