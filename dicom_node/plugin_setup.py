"""Puts the plugin into an Orthanc's configuration folder, takes it out again, and says what is missing.

Orthanc reads every *.json file of its folder and refuses a top-level section that stands in two of them. So what is ours goes
into a file of our own, fedpacs.json, and the one value that may have to change elsewhere, PythonScript, is changed in place:
comments and everything else stay. A script that stood there before is loaded by the plugin after itself (SiteScript), and put
back by `uninstall`. Doing either twice changes nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicom_node.errors import ConfigError, StorageError

SCRIPTS = ("fedpacs_plugin.py", "fedpacs_settings.py", "fedpacs_explorer.py", "LICENSE")
LIBRARY = "libOrthancPython.so"
_LIBRARY_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/share/orthanc/plugins-available", "/usr/lib/orthanc")
_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.S)
_SCRIPT = re.compile(r'"PythonScript"\s*:\s*("(?:\\.|[^"\\])*")')


@dataclass
class Done:
    """What was changed (files), and what a person must still do."""

    changed: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)


class OrthancFolder:
    """An Orthanc's configuration folder. Raises ConfigError when it is none, or a file of it is not what Orthanc reads."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.scripts, self.ours = self.path / "fedpacs", self.path / "fedpacs.json"
        if not self.path.is_dir():
            raise ConfigError(f"{path} is no folder: name the one that Orthanc reads its configuration from.")
        self.files = {file: _parse(file) for file in sorted(self.path.glob("*.json"))}
        if not any(file != self.ours for file in self.files):
            raise ConfigError(
                f"{path} holds no Orthanc configuration (*.json): name the folder that Orthanc is started with."
            )

    def section(self, name: str) -> tuple[Path | None, Any]:
        """(the file that has this section, its value); (None, None) when none has."""
        return next(((file, doc[name]) for file, doc in self.files.items() if name in doc), (None, None))

    def script(self) -> Path:
        return self.scripts / SCRIPTS[0]


def install(folder: OrthancFolder, url: str, token: str = "") -> Done:
    """Install or refresh. url: the node's console, for a new section; token: the node's, copied beside the scripts."""
    done = Done()
    try:
        group = _group(folder.path)
        _make_folder(folder.scripts, group)
        for name in SCRIPTS:
            _put(folder.scripts / name, (source_folder() / name).read_text(encoding="utf-8"), group, done)
        token_file = folder.scripts / "api.token"
        if token:
            _put(token_file, token.strip() + "\n", group, done)
        elif not token_file.exists():
            done.todo.append(f"copy the node's keys/api.token to {token_file}, readable by Orthanc's user")
        before = _point_to(folder, folder.script(), done)
        _write_ours(folder, url, token_file, before, group, done)
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder.path} cannot be written ({error.strerror}): run it as the user who owns it."
        ) from None
    return done


def uninstall(folder: OrthancFolder) -> Done:
    """Take out what `install` put in; a script that stood there before stands there again."""
    done = Done()
    _, section = folder.section("Fedpacs")
    before = str(section.get("SiteScript", "")) if isinstance(section, dict) else ""
    try:
        place, value = folder.section("PythonScript")
        if place not in (None, folder.ours) and value == str(folder.script()):
            _replace_script(Path(str(place)), before, done)
        for path in (folder.ours, *(folder.scripts / name for name in (*SCRIPTS, "api.token"))):
            if path.exists():
                path.unlink()
                done.changed.append(str(path))
        shutil.rmtree(folder.scripts / "__pycache__", ignore_errors=True)
        if folder.scripts.is_dir() and not any(folder.scripts.iterdir()):
            folder.scripts.rmdir()
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be removed ({error.strerror}).") from None
    place, _ = folder.section("Fedpacs")
    if place not in (None, folder.ours):
        done.todo.append(f"the section Fedpacs in {place} is yours: remove it")
    return done


def missing(folder: OrthancFolder, token: str = "") -> Iterator[tuple[str, bool, str, str]]:
    """(what, whether it is well, what was found, how to mend it) for `fedpacs doctor`."""
    again = f"fedpacs plugin install --orthanc {folder.path}"
    library = _library(folder)
    yield (
        "Orthanc's Python plugin",
        bool(library),
        library or "not found",
        "apt-get install orthanc-python, or set Plugins",
    )
    stale = [name for name in SCRIPTS if _text(folder.scripts / name) != _text(source_folder() / name)]
    yield "plugin's files", not stale, ", ".join(stale) or str(folder.scripts), again
    place, value = folder.section("PythonScript")
    yield "PythonScript", value == str(folder.script()), f"{value} in {place}" if place else "not set", again
    where, section = folder.section("Fedpacs")
    yield "section Fedpacs", isinstance(section, dict), str(where or "not there"), again
    file = Path(str(section.get("TokenFile", ""))) if isinstance(section, dict) else Path()
    kept = (_text(file) or "").strip()
    good = bool(kept) and kept == (token.strip() or kept)
    found = str(file) if good else "not there" if not kept else "not this node's"
    yield "plugin's token", good, found, f"{again} --config node.toml"


def source_folder() -> Path:
    """Where the plugin's files of this installation are. Raises ConfigError when they are not beside it."""
    found = importlib.util.find_spec("plugin")
    folder = next(iter(found.submodule_search_locations or []), "") if found else ""
    if not folder or not (Path(folder) / SCRIPTS[0]).is_file():
        raise ConfigError("The plugin's files are not beside this installation: install fedpacs again.")
    return Path(folder)


def _point_to(folder: OrthancFolder, script: Path, done: Done) -> str:
    """Make PythonScript name ours; -> the script that stood there before, "" for none."""
    place, value = folder.section("PythonScript")
    if place is None or place == folder.ours or value == str(script):
        return ""
    _replace_script(place, str(script), done)
    return str(value)


def _write_ours(folder: OrthancFolder, url: str, token_file: Path, before: str, group: int, done: Done) -> None:
    document: dict[str, Any] = dict(folder.files.get(folder.ours, {}))
    wanted = dict(document)
    place, _ = folder.section("PythonScript")
    if place in (None, folder.ours):
        wanted["PythonScript"] = str(folder.script())
    if folder.section("Plugins")[0] in (None, folder.ours):
        library = _library(folder)
        wanted |= {"Plugins": [library]} if library else {}
    if not _library(folder):
        done.todo.append(f"let Plugins name {LIBRARY} (Debian: apt-get install orthanc-python)")
    where, _ = folder.section("Fedpacs")
    if where is None:
        wanted["Fedpacs"] = {"Url": url, "TokenFile": str(token_file)}
    if before and "Fedpacs" in wanted:
        wanted["Fedpacs"] = {**wanted["Fedpacs"], "SiteScript": before}
    elif before:
        done.todo.append(f'add "SiteScript": {json.dumps(before)} to the section Fedpacs in {where}')
    if wanted != document:  # an unchanged file keeps its comments
        _put(folder.ours, json.dumps(wanted, indent=2) + "\n", group, done)


def _library(folder: OrthancFolder) -> str:
    _, listed = folder.section("Plugins")
    if listed is None:
        candidates = [Path(place) / LIBRARY for place in _LIBRARY_FOLDERS]
    else:
        candidates = [Path(one) if one.endswith(".so") else Path(one) / LIBRARY for one in listed]
    return next((str(path) for path in candidates if path.name.startswith(LIBRARY[:-3]) and path.exists()), "")


def _replace_script(file: Path, script: str, done: Done) -> None:
    text = file.read_text(encoding="utf-8")
    found = _SCRIPT.search(_without_comments(text))
    if found is None:
        raise ConfigError(
            f"{file} sets PythonScript in a way that cannot be changed here: set it to {script} yourself."
        )
    start, end = found.span(1)
    status = file.stat()
    _write(file, text[:start] + json.dumps(script) + text[end:], status.st_mode & 0o777, status.st_uid, status.st_gid)
    done.changed.append(str(file))


def _parse(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(_without_comments(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): run it as a user who may.") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON as Orthanc reads it ({error}): mend it first.") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{file} does not hold an object {{ ... }}: mend it first.")
    return document


def _without_comments(text: str) -> str:
    """The same text with comments turned to spaces, so that every place in it stays where it was."""

    def blank(found: re.Match[str]) -> str:
        return found[0] if found[0][0] == '"' else re.sub(r"[^\n]", " ", found[0])

    return _COMMENT.sub(blank, text)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _group(folder: Path) -> int:
    """The group of Orthanc's user, who must be able to read what we write."""
    import grp

    try:
        return grp.getgrnam("orthanc").gr_gid
    except KeyError:
        return folder.stat().st_gid


def _make_folder(path: Path, group: int) -> None:
    path.mkdir(mode=0o750, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, 0, group)


def _put(path: Path, text: str, group: int, done: Done) -> None:
    if _text(path) != text:
        _write(path, text, 0o640, os.geteuid(), group if os.geteuid() == 0 else os.getegid())
        done.changed.append(str(path))


def _write(path: Path, text: str, mode: int, user: int, group: int) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), user, group)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
