"""Service files, alerts and the air-gapped bundle: checked by the programs they are for, where those are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.docs.documented import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def call(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **more}
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_service_files_are_valid_and_hardened(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    command = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert command
    there = tmp_path / unit.name  # the same, with a command that exists here
    there.write_text(text.replace(command.group(1), sys.executable))
    done = call("systemd-analyze", "verify", "--man=no", str(there))
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr
    done = call("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(there))
    assert done.returncode == 0, done.stdout[-300:]  # exposure of at most 2.0 of 10


def test_the_service_runs_a_command_that_exists() -> None:
    from tests.docs.documented import Line
    from tests.docs.test_commands import parse

    assert len(UNITS) == 3
    for unit in UNITS:
        started = re.search(r"^ExecStart=\S*/(fedpacs .*)$", unit.read_text(), re.MULTILINE)
        assert started, unit
        parse(Line(unit.name, 1, tuple(started.group(1).split()), False))


def test_the_bundle_has_a_tested_version_of_all_that_is_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    wanted = {_name(one) for one in (*project["dependencies"], *extras)} - {"fedpacs"}
    assert not wanted - pinned, f"constraints.txt does not pin {wanted - pinned}"


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=~; ]", requirement)[0].lower().replace("_", "-")


WHOLE = os.environ.get("FEDPACS_BUNDLE_TEST") == "whole"


@pytest.mark.timeout(1800 if WHOLE else 300)
def test_a_fresh_environment_installs_from_the_bundle(tmp_path: Path) -> None:
    """Ordinarily our own wheel alone; FEDPACS_BUNDLE_TEST=whole makes the whole bundle and installs it with --no-index."""
    copy = tmp_path / "source"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "build", "demo", "__pycache__", "*.egg-info", ".*cache", ".hypothesis"
    )
    shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
    environment = {**os.environ, "PYTHON": sys.executable, "FEDPACS_BUNDLE": "whole" if WHOLE else "own"}
    limit = 1500 if WHOLE else 250
    made = subprocess.run(
        ["sh", "scripts/bundle.sh"],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with tarfile.open(copy / "build" / "fedpacs-bundle.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    bundle = tmp_path / "fedpacs-bundle"
    (wheel,) = (bundle / "wheels").glob("fedpacs-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT))
        for room in ("plugin", "anonymizer", "dicom_node", "trainer", "aggregator_client")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js", ".toml", ".json") and "__pycache__" not in path.parts
    }
    assert not {name for name in sources if (copy / name).exists()} - inside
    assert (bundle / "install.sh").exists() and (bundle / "deploy" / "systemd" / "fedpacs-node.service").exists()
    checked = subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=bundle, timeout=100, check=False)
    assert checked.returncode == 0
    if WHOLE:
        target = tmp_path / "installed"
        call_home = {
            **os.environ,
            "PYTHON": sys.executable,
            "PIP_INDEX_URL": "http://127.0.0.1:9/",
            "PIP_CONFIG_FILE": os.devnull,
        }
        done = subprocess.run(
            ["sh", "install.sh", str(target)],
            cwd=bundle,
            env=call_home,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "fedpacs 0" in done.stdout
    (bundle / "constraints.txt").write_text("changed")
    spoilt = subprocess.run(
        ["sh", "install.sh", str(tmp_path / "no")], cwd=bundle, capture_output=True, timeout=100, check=False
    )
    assert spoilt.returncode != 0 and not (tmp_path / "no").exists()
