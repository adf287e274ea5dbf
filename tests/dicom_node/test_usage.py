"""Which rounds used a patient is told from the audit trail; a list that was changed afterwards shows."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from dicom_node.audit import AuditLog
from dicom_node.cli import run as fedpacs
from dicom_node.config import NodeConfig, load_config
from dicom_node.optout import opt_out
from dicom_node.records import Catalogue, CohortRule, InstanceRecord, StudyRecord
from dicom_node.records.usage import usage_digest
from dicom_node.setup import write_default_config
from dicom_node.vault import Vault

PROJECT = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """Two patients; the first took part in rounds 1 and 3, the second in 1 to 3."""
    config = load_config(write_default_config(tmp_path / "node"))
    with closing(Vault.open(config)) as vault:
        vault.remember("patient", "PAT-1", "p1")
        vault.remember("patient", "PAT-2", "p2")
    with closing(Catalogue(config.storage.catalogue)) as catalogue, closing(AuditLog(config.storage.audit)) as log:
        for uid, patient in (("2.25.1", "p1"), ("2.25.2", "p1"), ("2.25.3", "p2")):
            image = InstanceRecord(f"{uid}.1", uid, f"{uid}.9", "1.2", "1.2", 8, 8, 1, f"{uid}/1.dcm", "ab" * 32)
            catalogue.add_study(StudyRecord(uid, patient, "DX", instances=1, content_hash=uid), [image])
        for number, studies in ((1, ["2.25.1", "2.25.3"]), (2, ["2.25.3"]), (3, ["2.25.1", "2.25.2", "2.25.3"])):
            catalogue.mark_used(PROJECT, number, studies)
            used = usage_digest(catalogue.used_in(PROJECT, number))
            log.append("round.trained", project=PROJECT, round=number, studies=len(studies), used=used)
            log.append("egress", project=PROJECT, round=number, what="update", sha256=f"{number}" * 64)
    return config


def _ask(config: NodeConfig, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[dict[str, object]]]:
    code = fedpacs(["audit", "rounds", "--config", str(config.path), "--json", *argv])
    out = capsys.readouterr().out
    return code, json.loads(out)["rounds"] if out else []


def test_the_rounds_of_a_patient_are_told_and_the_question_recorded(
    config: NodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for who in (["--patient", " PAT-1 "], ["--pseudonym", "p1"]):
        code, found = _ask(config, capsys, *who, "--reason", "the patient asked", "--by", "Dr. Who")
        assert code == 0
        assert [(one["round"], one["studies"], one["proof"]) for one in found] == [(1, 1, "proven"), (3, 2, "proven")]
        assert found[0]["left"] == ["1" * 64]
    with closing(AuditLog(config.storage.audit)) as log:
        asked = list(log.records("patient.rounds_asked"))
    assert [(one.facts["rounds"], one.facts["by"]) for one in asked] == [(2, "Dr. Who")] * 2
    for path in (config.storage.catalogue, config.storage.audit):
        assert all(b"PAT-1" not in file.read_bytes() for file in path.parent.glob(path.name + "*"))


def test_a_use_that_was_taken_out_or_put_in_afterwards_shows(
    config: NodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Catalogue(config.storage.catalogue)) as catalogue:
        catalogue.connection.execute("DELETE FROM uses WHERE study_uid = '2.25.2'")
        catalogue.mark_used(PROJECT, 2, ["2.25.1"])
    code, found = _ask(config, capsys, "--patient", "PAT-1", "--reason", "audit")
    assert code == 8
    assert [(one["round"], one["proof"]) for one in found] == [(1, "proven"), (2, "changed"), (3, "changed")]


def test_a_round_without_a_record_is_not_believed(config: NodeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(Catalogue(config.storage.catalogue)) as catalogue:
        catalogue.mark_used("cd" * 32, 1, ["2.25.1"])
    assert _ask(config, capsys, "--patient", "PAT-1", "--reason", "audit")[0] == 8


def test_what_is_missing_is_said(config: NodeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ask(config, capsys, "--reason", "x")[0] == 4
    assert _ask(config, capsys, "--patient", "PAT-1", "--pseudonym", "p1", "--reason", "x")[0] == 4
    assert _ask(config, capsys, "--patient", "PAT-1", "--reason", " ")[0] == 4
    assert _ask(config, capsys, "--patient", "NOBODY", "--reason", "x")[0] == 4


def test_a_withdrawn_patient_is_in_no_later_cohort(config: NodeConfig) -> None:
    """The cohort is selected anew for each round, so the next round is the first without the patient."""
    rule = CohortRule()
    with closing(Catalogue(config.storage.catalogue)) as catalogue:
        assert {entry.study.patient for entry in catalogue.cohort(rule).entries} == {"p1", "p2"}
        opt_out(config, "PAT-1", "Dr. Who")
        assert {entry.study.patient for entry in catalogue.cohort(rule).entries} == {"p2"}
        assert catalogue.rounds_of("2.25.2") == [(PROJECT, 3)]  # what was is still told
