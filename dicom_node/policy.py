"""Decides whether the hospital's policy lets a de-identified study take part: a pure function."""

from __future__ import annotations

from collections.abc import Iterable

from dicom_node.config import PolicySettings
from dicom_node.records import InstanceRecord, StudyRecord


def excluded_because(
    policy: PolicySettings,
    study: StudyRecord,
    instances: Iterable[InstanceRecord],
    *,
    labelled: bool = False,
    opted_out: bool = False,
    burned_in: bool = False,
) -> str:
    """The rule of node.toml's [policy] that excludes the study, in plain words; "" when it may take part.

    A study whose age is unknown fails an age limit: what cannot be proven is not assumed.
    """
    if opted_out:
        return "the patient opted out"
    if policy.modalities and study.modality not in policy.modalities:
        return f"policy.modalities does not list {study.modality or 'an empty modality'}"
    if policy.sop_classes and not {one.sop_class for one in instances} <= set(policy.sop_classes):
        return "policy.sop_classes does not list every SOP class of the study"
    if policy.min_age_years is not None and (study.age_years is None or study.age_years < policy.min_age_years):
        return f"policy.min_age_years is {policy.min_age_years} and the patient is younger or of unknown age"
    if policy.max_age_years is not None and (study.age_years is None or study.age_years > policy.max_age_years):
        return f"policy.max_age_years is {policy.max_age_years} and the patient is older or of unknown age"
    if policy.exclude_burned_in and burned_in:
        return "policy.exclude_burned_in: text was burned into the pixels"
    if policy.require_labels and not labelled:
        return "policy.require_labels: no label was imported for this study"
    return ""
