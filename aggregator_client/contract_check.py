"""Which patients of a hospital pass a project's data contract, why the others fail, and what the studies measure.

Everything here is of the de-identified side: studies are named by pseudonym and pseudonymous UID, and nothing is sent anywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from aggregator_client.contract import Readiness, cohort_of, measured_here, readiness
from dicom_node.config import NodeConfig
from dicom_node.records import Cohort, CohortEntry, LeftOut
from trainer.measured import StudyFacts

if TYPE_CHECKING:
    from aggregator_client.project import ProjectDraft


@dataclass(frozen=True)
class Reason:
    """One way of failing: the studies (pseudonymous UIDs) and patients (pseudonyms) that do."""

    why: str
    studies: list[str]
    patients: list[str]


@dataclass(frozen=True)
class Checked:
    """passing, failing: patients' pseudonyms; a patient passes with one passing study. facts: by study, where it was measured."""

    readiness: Readiness
    passing: list[str]
    failing: list[str]
    reasons: list[Reason]
    cohort: Cohort
    facts: dict[str, StudyFacts] = field(default_factory=dict)


def check(config: NodeConfig, draft: ProjectDraft) -> Checked:
    """Check every study the node knows. Reads the pixels of those that the cohort rule asks for, once each.

    In a segmentation each study's label objects are read too: one that is missing or holds what the project does not know fails.
    """
    cohort = cohort_of(config, draft)
    if draft.task.name == "segmentation":
        cohort = _with_masks(config, draft, cohort)
    passing = {entry.study.patient for entry in cohort.entries}
    failing = {one.study.patient for one in cohort.left_out} - passing
    studies = measured_here(config, draft)
    facts = {entry.study.study_uid: studies.of(entry) for entry in cohort.entries}
    facts |= {one.study.study_uid: studies.of(_entry(one)) for one in cohort.left_out if _wanted(draft, one)}
    return Checked(readiness(draft, cohort), sorted(passing), sorted(failing), _reasons(cohort.left_out), cohort, facts)


def _with_masks(config: NodeConfig, draft: ProjectDraft, cohort: Cohort) -> Cohort:
    """Without the studies whose segmentations or contours do not fit the project's classes or their images."""
    from trainer.errors import TrainerError  # and torch, for which a classification need not wait
    from trainer.segmentation import labelled_volume, series_with_labels

    kept: list[CohortEntry] = []
    left_out, failures = list(cohort.left_out), Counter(cohort.failures)
    for entry in cohort.entries:
        try:
            labelled_volume(config.storage.dataset, draft.task, *series_with_labels(entry))
            kept.append(entry)
        except TrainerError as error:
            why = _impersonal(str(error), entry)
            failures[why] += 1
            left_out.append(LeftOut(entry.study, entry.instances, why))
    return replace(cohort, entries=kept, failures=dict(failures), left_out=left_out)


def _impersonal(sentence: str, entry: CohortEntry) -> str:
    """The sentence without UIDs and names of files, so that equal faults count together."""
    named = {entry.study.study_uid}
    for one in entry.instances:
        named |= {one.sop_uid, one.path.rsplit("/", 1)[-1]}
    for name in sorted(named, key=len, reverse=True):
        sentence = re.sub(rf"(^| ){re.escape(name)}(?![\w.])", "", sentence)
    return sentence.strip()


def _entry(one: LeftOut) -> CohortEntry:
    return CohortEntry(one.study, one.instances, None)


def _wanted(draft: ProjectDraft, one: LeftOut) -> bool:
    """Whether a study that fails is of the kind the project asks for: only then its pixels tell anything."""
    rule, study = draft.cohort, one.study
    return study.state == "eligible" and (not rule.modalities or study.modality in rule.modalities)


def _reasons(left_out: Iterable[LeftOut]) -> list[Reason]:
    """By reason, the most frequent first."""
    found: dict[str, list[LeftOut]] = {}
    for one in left_out:
        found.setdefault(one.reason, []).append(one)
    told = [
        Reason(why, sorted(one.study.study_uid for one in those), sorted({one.study.patient for one in those}))
        for why, those in found.items()
    ]
    return sorted(told, key=lambda reason: (-len(reason.studies), reason.why))


def landmarks(checked: Checked, least: int) -> dict[str, list[float]] | None:
    """Mean over passing patients of their studies' mean landmarks, by "all" and "above_mean"; None with fewer than `least`."""
    own: dict[str, list[StudyFacts]] = {}
    for entry in checked.cohort.entries:
        facts = checked.facts[entry.study.study_uid]
        if facts.landmarks:
            own.setdefault(entry.study.patient, []).append(facts)
    if not own or len(own) < least:
        return None

    def mean(of: Callable[[StudyFacts], tuple[float, ...]]) -> list[float]:
        patients = [np.array([of(facts) for facts in studies]).mean(axis=0) for studies in own.values()]
        return [round(float(value), 3) for value in np.array(patients).mean(axis=0)]

    return {"all": mean(lambda facts: facts.landmarks), "above_mean": mean(lambda facts: facts.landmarks_above_mean)}


def examples(checked: Checked) -> Sequence[tuple[str, CohortEntry]]:
    """A study to show for passing ("") and for each reason, where one has a picture that may be shown."""
    shown: list[tuple[str, CohortEntry]] = [("", entry) for entry in checked.cohort.entries[:1]]
    for reason in checked.reasons:
        first = next(
            (
                one
                for one in checked.cohort.left_out
                if one.reason == reason.why and one.instances and one.study.state == "eligible"
            ),
            None,
        )
        if first is not None:
            shown.append((reason.why, _entry(first)))
    return shown
