"""Every command that the documentation names runs: one hospital and one coordinator are taken through all of them.

What needs a daemon, a browser or a whole federation is run by the tests named in `ELSEWHERE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt

from dicom_node.cli import build, run
from dicom_node.config import load_config
from tests.dicom_node.test_worker import Bench
from tests.docs.documented import ROOT, command_lines
from tests.interop.studies import ct_instance, planted

ELSEWHERE = {
    "demo": "tests/aggregator_client/test_demo.py",
    "node run": "tests/interop/node_process.py",
    "node pull": "tests/interop/test_retrieve.py",
    "node results give": "tests/dicom_node/test_results.py",
    "project check": "tests/aggregator_client/test_contract_check.py",
    "coordinator run": "tests/aggregator_client/test_evidence.py",
    "coordinator export": "tests/aggregator_client/test_evidence.py",
    "coordinator verify": "tests/aggregator_client/test_evidence.py",
    "coordinator retrain": "tests/aggregator_client/test_evidence.py",
    "coordinator dashboard": "tests/aggregator_client/test_dashboard.py",
    "federation relay": "tests/aggregator_client/test_peers.py",
    "federation ledger": "tests/aggregator_client/test_peers.py",
    "model predict": "tests/trainer/test_segmentation.py",
    "model labels": "tests/trainer/test_reports.py",
}


@contextmanager
def listening() -> Iterator[str]:
    """A PACS that takes everything, as AETITLE@host:port."""
    ae = AE(ae_title="PACS")
    ae.add_supported_context("1.2.840.10008.1.1")
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0x0000)])
    try:
        yield f"PACS@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


class Walk:
    """Runs commands and remembers which."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.done: set[str] = set()
        self._capsys = capsys

    def __call__(self, *words: object, code: int = 0) -> str:
        given = [str(word) for word in words]
        ended = run(given)
        told = self._capsys.readouterr()
        assert ended == code, f"fedpacs {' '.join(given)} ended with {ended}: {told.err or told.out}"
        self.done |= {" ".join(given[:count]) for count in (1, 2, 3)}
        return told.out


@pytest.fixture
def walk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Walk:
    monkeypatch.setenv("FEDPACS_BACKUP_PASSPHRASE", "correct horse battery")
    return Walk(capsys)


@pytest.mark.timeout(600)
def test_every_documented_command_runs(walk: Walk, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "north")
    bench.send(1, 1)
    bench.run()
    bench.deid.quarantine = {7}
    bench.send(3, 7)
    bench.run()
    bench.send(2, 7)
    bench.run()
    _hospital(walk, bench, tmp_path)
    bench.spool.close()
    config = tmp_path / "north" / "node.toml"
    _federation(walk, config, tmp_path)
    _records(walk, config, tmp_path)
    _machine(walk, config, tmp_path)
    named = documented()
    assert len(named) > 50
    missing = named - walk.done - ELSEWHERE.keys()
    assert not missing, f"no test runs {sorted(missing)}"


@pytest.mark.parametrize(("command", "file"), ELSEWHERE.items(), ids=ELSEWHERE.keys())
def test_what_runs_elsewhere_is_run_there(command: str, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    words = command.split()
    called = ", ".join(f'"{word}"' for word in words), f'["{words[-1]}"'  # by the whole program, or by its room's part
    assert any(one in text for one in called), f"{file} runs no `fedpacs {command}`"


def documented() -> set[str]:
    """The paths of all commands that a page names."""
    top, found = build(), set()
    for line in command_lines():
        command: click.Command | None = top
        path: list[str] = []
        for word in line.words[1:]:
            if not hasattr(command, "list_commands"):
                break
            command = command.get_command(click.Context(command), word)  # type: ignore[union-attr]
            if command is None:
                break
            path.append(word)
        if path and not hasattr(command, "list_commands"):
            found.add(" ".join(path))
    return found


def _hospital(walk: Walk, bench: Bench, tmp_path: Path) -> None:
    at = ("--config", bench.folder / "node.toml")
    walk("node", "init", tmp_path / "south", "--ae-title", "SOUTH", "--port", 11119)
    for word in ("pause", "status", "resume"):
        walk("node", word, *at)
    (tmp_path / "labels.csv").write_text(f"accession_number,finding\n{planted(1).accession},normal\n")
    walk("node", "labels", "import", tmp_path / "labels.csv", *at)
    walk("node", "optout", "add", "PID-1", *at)
    assert len(json.loads(walk("node", "optout", "list", *at, "--json"))) == 1
    walk("node", "optout", "remove", "PID-1", *at)
    numbers = [one["number"] for one in json.loads(walk("node", "quarantine", "list", *at, "--json"))["set_aside"]]
    walk("node", "quarantine", "show", numbers[0], *at)
    walk("node", "quarantine", "purge", numbers[0], *at, "--reason", "walk")
    walk("node", "quarantine", "release", numbers[1], *at, "--reason", "walk")
    (tmp_path / "password").write_text("correct horse battery")
    secret = ("--password-file", tmp_path / "password")
    walk("node", "account", "add", "Ada", "--role", "admin", *secret, *at)
    walk("node", "account", "add", "Eve", *secret, *at)
    walk("node", "account", "role", "Eve", "--role", "data-manager", *at)
    walk("node", "account", "password", "Eve", *secret, *at)
    walk("node", "account", "token", "scraper", *at)
    walk("node", "account", "list", *at)
    walk("node", "account", "remove", "Eve", *at)
    walk("node", "results", "list", *at)
    (tmp_path / "one.dcm").write_bytes(ct_instance(planted(1)))
    with listening() as pacs:
        walk("node", "echo", pacs)
        walk("node", "send", pacs, tmp_path / "one.dcm")
    walk("deid", tmp_path / "one.dcm", "--out", tmp_path / "clean")
    walk("deid", "--explain", "StudyDescription")


def _federation(walk: Walk, config: Path, tmp_path: Path) -> None:
    home, at = ("--dir", tmp_path / "coordinator"), ("--config", config)
    walk("coordinator", "init", tmp_path / "coordinator", "--host", "127.0.0.1", "--port", 9099, "--name", "U")
    walk("coordinator", "invite", "North", "--out", tmp_path / "north.json", *home)
    walk("federation", "join", tmp_path / "north.json", *at, "--out", tmp_path / "enrolment.json")
    walk("coordinator", "enrol", tmp_path / "enrolment.json", *home)
    walk("coordinator", "members", *home)
    walk("federation", "show", *at)
    walk("federation", "check", *at, code=6)  # nobody listens there
    walk("coordinator", "resume", *home, code=4)  # nothing was begun
    walk("project", "new", tmp_path / "chest.toml", "--name", "walk")
    walk("project", "show", tmp_path / "chest.toml")
    signed = tmp_path / "chest.json"
    walk("project", "sign", tmp_path / "chest.toml", "--coordinator", tmp_path / "coordinator", "--out", signed)
    for verb in ("approve", "suspend", "approve", "withdraw"):
        walk("project", verb, signed, *at, "--by", "Ada", "--reason", "walk")
    walk("project", "list", *at)
    walk("audit", "attack", signed, *at, code=9)  # there are too few patients to attack
    again = tmp_path / "second.toml"
    again.write_text((tmp_path / "chest.toml").read_text().replace('name = "walk"', 'name = "another"'))
    walk("project", "sign", again, "--coordinator", tmp_path / "coordinator", "--out", tmp_path / "second.json")
    walk("project", "reject", tmp_path / "second.json", *at, "--by", "Ada", "--reason", "walk")
    walk("federation", "relay-address", "--folder", tmp_path / "relay")
    walk("federation", "rotate", *at)
    walk("coordinator", "rotate", *home)
    walk("coordinator", "status", *home)
    (tmp_path / "password").write_text("correct horse battery")
    walk("coordinator", "account", "Cleo", "--role", "admin", "--password-file", tmp_path / "password", *home)
    walk("coordinator", "backup", *home, "--out", tmp_path / "coordinator.backup")
    walk("coordinator", "restore", tmp_path / "coordinator.backup", "--to", tmp_path / "restored-coordinator")
    walk("coordinator", "revoke", "North", *home, "--reason", "walk")
    walk("coordinator", "invite", "South", "--out", tmp_path / "south.json", *home)
    walk("coordinator", "remove", "South", *home)
    walk("federation", "revoke", *at, "--reason", "walk")


def _records(walk: Walk, config: Path, tmp_path: Path) -> None:
    at = ("--config", config)
    for word in ("checkpoint", "show", "verify"):
        walk("audit", word, *at)
    walk("audit", "export", "--out", tmp_path / "messages", *at)
    walk("audit", "papers", "--out", tmp_path / "papers", *at)
    walk("audit", "rounds", "--patient", planted(1).patient_id, "--reason", "walk", *at)
    (pseudonym,) = {study.patient for study in _studies(config)}
    walk("audit", "reidentify", pseudonym, "--reason", "walk", *at)


def _studies(config: Path) -> list[object]:
    from dicom_node.records import Catalogue

    storage = load_config(config).storage
    return list(Catalogue(storage.catalogue).studies("eligible"))


def _machine(walk: Walk, config: Path, tmp_path: Path) -> None:
    at = ("--config", config)
    walk("node", "reindex", *at)
    walk("node", "backup", *at, "--out", tmp_path / "node.backup")
    walk("node", "restore", tmp_path / "node.backup", "--to", tmp_path / "restored")
    assert run(["doctor", *map(str, at)]) in (0, 3, 5)
    walk.done.add("doctor")
    orthanc = tmp_path / "orthanc"
    orthanc.mkdir()
    (orthanc / "orthanc.json").write_text('{"Name": "walk"}')
    walk("plugin", "install", "--orthanc", orthanc, *at)
    walk("plugin", "uninstall", "--orthanc", orthanc)
    walk("model", "networks")
