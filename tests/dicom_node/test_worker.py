"""De-identification workers: each study is catalogued exactly once with the right bytes, whatever is killed or broken."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.labels import import_csv
from dicom_node.optout import opt_in, opt_out
from dicom_node.pause import pause, resume
from dicom_node.records import Catalogue
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from dicom_node.vault import Vault
from dicom_node.worker.loop import Worker
from dicom_node.worker.pipeline import Pipeline
from tests.dicom_node.deid_double import DeidDouble
from tests.interop.studies import ct_instance, planted

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Time that a test can move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Bench:
    """A node's folder with one worker in this process; `settings` replace lines of node.toml."""

    digest = ""  # of a project offered to it, where a test has one

    def __init__(self, folder: Path, deid: DeidDouble | None = None, **settings: str) -> None:
        self.folder = folder
        if not (folder / "node.toml").exists():
            write_default_config(folder, name="test")
        text = (folder / "node.toml").read_text()
        for key, value in {"quiet_seconds": "0.05", **settings}.items():
            lines = [
                f"{key} = {value}" if line.lstrip("# ").startswith(f"{key} =") else line for line in text.splitlines()
            ]
            text = "\n".join(lines)
        (folder / "node.toml").write_text(text)
        self.config: NodeConfig = load_config(folder / "node.toml")
        self.clock = Clock()
        self.deid = deid or DeidDouble()
        self.spool = Spool(self.config.storage.spool)
        self.worker = Worker(
            Pipeline(self.config, self.deid, Vault.open(self.config), self.spool), "worker-1", self.clock
        )
        self.worker.start()

    @property
    def catalogue(self) -> Catalogue:
        return self.worker.pipeline.catalogue

    def send(self, study: int, *numbers: int, **kwargs: str) -> None:
        for number in numbers:
            self.spool.add_file(ct_instance(planted(study), number, **kwargs), source="TEST")  # type: ignore[arg-type]

    def run(self, rounds: int = 60) -> None:
        """Work until nothing is left to do; each look comes after the quiet period, so what arrives late is seen."""
        idle = 0
        while idle < 3 and rounds:
            if idle < 2:
                time.sleep(0.06)
            self.worker._chores_at = 0.0
            idle = 0 if self.worker.step() else idle + 1
            rounds -= 1
        assert rounds, "the worker does not come to rest"

    def audit(self, kind: str) -> list[dict[str, object]]:
        return [r.facts for r in AuditLog(self.config.storage.audit).records(kind)]

    def state(self, study: int) -> tuple[str, str]:
        row = next(s for s in self.spool.studies() if s.study_uid == planted(study).study_uid)
        return row.state, row.reason


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    yield lambda deid=None, **settings: Bench(tmp_path / "node", deid, **settings)


def check_dataset(catalogue: Catalogue, dataset: Path, sent: dict[int, list[int]]) -> None:
    """Every study sent is there once, with exactly the files and bytes that the (deterministic) anonymizer gives."""
    deid, expected = DeidDouble(), {}
    for study, numbers in sent.items():
        for number in numbers:
            outcome = deid.deidentify(ct_instance(planted(study), number))
            expected[f"{outcome.study_instance_uid}/{outcome.sop_instance_uid}.dcm"] = outcome.output
    assert {s.study_uid for s in catalogue.studies("eligible")} == {deid.uid(planted(s).study_uid) for s in sent}
    recorded = {i.path: i.sha256 for s in catalogue.studies() for i in catalogue.instances(s.study_uid)}
    assert recorded == {path: hashlib.sha256(data or b"").hexdigest() for path, data in expected.items()}
    on_disk = {str(p.relative_to(dataset)): p.read_bytes() for p in dataset.rglob("*") if p.is_file()}
    assert on_disk == expected


def test_a_quiet_study_crosses_the_wall_once(bench: Callable[..., Bench]) -> None:
    node = bench()
    node.send(1, 1, 2, 3)
    node.send(2, 1)
    assert not node.worker.step(), "not before the quiet period"
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2, 3], 2: [1]})
    assert node.state(1) == ("deidentified", "")
    records = node.audit("study.deidentified")
    assert sorted(r["instances"] for r in records) == [1, 3]  # type: ignore[type-var]
    study = node.catalogue.studies()[0]
    assert (study.modality, study.body_part, study.sex, study.age_years) == ("CT", "CHEST", "F", 72)


def test_late_instances_take_the_study_through_once_more(bench: Callable[..., Bench]) -> None:
    node = bench()
    node.send(1, 1, 2)
    node.run()
    node.send(1, 3)
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2, 3]})
    assert [r["instances"] for r in node.audit("study.deidentified")] == [2, 3]
    seen = node.deid.seen
    node.send(1, 3)  # the very same bytes again
    node.run()
    assert node.deid.seen == seen, "a duplicate triggers nothing"


def test_an_instance_that_comes_during_the_work_is_not_forgotten(bench: Callable[..., Bench]) -> None:
    class Interrupted(DeidDouble):
        node: Bench | None = None

        def deidentify(self, data: bytes):  # type: ignore[no-untyped-def]
            if self.node is not None:
                node, self.node = self.node, None
                other = Spool(node.config.storage.spool)
                other.add_file(ct_instance(planted(1), 9), source="LATE")
                other.close()
            return super().deidentify(data)

    deid = Interrupted()
    node = bench(deid)
    node.send(1, 1, 2)
    deid.node = node
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2, 9]})


def test_what_cannot_be_cleaned_is_set_aside_and_the_rest_goes_on(bench: Callable[..., Bench]) -> None:
    node = bench(DeidDouble(quarantine={2}, crash={3}))
    node.send(1, 1, 2, 3, 4)
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 4]})
    reason = node.catalogue.studies()[0].reason
    assert "1 set aside: text is burned into the pixels" in reason
    assert "1 set aside: the anonymizer failed on it (RecursionError)" in reason
    assert "Quackenbush" not in reason, "the error's own text is not repeated"
    kept = sorted(p.read_bytes() for p in node.config.storage.quarantine.rglob("*.dcm"))
    assert len(kept) == 2 and all(b"Quackenbush" in data for data in kept), "what was set aside is kept, identified"


def test_an_object_that_takes_for_ever_is_set_aside(bench: Callable[..., Bench]) -> None:
    class Endless(DeidDouble):
        def deidentify(self, data: bytes):  # type: ignore[no-untyped-def]
            if b"Endless" in data:
                while True:
                    time.sleep(0.01)
            return super().deidentify(data)

    node = bench(Endless())
    node.worker.pipeline.seconds = 0.5
    node.spool.add_file(ct_instance(planted(1), 1), source="TEST")
    endless = replace(planted(1), physician="Endless^Ann")
    node.spool.add_file(ct_instance(endless, 2), source="TEST")
    node.run()
    assert node.state(1) == ("deidentified", "1 set aside: the anonymizer failed on it (TookTooLongError)")
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1]})


def test_a_study_of_which_nothing_is_left_is_quarantined(bench: Callable[..., Bench]) -> None:
    node = bench(DeidDouble(quarantine={1}))
    node.send(1, 1)
    node.run()
    assert node.state(1) == ("quarantined", "1 set aside: text is burned into the pixels")
    assert node.catalogue.studies() == []
    assert [r["reason"] for r in node.audit("study.quarantined")] == ["1 set aside: text is burned into the pixels"]
    node.deid.quarantine = set()
    node.spool.reopen(node.spool.studies()[0].study_key)  # a person mended the profile and let it go again
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1]})
    assert not list(node.config.storage.quarantine.rglob("*.dcm"))


def test_a_damaged_instance_is_set_aside_after_the_disk_was_asked_again(bench: Callable[..., Bench]) -> None:
    node = bench()
    node.send(1, 1, 2)
    row = node.spool.instances(node.spool.studies()[0].study_key)[0]
    segment = node.config.storage.spool / "segments" / row.segment
    with segment.open("r+b") as file:
        file.seek(row.offset + row.length - 3)
        file.write(b"\xff\xfe\xfd")
    for _ in range(3):
        node.run()
        node.clock.ahead += 30
        node.worker.queue._now = node.clock
    assert "damaged" in node.state(1)[1]
    assert [i.instances for i in node.catalogue.studies("eligible")] == [1]


def test_policy_excludes_with_the_rule_named_and_a_change_is_followed(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    node = bench(modalities='["MR"]')
    node.send(1, 1)
    node.run()
    assert node.state(1) == ("excluded", "policy.modalities does not list CT")
    assert [(s.state, s.reason) for s in node.catalogue.studies()] == [node.state(1)]
    assert node.audit("study.excluded")[0]["reason"] == "policy.modalities does not list CT"
    changed = bench(modalities='["MR", "CT"]')  # the admin edits node.toml and restarts
    assert [s.state for s in changed.catalogue.studies()] == ["eligible"]


def test_labels_land_before_and_after_arrival_and_a_second_import_updates(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    node = bench(require_labels="true")
    csv = tmp_path / "labels.csv"
    csv.write_text(f"accession_number,finding\n{planted(1).accession},normal\n{planted(2).accession},bacterial\n")
    import_csv(node.config, csv)
    node.send(1, 1)
    node.send(2, 1)
    node.send(3, 1)
    node.run()
    uid = node.deid.uid

    def label(study: int) -> list[str]:
        return [one.value for one in node.catalogue.labels(uid(planted(study).study_uid))]

    assert (label(1), label(2), label(3)) == (["normal"], ["bacterial"], [])
    assert node.catalogue.study(uid(planted(3).study_uid)).state == "excluded"  # type: ignore[union-attr]
    csv.write_text(f"accession_number,finding\n{planted(1).accession},viral\n{planted(3).accession},normal\n")
    import_csv(node.config, csv)
    node.run()
    assert (label(1), label(2), label(3)) == (["viral"], ["bacterial"], ["normal"])
    assert len(node.catalogue.studies("eligible")) == 3, "the label was what the policy waited for"


def test_an_opted_out_patient_leaves_no_file_and_comes_back_when_it_is_taken_back(bench: Callable[..., Bench]) -> None:
    node = bench()
    opt_out(node.config, planted(1).patient_id, "dpo")
    node.send(1, 1)
    node.send(2, 1)
    node.run()
    assert node.state(1) == ("excluded", "the patient opted out")
    check_dataset(node.catalogue, node.config.storage.dataset, {2: [1]})
    opt_out(node.config, planted(2).patient_id, "dpo")
    assert [s.state for s in node.catalogue.studies()] == ["withdrawn"]
    opt_in(node.config, planted(1).patient_id, "dpo")
    opt_in(node.config, planted(2).patient_id, "dpo")
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1], 2: [1]})


def test_an_opt_out_during_the_work_is_honoured(bench: Callable[..., Bench]) -> None:
    class OptsOut(DeidDouble):
        config: NodeConfig | None = None

        def deidentify(self, data: bytes):  # type: ignore[no-untyped-def]
            outcome = super().deidentify(data)
            if self.config is not None:
                opt_out(self.config, planted(1).patient_id, "dpo")
            return outcome

    deid = OptsOut()
    node = bench(deid)
    deid.config = node.config
    node.send(1, 1)
    node.run()
    assert node.state(1) == ("excluded", "the patient opted out")
    assert not node.catalogue.studies("eligible")
    assert not [p for p in node.config.storage.dataset.rglob("*") if p.is_file()]


def test_a_paused_node_receives_and_does_not_deidentify(bench: Callable[..., Bench]) -> None:
    node = bench()
    pause(node.config, "admin", "maintenance")
    node.send(1, 1)
    node.run()
    assert node.state(1) == ("complete", "") and node.deid.seen == 0
    resume(node.config, "admin")
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1]})
    assert [r.kind for r in AuditLog(node.config.storage.audit).records()][:2] == ["node.paused", "node.resumed"]


def test_identified_bytes_are_erased_in_time_and_late_instances_join_what_is_left(bench: Callable[..., Bench]) -> None:
    node = bench(keep_identified_hours="1")
    node.send(1, 1, 2)
    node.run()
    node.clock.ahead = 3599
    node.run()
    assert len(node.spool.instances(node.spool.studies()[0].study_key)) == 2
    node.clock.ahead = 3700
    node.run()
    spool = node.config.storage.spool
    left = b"".join(p.read_bytes() for p in spool.rglob("*") if p.is_file() and p.suffix == ".seg")
    assert b"Quackenbush" not in left and planted(1).patient_id.encode() not in left
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2]})
    node.clock.ahead = 0
    node.send(1, 3)
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2, 3]})
    opt_out(node.config, planted(1).patient_id, "dpo")
    assert [s.state for s in node.catalogue.studies()] == ["withdrawn"], "the crosswalk still knows whose it is"


WORKER = """
    import sys, time
    from pathlib import Path
    from dicom_node.config import load_config
    from dicom_node.spool import Spool
    from dicom_node.vault import Vault
    from dicom_node.worker.loop import Worker
    from dicom_node.worker.pipeline import Pipeline
    from tests.dicom_node.deid_double import DeidDouble, suicidal
    config = load_config(sys.argv[1])
    victim = sys.argv[2] if len(sys.argv) > 2 else ""
    deid = suicidal(victim)() if victim else DeidDouble(seconds=0.015)
    worker = Worker(Pipeline(config, deid, Vault.open(config), Spool(config.storage.spool)), "worker-1")
    worker.start()
    while True:
        if not worker.step(): time.sleep(0.02)
"""


def spawn(config: NodeConfig, *args: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", textwrap.dedent(WORKER), str(config.path), *args]
    return subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL)


def test_every_study_is_catalogued_once_however_often_the_worker_is_killed(bench: Callable[..., Bench]) -> None:
    node, chance = bench(quiet_seconds="0.2"), random.Random(5)
    sent = {study: list(range(1, 1 + chance.randint(2, 8))) for study in range(16)}
    for study, numbers in sent.items():
        node.send(study, *numbers)
    process, kills = spawn(node.config), 0
    try:
        deadline = time.monotonic() + 60
        while node.spool.stats().studies.get("deidentified", 0) < len(sent):
            assert time.monotonic() < deadline, f"not finished: {node.spool.stats().studies}"
            time.sleep(0.005)
            if kills < 14 and node.worker.queue.counts()["claimed"]:
                time.sleep(chance.uniform(0, 0.12))  # somewhere in, or just after, a study
                process.send_signal(signal.SIGKILL)
                process.wait()
                process, kills = spawn(node.config), kills + 1
    finally:
        process.kill()
        process.wait()
    assert kills == 14, "the test must have killed"
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, sent)
    hashes = [(r["study"], r["content_hash"]) for r in node.audit("study.deidentified")]
    assert len(hashes) == len(set(hashes)), "one audit record for each content"
    assert set(hashes) >= {(s.study_uid, s.content_hash) for s in node.catalogue.studies()}
    assert AuditLog(node.config.storage.audit).verify().ok


@pytest.mark.parametrize("after", ["catalogue", "audit"])
def test_a_crash_between_two_databases_leaves_one_record_in_each(bench: Callable[..., Bench], after: str) -> None:
    class Crash(BaseException):
        pass

    def crash(*args: object, **kwargs: object) -> None:
        raise Crash

    node = bench()
    node.send(1, 1, 2)
    time.sleep(0.06)
    broken, name = (node.worker.pipeline.audit, "append") if after == "catalogue" else (node.spool, "finish_study")
    setattr(broken, name, crash)
    with pytest.raises(Crash):
        node.run()
    delattr(broken, name)
    assert len(node.catalogue.studies()) == 1 and len(node.audit("study.deidentified")) == (after == "audit")
    node.worker.start()  # as its next start does
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1, 2]})
    assert len(node.audit("study.deidentified")) == 1


def test_a_study_that_kills_every_worker_is_given_up_and_the_others_go_on(bench: Callable[..., Bench]) -> None:
    node = bench()
    node.send(1, 1)
    node.send(2, 1)
    process, deaths = spawn(node.config, planted(1).patient_id), 0
    try:
        deadline = time.monotonic() + 60
        while node.spool.stats().studies.get("quarantined", 0) == 0 and time.monotonic() < deadline:
            if process.poll() is not None:
                process, deaths = spawn(node.config, planted(1).patient_id), deaths + 1
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert node.state(1)[0] == "quarantined" and "given up" in node.state(1)[1]
    assert deaths == node.worker.queue.max_attempts
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {2: [1]})


def test_two_workers_share_the_work_and_repeat_none(bench: Callable[..., Bench]) -> None:
    node = bench(quiet_seconds="0.2")
    sent = {study: [1, 2, 3] for study in range(12)}
    for study, numbers in sent.items():
        node.send(study, *numbers)
    processes = [spawn(node.config), spawn(node.config)]
    try:
        deadline = time.monotonic() + 40
        while node.spool.stats().studies.get("deidentified", 0) < len(sent):
            assert time.monotonic() < deadline, node.spool.stats().studies
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    check_dataset(node.catalogue, node.config.storage.dataset, sent)


def test_leftover_temporary_files_do_not_stay(bench: Callable[..., Bench]) -> None:
    node = bench()
    folder = node.config.storage.dataset / node.deid.uid(planted(1).study_uid)
    folder.mkdir(parents=True)
    (folder / f".half.dcm.{os.getpid() + 1}").write_bytes(b"half")
    node.send(1, 1)
    node.run()
    check_dataset(node.catalogue, node.config.storage.dataset, {1: [1]})
