"""`fedpacs audit attack` at a hospital: figures recorded, a picture that stays, and updates held back until the bound holds."""

from __future__ import annotations

import json
import stat

import matplotlib.image
import pytest

from aggregator_client import attack as trial
from dicom_node.audit import AuditLog
from dicom_node.cli import run
from dicom_node.config import load_config
from tests.aggregator_client.test_executor import Desk, refused
from tests.aggregator_client.test_executor import trainer as trainer  # the fixture
from tests.aggregator_client.test_private import LOCAL, NETWORK

NOISY = {"mode": "sealed", "dp": {"epsilon": 1000.0, "noise_multiplier": 8.0, "clip": 0.5}}


@pytest.fixture
def desk(tmp_path, trainer):
    made = []

    def make(bound, **changes):
        made.append(Desk(tmp_path, trainer, network=NETWORK, local=LOCAL, **changes))
        file = made[-1].config.path
        text = file.read_text().replace("epsilon = 10.0", "epsilon = 1000.0")
        file.write_text(text if bound is None else text.replace("[privacy]", f"[privacy]\nattack_bound = {bound}"))
        made[-1].config = made[-1].executor.config = load_config(file)
        made[-1].hospital.approve(made[-1].project)
        return made[-1]

    yield make
    for one in made:
        one.close()


def attack(desk, *words):
    given = [
        "audit",
        "attack",
        desk.project.digest[:12],
        "--config",
        str(desk.config.path),
        "--targets",
        "6",
        "--steps",
        "2",
    ]
    return run([*given, *words])


def test_updates_are_held_back_until_an_attack_stayed_under_the_bound(desk, capsys, monkeypatch):
    one = desk(0.34, privacy=NOISY)
    assert attack(one) == 5
    assert "too small to count: at least 16 images" in capsys.readouterr().err
    monkeypatch.setattr(trial, "STEPS", 2)
    assert attack(one) == 5  # six of its images are too few as well
    capsys.readouterr()
    refused(one.ask(1), "sends no update before an attack")
    assert not list(one.audit.records("round.budget"))  # it is refused before anything is spent
    monkeypatch.setattr(trial, "TARGETS", 6)
    assert attack(one, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plain"]["matched"] == 6 and told["calibrated"] and told["held_back"] == ""
    assert told["leaves"]["share"] <= 0.34 and told["leaves"]["batch"] == 9
    assert one.ask(1).header["kind"] == "update"


def test_an_open_project_stays_held_back_and_the_refusal_names_no_figure(desk, capsys, monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 2)
    monkeypatch.setattr(trial, "TARGETS", 6)
    one = desk(0.0)
    assert attack(one) == 5
    told = capsys.readouterr()
    assert "held back" in told.err and "0% is allowed" in told.err
    answer = one.ask(1)
    refused(answer, "sends no update before an attack")
    assert "%" not in answer.header["reason"]
    (record,) = one.audit.records("attack.run")
    one.audit.append(
        "attack.run", **{**record.facts, "calibrated": False, "leaves": {**record.facts["leaves"], "share": 0.0}}
    )
    refused(one.ask(2), "sends no update")  # an attack that fails on a bare gradient proves nothing
    one.audit.append(
        "attack.run", **{**record.facts, "version": "0.0.1", "leaves": {**record.facts["leaves"], "share": 0.0}}
    )
    refused(one.ask(3), "sends no update")  # nor one with another version


def test_without_a_bound_nothing_is_held_back_and_the_picture_is_its_owners_alone(desk, capsys):
    one = desk(None)
    assert one.ask(1).header["kind"] == "update"
    assert attack(one, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    folder = one.config.storage.federation / "attacks"
    (picture,) = folder.rglob("picture.png")
    assert str(picture) == told["picture"] and stat.S_IMODE(picture.stat().st_mode) == 0o600
    high, wide = matplotlib.image.imread(picture).shape[:2]
    assert high * 2 == wide  # three rows of six images
    log = AuditLog(one.config.storage.audit, readonly=True)
    (record,) = log.records("attack.run")
    assert record.facts["leaves"] == told["leaves"] and "picture" not in record.facts and log.verify().ok
