"""The hospital's papers say what this node is set to do, change with it, invent nothing, and mark every blank."""

from __future__ import annotations

import json
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dicom_node.audit import AuditLog
from dicom_node.cli import run as fedpacs
from dicom_node.config import NodeConfig, load_config
from dicom_node.papers import gather, write_papers
from dicom_node.papers.hipaa import IDENTIFIERS
from dicom_node.projects import Projects
from dicom_node.records import Catalogue, StudyRecord
from dicom_node.setup import write_default_config


def _node(root: Path, *settings: tuple[str, str]) -> NodeConfig:
    file = write_default_config(root, name="Klinik <Süd>")
    text = file.read_text()
    for before, after in settings:
        assert before in text
        text = text.replace(before, after)
    file.write_text(text)
    return load_config(file)


def _project(config: NodeConfig, name: str, state: str, mode: str = "sealed") -> None:
    payload = {
        "purpose": f"Purpose of {name} & others.",
        "coordinator": {"name": f"University of {name}"},
        "privacy": {"mode": mode},
        "task": {"label": "finding", "classes": ["a", "b"]},
        "rounds": 7,
    }
    digest = name.encode().hex().ljust(64, "0")
    with closing(Projects(config.storage.catalogue)) as projects:
        projects.offer(digest, name, "1", json.dumps({"project": payload}).encode())
        if state != "offered":
            projects.decide(digest, state, "Dr. Yes", "pacs-admin", "", "")


def _texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def test_a_fresh_node_processes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _node(tmp_path / "node")
    assert fedpacs(["audit", "papers", "--config", str(config.path), "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = _texts(tmp_path / "out")
    assert {Path(file).name for file in told["files"]} == set(made) and len(made) == 7
    assert "No project is approved" in made["article-30-record.md"] and "Nothing leaves" in made["data-flow.svg"]
    assert told["blanks"] == sum(text.count("[BLANK: ") for name, text in made.items() if name.endswith(".md")) > 15


def test_the_papers_say_what_is_approved_received_and_sent(tmp_path: Path) -> None:
    config = _node(tmp_path / "node")
    _project(config, "Chest", "approved")
    _project(config, "Brain", "approved", "secure_aggregation")
    _project(config, "Offered", "offered")
    _project(config, "Stopped", "withdrawn")
    with closing(Catalogue(config.storage.catalogue)) as catalogue, closing(AuditLog(config.storage.audit)) as log:
        catalogue.add_study(StudyRecord("2.25.1", "p1", "CT", content_hash="a"), [])
        catalogue.add_study(StudyRecord("2.25.2", "p2", "MR", content_hash="b"), [])
        for size in (1000, 234):
            log.append("egress", what="update", bytes=size, project="x")
    write_papers(config, tmp_path / "out")
    made = _texts(tmp_path / "out")
    record, assessment = made["article-30-record.md"], made["dpia-draft.md"]
    for text in (record, assessment, made["article-30-record.html"].replace("&amp;", "&")):
        assert "Purpose of Chest & others." in text and "University of Brain" in text
        assert "Offered" not in text and "Stopped" not in text
    assert "CT: 1, MR: 1" in record and "| update | 2 | 1234 |" in record
    assert "the coordinator sees each update" in assessment and "hides single updates" in assessment
    assert "University of Chest" in made["data-flow.svg"] and "Klinik &lt;Süd&gt;" in made["data-flow.svg"]
    for name, text in made.items():
        if name.endswith(".html"):
            assert "<Süd>" not in text and text.count("<mark>") == made[name[:-5] + ".md"].count("[BLANK: ")
            HTMLParser().feed(text)
        assert "p1" not in text.split() and "2.25.1" not in text
    ElementTree.fromstring(made["data-flow.svg"])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("keep_identified_hours = 168 ", "keep_identified_hours = 12 ", "erased 12 hours after"),
        ("quarantine_hours = 0 ", "quarantine_hours = 48 ", "erased 48 hours after it was received"),
        ('encryption = "none" ', 'encryption = "attested" ', "the hospital vouches for it"),
        ('passphrase_env = "" ', 'passphrase_env = "VAULT" ', "a passphrase (scrypt)"),
        ("key_command = [] ", "key_command = ['hsm'] ", "a program or token"),
        ('profile = "federated-default" ', 'profile = "basic" ', "profile basic"),
    ],
)
def test_another_setting_gives_another_paper(tmp_path: Path, before: str, after: str, said: str) -> None:
    for number, settings in enumerate(((), ((before, after),))):
        config = _node(tmp_path / str(number), *settings)
        write_papers(config, tmp_path / f"out{number}")
    assert said not in _texts(tmp_path / "out0")["article-30-record.md"]
    assert said in _texts(tmp_path / "out1")["article-30-record.md"]


def test_hipaas_eighteen_identifiers_are_told_by_the_profiles_own_rules(tmp_path: Path) -> None:
    assert [letter for letter, _, _ in IDENTIFIERS] == list("ABCDEFGHIJKLMNOPQR")
    made = {}
    for profile in ("basic", "federated-default"):
        config = _node(tmp_path / profile, ('profile = "federated-default" ', f'profile = "{profile}" '))
        write_papers(config, tmp_path / f"out-{profile}")
        made[profile] = _texts(tmp_path / f"out-{profile}")["hipaa-deidentification.md"]
        rules = gather(config).profile
        for tag, keyword in (pair for _, _, pairs in IDENTIFIERS for pair in pairs):
            rule = rules.rule(tag)
            assert rule is None or f"{keyword}: " in made[profile]
    assert "is not claimed" in made["federated-default"]  # it keeps shifted dates
    assert "dates that stay are shifted" in made["federated-default"] and "are shifted" not in made["basic"]
    assert "PatientName: kept" not in made["basic"] and "PatientName: kept" not in made["federated-default"]
