"""Noisy rounds at a hospital: charged before they train, stopped by either budget, across kills, runs and projects."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from aggregator_client import private
from aggregator_client.cli.project import app as project_app
from aggregator_client.coordinator.card import card
from aggregator_client.project import ProjectDocument, validated
from aggregator_client.sheet import plain_words
from dicom_node.audit import AuditLog
from dicom_node.cli.node import app as node_app
from dicom_node.config import load_config
from dicom_node.records import Catalogue
from dicom_node.records.budget import PrivacyBudget
from tests.aggregator_client import hospital
from tests.aggregator_client.test_executor import Desk, refused
from tests.aggregator_client.test_executor import trainer as trainer  # the fixture
from trainer import weights
from trainer.privacy.accountant import Spend, privacy_loss

NETWORK = {"name": "small_resnet", "args": {"in_channels": 1, "classes": 3, "widths": [8, 16], "norm": "group"}}
LOCAL = {"epochs": 1, "batch": 9, "lr": 3e-3, "class_weighted": False}
DP = {"epsilon": 30.0, "noise_multiplier": 1.0, "clip": 0.5}


def noisy(dp=(), **changes):
    return {"network": NETWORK, "local": LOCAL, "privacy": {"mode": "sealed", "dp": DP | dict(dp)}} | changes


@pytest.fixture
def desk(tmp_path, trainer):
    made = []

    def make(site="", **changes):
        made.append(Desk(tmp_path, trainer, **changes))
        if site:
            file = made[-1].config.path
            file.write_text(file.read_text().replace("epsilon = 10.0", f"epsilon = {site}"))
            made[-1].executor.config = load_config(file)
        made[-1].hospital.approve(made[-1].project)
        return made[-1]

    yield make
    for one in made:
        one.close()


def spent(desk):
    with closing(PrivacyBudget(desk.config.storage.catalogue, readonly=True)) as budget:
        return budget.projects()


def loss(rounds, delta=1e-5):
    return privacy_loss([Spend(1.0, 0.334, 3 * rounds)], delta).epsilon  # 27 patients, 9 a step


def test_a_round_is_charged_before_it_trains_and_told_everywhere(desk):
    one = desk(site="100", **noisy())
    answer = one.ask(1)
    assert answer.header["kind"] == "update" and answer.header["loss"] is None and answer.header["steps"] == 3
    assert weights.to_bytes(weights.from_bytes(answer.parts["model"])) != one.model
    (charged,), (trained,) = one.audit.records("round.budget"), one.audit.records("round.trained")
    assert charged.seq < trained.seq and charged.facts["patients"] == 27 and charged.facts["unit"] == "patient"
    assert charged.facts["epsilon"] == pytest.approx(loss(1), abs=1e-5) and "PLD" in charged.facts["accountant"]
    assert one.ask(2).header["kind"] == "update"
    (project,) = spent(one)
    assert project["epsilon"] == pytest.approx(loss(2)) and project["trainings"] == 2
    told = CliRunner().invoke(node_app, ["status", "--config", str(one.config.path)])
    assert told.exit_code == 0 and f"epsilon {loss(2):.2f} of 100" in told.stdout
    assert f"{100 - loss(2):.2f} left" in told.stdout


def test_the_round_that_would_pass_the_projects_budget_is_not_trained(desk):
    one = desk(site="100", **noisy({"epsilon": loss(1) + 0.1}))
    assert one.ask(1).header["kind"] == "update"
    refused(one.ask(2), "0.10 is left: the round is not trained")
    assert len(list(one.audit.records("round.trained"))) == 1 and spent(one)[0]["trainings"] == 1
    (refusal,) = one.audit.records("round.over_budget")
    assert "in this project" in refusal.facts["reason"]
    refused(one.ask(1, run="r2"), "is left")  # another run of the same project has no budget of its own


def test_the_hospitals_total_holds_over_projects(desk, tmp_path):
    one = desk(site=f"{loss(1) + 0.5:.4f}", **noisy())
    assert one.ask(1).header["kind"] == "update"
    other = hospital.project(one.coordinator, **noisy(), name="another")
    one.hospital.approve(other)
    refused(one.ask(1, digest=other.digest), "over all projects")


def test_a_repeated_request_is_charged_once_until_its_training_ended(desk):
    one = desk(**noisy())
    document, config = one.project.document, one.config
    made = private.plan(config, document)

    def charge(request="a" * 64):
        return private.charge(
            config, one.audit, document, made, project=one.project.digest, run="r", number=1, request=request
        )

    first = charge()
    assert charge() == first and spent(one)[0]["trainings"] == 1  # killed before it ended
    private.ended(config, first)
    assert charge() != first and spent(one)[0]["trainings"] == 2  # it may have left: noise drawn anew costs anew
    assert charge("b" * 64) > first and spent(one)[0]["trainings"] == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from dicom_node.records.budget import Figures, PrivacyBudget, Training
budget = PrivacyBudget(Path(sys.argv[1]))
budget.spend(Training("p", "r", 1, "q", "patient", 1.0, 0.1, 5), ["a", "b"], lambda past: Figures(1.5, 1e-5, 2.5, 1e-5, "PLD"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_budget_survives_a_kill_right_after_it_was_charged(tmp_path):
    with closing(Catalogue(tmp_path / "catalogue.db")):
        pass
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "catalogue.db")], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with closing(PrivacyBudget(tmp_path / "catalogue.db")) as budget:
        assert budget.site_epsilon() == 2.5 and budget.projects()[0]["patients"] == 2


def test_a_study_that_came_after_the_charge_is_not_let_out(desk, monkeypatch):
    one = desk(**noisy())
    planned = private.plan

    def fewer(config, document):
        made = planned(config, document)
        return private.Plan(made.steps, made.patients, frozenset(sorted(made.studies)[1:]))

    monkeypatch.setattr(private, "plan", fewer)
    refused(one.ask(1), "cohort changed")
    work = one.config.storage.federation / "work"
    assert not list(work.glob("*/out/result.json"))  # nothing for a later stage of secure aggregation to find


def test_patients_with_several_images_need_the_unit_patient(desk):
    one = desk(**noisy({"unit": "record"}))
    assert one.ask(1).header["kind"] == "update"  # one image a patient here
    with closing(Catalogue(one.config.storage.catalogue)) as catalogue:
        first, second = [e.study for e in catalogue.cohort(one.project.document.cohort_rule).split("")["train"]][:2]
        change = "UPDATE studies SET patient = ? WHERE study_uid = ?"
        catalogue.connection.execute(change, (first.patient, second.study_uid))
    refused(one.ask(2), 'unit = "patient"')


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": {"class_weighted": True}}, "class_weighted must be false"),
        ({"network": {"name": "small_resnet", "args": {"classes": 3}}}, 'norm must be "group"'),
        ({"algorithm": {"name": "scaffold"}}, "must not be scaffold"),
        ({"personal": {"epochs": 1}}, "personal.epochs must be 0"),
        ({"privacy": {"dp": {"epsilon": 8, "noise_multiplier": 0.01}}}, "noise_multiplier"),
        ({"privacy": {"dp": {"epsilon": 8, "noise_multiplier": 1, "sigma": 1}}}, "sigma"),
    ],
)
def test_terms_that_cannot_hold_are_refused_by_name(desk, changes, words):
    good = desk(**noisy()).project.payload
    with pytest.raises(Exception, match=r"project") as found:
        validated(ProjectDocument, {**good, **changes}, "project")
    assert words in str(found.value) and not isinstance(found.value, ValidationError)


def test_sheet_forecast_and_card_tell_the_promise_and_its_limits(desk, tmp_path):
    one = desk(**noisy({"epsilon": 8.0}))
    sheet = " ".join(plain_words(one.project.document).split())
    assert "any one patient, with all images of that patient" in sheet and "epsilon 8 at delta 1e-05" in sheet
    assert "not your hospital" in sheet and "without noise" in sheet and "refuses the round" in sheet
    assert "No noise is added" not in sheet and "training loss" not in sheet
    file = tmp_path / "p.json"
    file.write_bytes(one.project.file_bytes())
    shown = CliRunner().invoke(project_app, ["show", str(file), "--config", str(one.config.path), "--json"])
    facts = json.loads(shown.stdout)["privacy"]
    assert facts["epsilon"] == pytest.approx(loss(3)) and facts["allowed"] == 8.0

    class State:
        def kept_model(self, keep):
            return 0

        def last_checkpoint(self):
            return 0

        def table(self):
            return []

        def rounds(self):
            return []

    told = card(one.project.document, one.project.digest, State())["differential_privacy"]
    assert (told["unit"], told["epsilon"], told["delta"]) == ("patient", 8.0, 1e-5) and "PLD" in told["accountant"]


@pytest.mark.slow
def test_two_hospitals_train_with_noise_end_to_end(tmp_path):
    from tests.aggregator_client.test_federation import World

    world = World(tmp_path, **noisy(), rounds=1)
    try:
        for one in world.hospitals:
            one.config.path.write_text(one.config.path.read_text().replace("epsilon = 10.0", "epsilon = 100.0"))
            one.start()
        world.coordinate("run")
        assert world.result()["rounds"] == 1
        for one in world.hospitals:
            with closing(AuditLog(one.config.storage.audit, readonly=True)) as audit:
                (charged,), (trained,) = audit.records("round.budget"), audit.records("round.trained")
                assert charged.seq < trained.seq and 0 < charged.facts["epsilon"] < 30 and audit.verify().ok
    finally:
        world.close()


def test_a_noisy_update_goes_into_the_sum_and_not_into_the_answer(desk, tmp_path):
    key = base64.b64encode(bytes(32)).decode()
    others = {name: base64.b64encode(bytes([number]) * 32).decode() for number, name in enumerate(["B", "C"], 1)}
    summed = {"mode": "secure_aggregation", "secure_aggregation": {"sites": {"North": key, **others}}, "dp": DP}
    one = desk(site="100", **(noisy() | {"privacy": summed, "min_sites": 3}))
    answer = one.ask(1)
    assert answer.header["kind"] == "update" and not answer.parts and answer.header["samples"] == 0
    (work,) = (one.config.storage.federation / "work").glob("*-train/spec.json")
    assert json.loads(work.read_text())["private"]["noise_multiplier"] == 1.0
    assert spent(one)[0]["epsilon"] == pytest.approx(loss(1))
