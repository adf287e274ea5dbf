"""The quarantine's list shows nobody; a release is one more pass through de-identification; a purge leaves no byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dicom_node.audit import AuditLog
from dicom_node.cli.node import app
from dicom_node.config import RetentionSettings
from dicom_node.errors import InputError, RefusedError
from dicom_node.quarantine import Quarantine
from dicom_node.worker.chores import Chores
from tests.dicom_node.deid_double import DeidDouble
from tests.dicom_node.test_worker import Bench, check_dataset
from tests.interop.studies import ct_instance, planted


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Bench]:
    """Study 1: instances 2 and 3 of 4 are set aside; study 2: nothing is left of it."""
    one = Bench(tmp_path / "node", DeidDouble(quarantine={2}, crash={3}))
    one.send(1, 1, 2, 3, 4)
    one.send(2, 2)
    one.run()
    yield one
    one.spool.close()


def bytes_left(node: Bench, study: int, number: int) -> bool:
    """Whether the pixel data and header of an instance stand anywhere left of the wall."""
    needle = f"{planted(study).study_uid}.1.{number}".encode() + b"\x00"
    folders = (node.config.storage.spool / "segments", node.config.storage.quarantine)
    return any(needle in p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file())


def test_the_list_tells_what_and_why_and_of_nobody(node: Bench) -> None:
    done = CliRunner().invoke(app, ["quarantine", "list", "--json", "--config", str(node.config.path)])
    found = json.loads(done.stdout)["set_aside"]
    assert [(f["number"], f["study"], f["modality"], f["kind"]) for f in found] == [
        (2, 1, "CT", "worker"),
        (3, 1, "CT", "worker"),
        (5, 5, "CT", "worker"),
    ]
    assert {f["sop_class"] for f in found} == {"CT Image Storage"}
    assert found[0]["reason"] == "text is burned into the pixels"
    text = done.stdout + CliRunner().invoke(app, ["quarantine", "list", "--config", str(node.config.path)]).stdout
    for token in planted(1).tokens() + planted(2).tokens():
        assert token not in text


def test_a_release_passes_nothing_as_it_is(node: Bench) -> None:
    with Quarantine(node.config) as quarantine:
        assert quarantine.release([2, 5], "Ann") == 2
    node.run()
    assert [o.number for o in Quarantine(node.config).entries()] == [2, 3, 5], "it is as unclean as before"
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 4]})


def test_what_a_better_profile_cleans_joins_its_study(node: Bench) -> None:
    node.deid.quarantine, node.deid.crash = set(), set()
    with Quarantine(node.config) as quarantine:
        quarantine.release([2], "Ann", "the profile was mended")
        quarantine.release([5], "Ann")
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2, 3, 4], 2: [2]})
    assert Quarantine(node.config).entries() == []
    assert not list(node.config.storage.quarantine.rglob("*.dcm"))
    (first, second) = node.audit("quarantine.released")
    assert (first["by"], first["reason"], first["numbers"]) == ("Ann", "the profile was mended", [2])
    assert second["studies"] == 1


def test_a_release_works_after_the_received_bytes_were_forgotten(node: Bench) -> None:
    node.clock.ahead = 1000 * 3600
    node.worker.chores.forget()
    assert node.spool.instance(2).state == "purged"
    node.clock.ahead = 0
    node.deid.quarantine = set()
    with Quarantine(node.config) as quarantine:
        quarantine.release([2], "Ann")
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2, 4]})


def test_a_purge_erases_every_byte_and_says_who_did_it(node: Bench) -> None:
    assert bytes_left(node, 1, 2) and bytes_left(node, 2, 2)
    done = CliRunner().invoke(app, ["quarantine", "purge", "2", "5", "--by", "Ann", "--config", str(node.config.path)])
    assert done.exit_code == 0, done.output
    assert not bytes_left(node, 1, 2) and not bytes_left(node, 2, 2)
    assert bytes_left(node, 1, 3) and bytes_left(node, 1, 1), "only what was named"
    assert [o.number for o in Quarantine(node.config).entries()] == [3]
    assert [s.patient_id for s in node.spool.studies() if s.study_uid == planted(2).study_uid] == [""]
    (record,) = node.audit("quarantine.purged")
    assert (record["by"], record["instances"], record["studies"]) == ("Ann", 2, 2)
    node.spool.reopen(node.spool.instance(1).study_key)
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 4]})


def test_what_never_became_part_of_a_study_can_only_be_purged(node: Bench) -> None:
    node.spool.add_file(ct_instance(planted(3), 1), source="TEST")
    node.spool.add_file(ct_instance(planted(3), 1, size=8), source="TEST")  # other bytes, the same UID
    with Quarantine(node.config) as quarantine:
        (conflict,) = [o for o in quarantine.entries() if o.kind == "conflict"]
        with pytest.raises(RefusedError, match="never became part of a study"):
            quarantine.release([conflict.number], "Ann")
        assert quarantine.purge([conflict.number], "Ann") == 1
        assert conflict.number not in [o.number for o in quarantine.entries()]
        with pytest.raises(InputError, match="is not set aside"):
            quarantine.purge([1], "Ann")
    assert len(node.spool.find(f"{planted(3).study_uid}.1.1")) == 1


def test_a_study_that_waits_for_its_worker_is_not_purged_under_it(node: Bench) -> None:
    node.spool.reopen(node.spool.instance(2).study_key)
    with Quarantine(node.config) as quarantine, pytest.raises(RefusedError, match="try again later"):
        quarantine.purge([2], "Ann")
    assert bytes_left(node, 1, 2)


def test_release_and_purge_want_to_know_what(node: Bench) -> None:
    for command in ("release", "purge"):
        done = CliRunner().invoke(app, ["quarantine", command, "--config", str(node.config.path)])
        assert isinstance(done.exception, InputError)


def test_retention_erases_what_nobody_decided_about_in_time(node: Bench) -> None:
    hours = node.config.model_copy(update={"retention": RetentionSettings(quarantine_hours=2)})
    aside = [one.number for one in Quarantine(node.config).entries()]
    newest = max(Quarantine(node.config).spool.instance(number).received_at for number in aside)
    for config, age, left in ((node.config, 100, 3), (hours, 1, 3), (hours, 3, 0)):
        pipeline = SimpleNamespace(config=config)
        Chores(pipeline, clock=lambda age=age: newest + age * 3600.0).forget_set_aside()
        assert len(Quarantine(node.config).entries()) == left
    assert not list(node.config.storage.quarantine.glob("*/*.dcm"))
    (record,) = AuditLog(node.config.storage.audit).records("quarantine.purged")
    assert (record.facts["by"], record.facts["numbers"]) == ("retention", aside)
