"""The catalogue: laws of splitting and selecting, exact replacement, withdrawals that hold, migrations forward."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import sqlite_utils
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.database import migrate
from dicom_node.errors import StorageError
from dicom_node.records import (
    PARTITIONS,
    Catalogue,
    CohortEntry,
    CohortRule,
    InstanceRecord,
    LabelRecord,
    StudyRecord,
    migrations,
    select,
    split,
    split_of,
)

STUDY = StudyRecord("2.25.1", "patient-1", "DX", "CHEST", "ACME", "F", 44, 1, content_hash="h1")


def instance(number: int, study: str = "2.25.1", view: str = "PA") -> InstanceRecord:
    path = f"{study}/{number}.dcm"
    return InstanceRecord(f"{study}.{number}", study, f"{study}.9", "1.2", "1.2.1", 8, 8, 1, path, "ab", 10, 128, view)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue.db", tmp_path / "dataset")


def test_what_is_written_reads_back(catalogue: Catalogue) -> None:
    assert catalogue.add_study(STUDY, [instance(1), instance(2)])
    assert not catalogue.add_study(STUDY, [instance(1), instance(2)]), "the same content is no news"
    stored = catalogue.study("2.25.1")
    assert stored == replace(STUDY, instances=2, added_at=stored.added_at if stored else 0)
    assert catalogue.instances("2.25.1") == [instance(1), instance(2)]
    assert catalogue.set_labels([LabelRecord("2.25.1", "finding", "normal", "csv")]) == 1
    assert catalogue.set_labels([LabelRecord("2.25.1", "finding", "normal", "csv")]) == 0
    assert catalogue.add_study(replace(STUDY, content_hash="h2"), [instance(2), instance(3)])
    assert [one.sop_uid for one in catalogue.instances("2.25.1")] == ["2.25.1.2", "2.25.1.3"]
    assert catalogue.labels("2.25.1") == [LabelRecord("2.25.1", "finding", "normal", "csv")]
    assert catalogue.counts() == {"eligible": 1, "studies": 1, "patients": 1, "instances": 2, "labelled": 1}


def test_a_withdrawn_patient_stays_out(catalogue: Catalogue) -> None:
    catalogue.add_study(STUDY, [instance(1)])
    assert catalogue.withdraw_patient("patient-1") == 1
    late = replace(STUDY, study_uid="2.25.2", content_hash="late")
    catalogue.add_study(late, [instance(1, "2.25.2")])
    assert {study.state for study in catalogue.studies()} == {"withdrawn"}
    assert catalogue.cohort(CohortRule()).entries == []
    assert catalogue.readmit_patient("patient-1") == 2
    assert len(catalogue.cohort(CohortRule()).entries) == 2


def test_which_rounds_used_a_study_is_answerable(catalogue: Catalogue) -> None:
    catalogue.add_study(STUDY, [instance(1)])
    catalogue.mark_used("d" * 64, 1, ["2.25.1"])
    catalogue.mark_used("d" * 64, 2, ["2.25.1"])
    catalogue.mark_used("d" * 64, 2, ["2.25.1"])
    assert catalogue.rounds_of("2.25.1") == [("d" * 64, 1), ("d" * 64, 2)]


@pytest.mark.parametrize(
    ("change", "rule", "reason"),
    [
        ({"modality": "CT"}, CohortRule(modalities=("DX", "CR")), "modality"),
        ({"body_part": "KNEE"}, CohortRule(body_parts=("chest",)), "body part"),
        ({"age_years": 17}, CohortRule(min_age_years=18), "age"),
        ({"age_years": None}, CohortRule(min_age_years=18), "unknown"),
        ({"age_years": 91}, CohortRule(max_age_years=90), "age"),
        ({}, CohortRule(views=("LATERAL",)), "view"),
        ({}, CohortRule(label="side"), "no label 'side'"),
        ({}, CohortRule(label="finding", classes=("bacterial",)), "is not one of"),
        ({"state": "excluded", "reason": "policy"}, CohortRule(), "excluded: policy"),
    ],
)
def test_each_rule_excludes_with_its_reason(change: dict[str, object], rule: CohortRule, reason: str) -> None:
    study = replace(STUDY, **change)  # type: ignore[arg-type]
    cohort = select([study], {"2.25.1": [instance(1)]}, {"2.25.1": {"finding": "normal"}}, rule)
    assert cohort.entries == [] and list(cohort.failures.values()) == [1]
    assert reason in next(iter(cohort.failures))


def test_a_matching_study_is_selected() -> None:
    rule = CohortRule(
        modalities=("DX",), body_parts=("chest",), views=("PA",), min_age_years=18, label="finding", classes=("normal",)
    )
    cohort = select(
        [STUDY],
        {"2.25.1": [instance(1), instance(2, view="LL")]},
        {"2.25.1": {"finding": "normal", "partition": "test"}},
        rule,
    )
    assert cohort.entries == [CohortEntry(STUDY, [instance(1)], "normal", "test")] and not cohort.failures


@given(st.text(max_size=12), st.text(max_size=6))
def test_the_split_is_a_function(patient: str, salt: str) -> None:
    assert split_of(patient, salt) == split_of(patient, salt) and split_of(patient, salt) in PARTITIONS


def test_the_split_has_the_promised_shares_and_depends_on_the_salt() -> None:
    patients = [f"patient-{number}" for number in range(4000)]
    counts: dict[str, int] = defaultdict(int)
    for patient in patients:
        counts[split_of(patient, "salt")] += 1
    assert abs(counts["train"] / 4000 - 0.7) < 0.03 and abs(counts["test"] / 4000 - 0.2) < 0.03
    differing = sum(split_of(patient, "salt") != split_of(patient, "pepper") for patient in patients)
    assert differing > 1000


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([None, *PARTITIONS])), max_size=20))
def test_patients_are_never_split_and_test_wins(rows: list[tuple[str, str | None]]) -> None:
    entries = [
        CohortEntry(replace(STUDY, study_uid=f"2.25.{number}", patient=patient), [], None, partition)
        for number, (patient, partition) in enumerate(rows)
    ]
    parts = split(entries, "salt")
    assert sorted(e.study.study_uid for part in parts.values() for e in part) == sorted(
        e.study.study_uid for e in entries
    )
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for entry in part:
            assert seen.setdefault(entry.study.patient, name) == name, "a patient stands in two partitions"
    for patient, partition in rows:
        if partition == "test":
            assert seen[patient] == "test"


def test_migrations_lead_forward_from_every_version(tmp_path: Path) -> None:
    names = [migration.name for migration in migrations._migrations]
    whole = sqlite3.connect(tmp_path / "whole.db", isolation_level=None)
    migrate(whole, migrations)
    schema = set(whole.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
    for position, name in enumerate(names):
        path = tmp_path / f"{name}.db"
        old = sqlite3.connect(path, isolation_level=None)
        migrate(old, migrations, stop_before=name)
        assert [m.name for m in migrations.applied(sqlite_utils.Database(old))] == names[:position]
        if position:
            old.execute("INSERT INTO labels VALUES('2.25.1', 'finding', 'normal', 'csv')")
        old.close()
        catalogue = Catalogue(path)
        found = catalogue._db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        assert {tuple(row) for row in found} == schema
        assert len(catalogue.labels("2.25.1")) == (1 if position else 0), "data did not survive the migration"


def test_a_damaged_or_missing_database_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        Catalogue(tmp_path / "none.db", readonly=True)
    (tmp_path / "bad.db").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(StorageError, match=r"bad\.db cannot be opened"):
        Catalogue(tmp_path / "bad.db")
