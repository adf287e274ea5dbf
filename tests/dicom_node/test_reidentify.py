"""`fedpacs audit reidentify`: needs the vault key, and is in the audit log before anything is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_node import cli
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.setup import write_default_config
from dicom_node.vault import Vault


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    config = load_config(write_default_config(tmp_path / "node"))
    vault = Vault.open(config)
    vault.remember("patient", "PAT-0815", "P00AA")
    vault.close()
    return config


def asked(config: NodeConfig, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["audit", "reidentify", *arguments, "--config", str(config.path)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_original_is_told_and_the_question_is_in_the_log(
    config: NodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = asked(config, capsys, "P00AA", "--reason", "incidental finding", "--by", "dpo", "--json")
    assert code == 0 and json.loads(out)["originals"] == ["PAT-0815"]
    (record,) = AuditLog(config.storage.audit).records("patient.reidentified")
    assert record.facts == {
        "of": "patient",
        "pseudonym": "P00AA",
        "found": 1,
        "by": "dpo",
        "reason": "incidental finding",
    }
    assert b"PAT-0815" not in config.storage.audit.read_bytes()
    assert AuditLog(config.storage.audit).verify().ok


def test_an_unknown_pseudonym_is_recorded_without_its_text(
    config: NodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = asked(config, capsys, "PAT-0815", "--reason", "mistake")
    assert code == 4 and out == "" and "no such patient pseudonym" in err
    (record,) = AuditLog(config.storage.audit).records("patient.reidentified")
    assert record.facts["found"] == 0 and "0815" not in json.dumps(record.facts)


def test_nothing_is_told_when_it_cannot_be_recorded(
    config: NodeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AuditLog, kind: str, **facts: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(AuditLog, "append", full)
    code, out, err = asked(config, capsys, "P00AA", "--reason", "x")
    assert code != 0 and "PAT-0815" not in out + err


@pytest.mark.parametrize("arguments", [("P00AA", "--reason", " "), ("P00AA", "--reason", "x", "--kind", "name")])
def test_a_question_without_reason_or_of_no_kind_is_refused(
    config: NodeConfig, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert asked(config, capsys, *arguments)[0] == 4


def test_without_the_vault_key_nothing_is_told(config: NodeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.vault.key_file.write_text("ab" * 32)
    code, out, _ = asked(config, capsys, "P00AA", "--reason", "x")
    assert code == 8 and out == ""
