"""Labels land by accession number before or after the study; opt-outs hold for studies past and future."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.errors import InputError
from dicom_node.labels import import_csv, land, read_csv
from dicom_node.optout import OptOuts, opt_in, opt_out
from dicom_node.records import Catalogue, StudyRecord
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from dicom_node.vault import Vault


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return load_config(write_default_config(tmp_path / "node"))


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    file = tmp_path / "labels.csv"
    file.write_text("accession_number,finding,partition\nACC001,normal,test\nACC002,viral,\n", encoding="utf-8")
    return file


def test_labels_wait_for_their_study_and_land(config: NodeConfig, csv: Path) -> None:
    report = import_csv(config, csv)
    assert (report.rows, report.labels, report.landed, report.waiting, report.problems) == (2, 3, 0, 2, [])
    with Spool(config.storage.spool) as spool:
        waiting = spool.labels("ACC001")
    assert waiting == {"finding": "normal", "partition": "test"}
    vault, catalogue = Vault.open(config), Catalogue(config.storage.catalogue)
    vault.remember("accession", "ACC001", "2.25.1")
    assert land(vault, catalogue, "ACC001", waiting) == 0, "the crosswalk alone makes no study"
    catalogue.add_study(StudyRecord("2.25.1", "p1", "DX"), [])
    assert land(vault, catalogue, "ACC001", waiting) == 1
    csv.write_text("accession_number,finding\nACC001,bacterial\n", encoding="utf-8")
    assert import_csv(config, csv).landed == 1
    assert {label.name: label.value for label in catalogue.labels("2.25.1")} == {
        "finding": "bacterial",
        "partition": "test",
    }


def test_nothing_identified_of_an_import_stands_right_of_the_wall(config: NodeConfig, csv: Path) -> None:
    import_csv(config, csv)
    AuditLog(config.storage.audit).require_whole()
    for path in (config.storage.catalogue, config.storage.audit):
        for file in path.parent.glob(path.name + "*"):
            assert b"ACC001" not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("accession,finding\nA1,x\n", "no column accession_number"),
        ("accession_number\nA1\n", "at least one more column"),
        ("", "no column accession_number"),
        ("accession_number,finding,finding\nA1,x,y\n", "name of its own"),
    ],
)
def test_a_wrong_header_is_one_sentence(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=told) as caught:
        read_csv(file)
    assert "\n" not in str(caught.value) and "A1" not in str(caught.value)


def test_a_missing_column_asked_for_is_named(csv: Path) -> None:
    with pytest.raises(InputError, match="no column grade"):
        read_csv(csv, ("grade",))


def test_single_bad_rows_are_set_aside_by_number(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(
        "accession_number,finding,partition\nA1,x,\n,y,\nA1,z,\nA2,x,sometimes\nA3,x,test,extra\nA4,x,train\n"
    )
    table, problems = read_csv(file)
    assert set(table) == {"A1", "A4"} and [problem.split(":")[0] for problem in problems] == [
        "row 3",
        "row 4",
        "row 5",
        "row 6",
    ]
    assert not any(accession in problem for problem in problems for accession in ("A1", "A2", "A3"))


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("accession_number,finding\nA1,grün\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_csv(tmp_path / "latin.csv")


def test_an_opt_out_withdraws_and_holds(config: NodeConfig) -> None:
    vault, catalogue = Vault.open(config), Catalogue(config.storage.catalogue)
    vault.remember("patient", "PAT-1", "p1")
    catalogue.add_study(StudyRecord("2.25.1", "p1", "DX", content_hash="a"), [])
    catalogue.add_study(StudyRecord("2.25.2", "p2", "DX", content_hash="b"), [])
    assert opt_out(config, " PAT-1 ", "Dr. Who") == 1
    optouts = OptOuts(config.storage.catalogue, vault)
    assert optouts.contains("PAT-1") and not optouts.contains("PAT-2") and len(optouts.list()) == 1
    assert {study.study_uid: study.state for study in catalogue.studies()} == {
        "2.25.1": "withdrawn",
        "2.25.2": "eligible",
    }
    assert opt_in(config, "PAT-1", "Dr. Who") == 1 and not optouts.contains("PAT-1")
    with pytest.raises(InputError, match="not opted out"):
        opt_in(config, "PAT-1", "Dr. Who")
    with pytest.raises(InputError, match="empty"):
        opt_out(config, "  ", "Dr. Who")
    kinds = [record.kind for record in AuditLog(config.storage.audit).records()]
    assert kinds == ["patient.optout", "patient.optin"]
    for path in (config.storage.catalogue, config.storage.audit):
        assert all(b"PAT-1" not in file.read_bytes() for file in path.parent.glob(path.name + "*"))
