"""The hospital's policy: each rule excludes what it names, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicom_node.config import PolicySettings
from dicom_node.policy import excluded_because
from dicom_node.records import InstanceRecord, StudyRecord

STUDY = StudyRecord("2.25.1", "p1", "DX", "CHEST", "ACME", "F", 44)
INSTANCE = InstanceRecord("2.25.2", "2.25.1", "2.25.3", "1.2.840.1", "1.2", 1, 1, 1, "a", "b")


def test_the_default_policy_lets_everything_in() -> None:
    assert excluded_because(PolicySettings(), STUDY, [INSTANCE]) == ""


@pytest.mark.parametrize(
    ("policy", "changes", "facts", "rule"),
    [
        (PolicySettings(modalities=("CT",)), {}, {}, "policy.modalities"),
        (PolicySettings(sop_classes=("1.2.3",)), {}, {}, "policy.sop_classes"),
        (PolicySettings(min_age_years=45), {}, {}, "policy.min_age_years"),
        (PolicySettings(min_age_years=18), {"age_years": None}, {}, "policy.min_age_years"),
        (PolicySettings(max_age_years=43), {}, {}, "policy.max_age_years"),
        (PolicySettings(exclude_burned_in=True), {}, {"burned_in": True}, "policy.exclude_burned_in"),
        (PolicySettings(require_labels=True), {}, {}, "policy.require_labels"),
        (PolicySettings(), {}, {"opted_out": True}, "opted out"),
    ],
)
def test_each_rule_excludes_by_name(policy: PolicySettings, changes: dict, facts: dict, rule: str) -> None:
    assert rule in excluded_because(policy, replace(STUDY, **changes), [INSTANCE], **facts)


@pytest.mark.parametrize(
    ("policy", "facts"),
    [
        (PolicySettings(modalities=("CT", "DX")), {}),
        (PolicySettings(sop_classes=("1.2.840.1",)), {}),
        (PolicySettings(min_age_years=44, max_age_years=44), {}),
        (PolicySettings(exclude_burned_in=True), {}),
        (PolicySettings(require_labels=True), {"labelled": True}),
    ],
)
def test_a_rule_that_is_met_excludes_nothing(policy: PolicySettings, facts: dict) -> None:
    assert excluded_because(policy, STUDY, [INSTANCE], **facts) == ""
