"""The fedpacs command: exit codes, one sentence on bad input, JSON that is JSON, help for every command."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from dicom_node import cli
from dicom_node.audit import AuditLog
from dicom_node.config import load_config
from dicom_node.setup import write_default_config


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return write_default_config(tmp_path / "node", port=11191)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def commands(group: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(group, click.Group):
        return [path]
    context = click.Context(group)
    found = [path]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += commands(command, (*path, name))
    return found


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for path in commands(cli.build()):
        code, out, err = call(capsys, *path, "--help")
        assert code == 0 and err == "" and "Usage: fedpacs" in out, path
        assert len(out.splitlines()) > 5, path


def test_every_entry_point_is_described_at_the_top() -> None:
    assert {entry.name for entry in entry_points(group=cli.GROUP) if "." not in entry.name} == set(cli.HELP)


def test_the_node_commands_do_not_load_torch(node: Path) -> None:
    script = (
        "import sys; from dicom_node import cli; code = cli.run(['audit', 'verify', '--config', sys.argv[1]]);"
        "sys.exit(99 if 'torch' in sys.modules or 'flwr' in sys.modules else code)"
    )
    AuditLog(load_config(node).storage.audit).append("node.started")
    done = subprocess.run(
        [sys.executable, "-c", script, str(node)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_init_says_what_to_do_next_and_refuses_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "node", "init", tmp_path / "n", "--ae-title", "CT1", "--port", 11192, "--json")
    made = json.loads(out)
    assert code == 0 and made["ae_title"] == "CT1" and load_config(made["config"]).dicom.port == 11192
    code, out, err = call(capsys, "node", "init", tmp_path / "n")
    assert code == 3 and err.startswith("fedpacs: ") and err.count("\n") == 1 and out == ""
    code, _, err = call(capsys, "node", "init", tmp_path / "m", "--ae-title", "far too long for one")
    assert code == 3 and "--ae-title" in err


def test_init_lets_named_networks_in_beside_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    networks = ("--allow-network", "10.20.0.0/16", "--allow-network", "2001:db8::/48")
    assert call(capsys, "node", "init", tmp_path / "n", *networks)[0] == 0
    allowed = load_config(tmp_path / "n" / "node.toml").dicom.allowed_networks
    assert allowed == ("127.0.0.0/8", "::1/128", "10.20.0.0/16", "2001:db8::/48")
    code, _, err = call(capsys, "node", "init", tmp_path / "m", "--allow-network", "hospital.example")
    assert code == 3 and "--allow-network" in err and not (tmp_path / "m" / "node.toml").exists()


def test_bad_configuration_is_exit_3_without_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDPACS_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    for arguments in (["node", "status"], ["audit", "show", "--config", tmp_path / "none.toml"]):
        code, out, err = call(capsys, *arguments)
        assert code == 3 and out == "" and err.count("\n") == 1 and "Traceback" not in err


def test_usage_errors_are_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "node", "init")[0] == 2
    assert call(capsys, "nonsense")[0] == 2
    assert call(capsys, "node", "init", "x", "--port", "99999999")[0] == 2


def test_an_unexpected_error_is_one_sentence_and_exit_1(
    capsys: pytest.CaptureFixture[str], node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("GRÜNEWALD^BÄRBEL")

    monkeypatch.setattr(AuditLog, "verify", broken)
    AuditLog(load_config(node).storage.audit).append("node.started")
    code, _, err = call(capsys, "audit", "verify", "--config", node)
    assert code == 1 and "RuntimeError" in err and "GRÜNEWALD" not in err and "Traceback" not in err


def test_audit_commands(capsys: pytest.CaptureFixture[str], node: Path, tmp_path: Path) -> None:
    code, _, err = call(capsys, "audit", "verify", "--config", node)
    assert code == 4 and "has not run yet" in err
    log = AuditLog(load_config(node).storage.audit)
    log.append("egress", bytes=12)
    log.append("node.started")
    code, out, _ = call(capsys, "audit", "verify", "--config", node, "--json")
    assert code == 0 and json.loads(out)["ok"] is True and json.loads(out)["records"] == 2
    code, out, _ = call(capsys, "audit", "show", "--config", node, "--kind", "egress", "--json")
    assert [record["facts"] for record in json.loads(out)["records"]] == [{"bytes": 12}]
    target = tmp_path / "audit.jsonl"
    assert call(capsys, "audit", "export", "--config", node, "--out", target)[0] == 0
    assert [json.loads(line)["seq"] for line in target.read_text().splitlines()] == [1, 2]
    log._db.execute("DROP TRIGGER records_no_update")
    log._db.execute("UPDATE records SET facts = '{\"bytes\": 13}' WHERE seq = 1")
    code, _, err = call(capsys, "audit", "verify", "--config", node)
    assert code == 8 and "record 1" in err
    code, out, _ = call(capsys, "audit", "verify", "--config", node, "--json")
    assert code == 8 and json.loads(out)["first_broken"] == 1


def test_doctor_names_what_to_mend(capsys: pytest.CaptureFixture[str], node: Path) -> None:
    code, out, _ = call(capsys, "doctor", "--config", node, "--json")
    assert code == 0, out
    (node.parent / "vault").chmod(0o755)
    (node.parent / "keys" / "vault.key").unlink()
    code, out, _ = call(capsys, "doctor", "--config", node, "--json")
    wrong = {finding["what"]: finding["mend"] for finding in json.loads(out)["findings"] if not finding["ok"]}
    assert code == 3 and set(wrong) == {"vault", "vault key"} and "chmod 700" in wrong["vault"]


def test_optout_and_labels_through_the_command(capsys: pytest.CaptureFixture[str], node: Path, tmp_path: Path) -> None:
    assert call(capsys, "node", "optout", "add", "PAT-1", "--config", node, "--by", "Dr. Who")[0] == 0
    code, out, _ = call(capsys, "node", "optout", "list", "--config", node, "--json")
    assert code == 0 and len(json.loads(out)["optouts"]) == 1 and "PAT-1" not in out
    assert call(capsys, "node", "optout", "remove", "PAT-2", "--config", node)[0] == 4
    file = tmp_path / "labels.csv"
    file.write_text("accession_number,finding\nA1,x\n,y\n")
    code, out, err = call(capsys, "node", "labels", "import", file, "--config", node, "--json")
    assert code == 10 and json.loads(out)["waiting"] == 1 and "A1" not in err
    code, _, err = call(capsys, "node", "labels", "import", tmp_path / "none.csv", "--config", node)
    assert code == 4 and "cannot be read" in err


def test_exit_codes_are_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md").read_text()
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130):
        assert f"| {code} |" in text
