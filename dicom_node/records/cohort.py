"""Decides which studies satisfy a cohort rule and which partition a patient belongs to: pure functions, no I/O."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from dicom_node.records.model import Cohort, CohortEntry, CohortRule, InstanceRecord, LeftOut, StudyRecord

PARTITIONS = ("train", "validation", "test")
FRACTIONS = (0.7, 0.1, 0.2)


def split_of(patient: str, salt: str, fractions: tuple[float, float, float] = FRACTIONS) -> str:
    """train, validation or test for a patient pseudonym: the same on every call, independent between salts."""
    digest = hashlib.sha256(f"{salt}\x00{patient}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 * sum(fractions)
    if point < fractions[0]:
        return "train"
    return "validation" if point < fractions[0] + fractions[1] else "test"


def split(entries: Iterable[CohortEntry], salt: str) -> dict[str, list[CohortEntry]]:
    """Entries by partition. A designation on one study holds for the whole patient; test wins over validation over train."""
    kept = list(entries)
    designated: dict[str, str] = {}
    for entry in kept:
        if entry.partition in PARTITIONS:
            known = designated.get(entry.study.patient, "train")
            designated[entry.study.patient] = max(known, entry.partition, key=PARTITIONS.index)
    parts: dict[str, list[CohortEntry]] = {name: [] for name in PARTITIONS}
    for entry in kept:
        patient = entry.study.patient
        parts[designated.get(patient) or split_of(patient, salt)].append(entry)
    return parts


def failure(study: StudyRecord, instances: list[InstanceRecord], label: str | None, rule: CohortRule) -> str | None:
    """Why a study does not satisfy the rule, in words without any value of the patient; None when it does."""
    if study.state != "eligible":
        return f"{study.state}: {study.reason}" if study.reason else study.state
    if rule.modalities and study.modality not in rule.modalities:
        return "modality is not one of " + ", ".join(rule.modalities)
    if rule.body_parts and study.body_part.upper() not in {part.upper() for part in rule.body_parts}:
        return "body part is not one of " + ", ".join(rule.body_parts)
    if rule.min_age_years is not None and (study.age_years is None or study.age_years < rule.min_age_years):
        return f"age is unknown or below {rule.min_age_years}"
    if rule.max_age_years is not None and (study.age_years is None or study.age_years > rule.max_age_years):
        return f"age is unknown or above {rule.max_age_years}"
    if not instances:
        return "no instance with a view of " + ", ".join(rule.views) if rule.views else "no instance"
    if rule.label and label is None:
        return f"no label {rule.label!r}"
    if rule.label and rule.classes and label not in rule.classes:
        return f"label {rule.label!r} is not one of " + ", ".join(rule.classes)
    return None


def select(
    studies: Iterable[StudyRecord],
    instances: Mapping[str, list[InstanceRecord]],
    labels: Mapping[str, Mapping[str, str]],
    rule: CohortRule,
) -> Cohort:
    """The cohort of a rule, in the studies' order."""
    entries: list[CohortEntry] = []
    failures: Counter[str] = Counter()
    left_out: list[LeftOut] = []
    for study in studies:
        mine = [one for one in instances.get(study.study_uid, []) if not rule.views or one.view in rule.views]
        own = labels.get(study.study_uid, {})
        label = own.get(rule.label) if rule.label else None
        reason = failure(study, mine, label, rule)
        if reason is None:
            entries.append(CohortEntry(study, mine, label, own.get("partition")))
        else:
            failures[reason] += 1
            left_out.append(LeftOut(study, instances.get(study.study_uid, []), reason))
    return Cohort(entries, dict(failures), left_out)
