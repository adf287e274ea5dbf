"""A project's data contract for a single study (slices, spacing, intensity); a study that fails is left out with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dicom_node.records import Cohort, CohortEntry
from dicom_node.records.model import LeftOut
from trainer.measured import Grain, MeasuredStudies, StudyFacts
from trainer.spec import StudyContract, TaskSpec


def grain_of(task: TaskSpec) -> Grain:
    """What one sample of the task is made of."""
    return "volume" if task.name == "segmentation" or task.slices > 1 else "image"


def failure(facts: StudyFacts, contract: StudyContract) -> str | None:
    """Why a study does not fulfil the contract, in words without any value of the patient; None when it does."""
    if facts.slices < contract.min_slices:
        return f"fewer than {contract.min_slices} slices"
    if facts.fault:
        return "pixel data or geometry cannot be read"
    if wanted := contract.spacing_mm:
        if facts.spacing_mm is None:
            return "pixel spacing is not told"
        if not (wanted[0] <= facts.spacing_mm[0] and facts.spacing_mm[1] <= wanted[1]):
            return f"pixel spacing is outside {wanted[0]:g} to {wanted[1]:g} mm"
    if wanted := contract.slice_mm:
        if facts.slice_mm is None:
            return "distance between slices is not told"
        if not wanted[0] <= facts.slice_mm <= wanted[1]:
            return f"distance between slices is outside {wanted[0]:g} to {wanted[1]:g} mm"
    if (wanted := contract.intensity) and facts.intensity is not None:
        low, high = facts.intensity
        if not (wanted[0] <= low and high <= wanted[1]):
            return f"intensities are outside {wanted[0]:g} to {wanted[1]:g}"
    return None


def screened(
    cohort: Cohort,
    contract: StudyContract,
    measured: Callable[[], MeasuredStudies],
) -> Cohort:
    """The cohort without the studies that fail the contract, which count among its failures.

    measured: opened only when the contract asks for something.
    """
    if not contract.asks or not cohort.entries:
        return cohort
    studies = measured()
    kept: list[CohortEntry] = []
    left_out, failures = list(cohort.left_out), Counter(cohort.failures)
    for entry in cohort.entries:
        reason = failure(studies.of(entry), contract)
        if reason is None:
            kept.append(entry)
        else:
            failures[reason] += 1
            left_out.append(LeftOut(entry.study, entry.instances, reason))
    return Cohort(kept, dict(failures), left_out)


def measured_in(cache: Path, dataset: Path, task: TaskSpec) -> MeasuredStudies:
    """The measures kept in a cache folder, of the kind that the task goes by."""
    return MeasuredStudies(cache, dataset, grain_of(task))
