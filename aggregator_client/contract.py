"""Whether a hospital's own data fulfil a project's data contract; a hospital whose data do not sits it out."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aggregator_client.errors import RefusedError
from dicom_node.config import NodeConfig
from dicom_node.records import Catalogue, Cohort
from trainer.contract import measured_in, screened
from trainer.measured import MeasuredStudies

if TYPE_CHECKING:
    from aggregator_client.project import ProjectDraft


@dataclass(frozen=True)
class Readiness:
    """What a hospital has for a project. `faults` are one sentence each; none means it may take part."""

    patients: int
    studies: int
    images: dict[str, int] = field(default_factory=dict)
    """Images by partition: train, validation, test."""
    classes: dict[str, int] = field(default_factory=dict)
    """Studies by label value."""
    failures: dict[str, int] = field(default_factory=dict)
    """Studies that do not fit, by reason."""
    faults: list[str] = field(default_factory=list)


def readiness(draft: ProjectDraft, cohort: Cohort) -> Readiness:
    """Judge a cohort (selected with `cohort_rule`) by the project's cohort rule and data contract."""
    parts = {
        name: sum(len(entry.instances) for entry in entries) for name, entries in cohort.split(draft.split.salt).items()
    }
    classes = Counter(entry.label for entry in cohort.entries if entry.label is not None)
    missing = sum(count for reason, count in cohort.failures.items() if reason.startswith("no label"))
    unlabelled = missing / max(1, missing + len(cohort.entries))
    contract, patients = draft.contract, len(cohort.patients)
    faults = []
    if patients < draft.cohort.min_patients:
        faults.append(f"{patients} patients qualify and the project asks for {draft.cohort.min_patients}.")
    if parts["train"] < contract.min_train_images:
        faults.append(f"{parts['train']} training images qualify and the project asks for {contract.min_train_images}.")
    if draft.task.name == "classification" and len(classes) < contract.min_classes:  # a mask's classes are not counted
        faults.append(f"{len(classes)} classes occur here and the project asks for {contract.min_classes}.")
    if unlabelled > contract.max_unlabelled_share:
        faults.append(
            f"{unlabelled:.0%} of the matching studies have no label {draft.task.label!r} and the project allows"
            f" {contract.max_unlabelled_share:.0%}."
        )
    return Readiness(patients, len(cohort.entries), parts, dict(classes), dict(cohort.failures), faults)


def cohort_of(config: NodeConfig, draft: ProjectDraft) -> Cohort:
    """This hospital's studies that satisfy the project's cohort rule and its contract for a study, as they are now.

    Raises CacheError when what the studies measure cannot be kept.
    """
    storage = config.storage
    with closing(Catalogue(storage.catalogue, storage.dataset)) as catalogue:
        cohort = catalogue.cohort(draft.cohort_rule)
    return screened(cohort, draft.contract, lambda: measured_here(config, draft))


def measured_here(config: NodeConfig, draft: ProjectDraft) -> MeasuredStudies:
    """What this hospital's studies measure, beside the trainer's cache."""
    return measured_in(config.storage.federation / "cache", config.storage.dataset, draft.task)


def at_hospital(config: NodeConfig, draft: ProjectDraft) -> Readiness:
    """The readiness of this hospital now."""
    return readiness(draft, cohort_of(config, draft))


def require_ready(config: NodeConfig, draft: ProjectDraft) -> None:
    """Raises RefusedError while this hospital's data do not fulfil the project's contract.

    The coordinator reads the sentence, so it names what is asked for and no figure of this hospital.
    """
    if at_hospital(config, draft).faults:
        raise RefusedError(
            "This hospital's data do not fulfil the project's data contract at present; its staff see why with"
            " `fedpacs project show`."
        )
