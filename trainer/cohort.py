"""A project's cohort as samples: catalogue records → labelled, prepared images of one partition.

Everything here stands right of the wall: the only paths opened are the catalogue, the dataset folder and the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from dicom_node.records import PARTITIONS, Catalogue, CohortEntry, CohortRule, InstanceRecord, StudyRecord
from trainer.contract import measured_in, screened
from trainer.errors import CohortError, LabelError, PixelError, SpecError
from trainer.local.data import Samples, pool
from trainer.measured import is_image
from trainer.pixels.cache import Filled, TensorCache, Wanted
from trainer.pixels.prepare import Preparation, prepare_frame
from trainer.pixels.read import read_frames
from trainer.pixels.series import prepare_series
from trainer.spec import JobSpec, Source, TaskSpec
from trainer.volumes import read_header


class Forgets(Protocol):
    """A cache that can drop what it holds of withdrawn patients."""

    def forget(self, keys: set[str]) -> int: ...


@dataclass(frozen=True)
class Loaded:
    """Samples by partition, the studies behind them, and what was set aside: {reason: count} and {SOP UID:
    sentence}.
    """

    samples: dict[str, Samples]
    studies: dict[str, list[str]]
    facts: dict[str, list[dict[str, Any]]]
    failures: dict[str, int] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)
    cases: dict[str, list[dict[str, Any]]] = field(
        default_factory=dict
    )  # segmentation: one a volume, in the samples' order


def load_cohort(spec: JobSpec, threads: int = 1, progress: Callable[[int, int], None] | None = None) -> Loaded:
    """Read every source of the spec and pool them. Errors: CohortError, LabelError, CacheError."""
    sources = [Source(catalogue=spec.catalogue, dataset=spec.dataset), *spec.pooled]
    if spec.task.name == "segmentation":
        from trainer import segmentation, volumetric

        load = volumetric.load_source if spec.task.dimensions == 3 else segmentation.load_source
        parts = [load(spec, source, threads, progress) for source in sources]
    else:
        parts = [_load_source(spec, source, threads, progress) for source in sources]
    return parts[0] if len(parts) == 1 else _pooled(parts)


def _load_source(spec: JobSpec, source: Source, threads: int, progress: Callable[[int, int], None] | None) -> Loaded:
    index = {name: i for i, name in enumerate(spec.task.classes)}
    slices = spec.task.slices
    preparation = Preparation.of(spec.task, f"slices{slices}" if slices > 1 else "")
    cache = TensorCache(spec.cache, preparation, channels=slices)
    entries, failures = entries_of(spec, source, cache)
    wanted: list[Wanted] = []
    owners: list[tuple[str, CohortEntry]] = []
    unlabelled: dict[str, str] = {}
    for partition, group in entries.items():
        for entry in group:
            try:
                classes_of(index, entry.label, spec.task)
            except LabelError as err:
                if not spec.task.multilabel:
                    raise
                unlabelled[entry.study.study_uid] = str(err)
                continue
            mine = _wanted(source.dataset, entry, preparation, slices)
            wanted += mine
            owners += [(partition, entry)] * len(mine)
    filled = cache.fill(wanted, threads, progress)

    def facts_of(entry: CohortEntry) -> dict[str, Any]:
        first = next((source.dataset / record.path for record in entry.instances if is_image(record)), None)
        return study_facts(entry.study, first)

    if unlabelled:
        failures = failures | {f"label {spec.task.label!r} names an unknown class": len(unlabelled)}

    def label_of(entry: CohortEntry) -> int | list[int]:
        return classes_of(index, entry.label, spec.task)

    loaded = _collect(filled, owners, label_of, facts_of, failures)
    loaded.set_aside.update(unlabelled)
    return loaded


def _wanted(dataset: Path, entry: CohortEntry, preparation: Preparation, slices: int) -> list[Wanted]:
    """A study's samples: each image, or with `slices` > 1 each image series."""
    images = [record for record in entry.instances if is_image(record)]
    if slices == 1:
        return [Wanted(r.sop_uid, r.sha256, partial(prepare_instance, dataset, r, preparation)) for r in images]
    series: dict[str, list[InstanceRecord]] = {}
    for record in images:
        series.setdefault(record.series_uid, []).append(record)
    return [
        Wanted(
            f"{uid} {entry.study.study_uid}",
            hashlib.sha256("".join(sorted(r.sha256 for r in records)).encode()).hexdigest(),
            partial(prepare_series, [dataset / r.path for r in records], preparation, slices),
        )
        for uid, records in series.items()
    ]


def entries_of(spec: JobSpec, source: Source, cache: Forgets) -> tuple[dict[str, list[CohortEntry]], dict[str, int]]:
    """The cohort by partition and the failures; cached pixels of withdrawn patients are overwritten on the way."""
    if not source.catalogue.exists():
        raise CohortError(f"the catalogue {source.catalogue.name} does not exist; run the node once so that it is made")
    rule = cohort_rule(spec)
    catalogue = Catalogue(source.catalogue, dataset=source.dataset, readonly=True)
    try:
        cohort = catalogue.cohort(rule)
        gone = [study.study_uid for study in catalogue.studies("withdrawn")]
        withdrawn = {record.sop_uid for uid in gone for record in catalogue.instances(uid)} | set(gone)
    finally:
        catalogue.close()
    cache.forget(withdrawn)
    measured = measured_in(spec.cache, source.dataset, spec.task)
    measured.forget(set(gone))
    cohort = screened(cohort, spec.contract, lambda: measured)
    if len(cohort.patients) < rule.min_patients:
        reasons = (
            "; ".join(f"{count} studies: {why}" for why, count in sorted(cohort.failures.items()))
            or "no study is there"
        )
        raise CohortError(
            f"the cohort has {len(cohort.patients)} patients where the project needs {rule.min_patients} ({reasons});"
            " label more studies or ask for a smaller minimum"
        )
    return cohort.split(spec.split_salt), dict(cohort.failures)


def cohort_rule(spec: JobSpec) -> CohortRule:
    """The spec's rule, with the task's label and classes where it names none. Errors: SpecError."""
    named = dict(spec.cohort)
    if not named.get("label"):
        named["label"] = spec.task.label
    if spec.task.multilabel:
        named["classes"] = []  # a label names several; each is looked at when the study is read
    elif not named.get("classes") and spec.task.name == "classification":
        named["classes"] = list(spec.task.classes)
    try:
        return CohortRule.model_validate(named)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"the cohort rule's {key or 'document'} is wrong ({first['msg']}); mend the project file"
        ) from err


def prepare_instance(dataset: Path, record: InstanceRecord, preparation: Preparation) -> np.ndarray:
    """One instance → float32 [1, size, size]; a multi-frame object gives its middle frame."""
    frames = read_frames(dataset / record.path, record.sop_uid, record.pixel_offset, record.pixel_length)
    return prepare_frame(frames.values[len(frames.values) // 2], preparation)


def classes_of(index: Mapping[str, int], label: str | None, task: TaskSpec) -> int | list[int]:
    """A study's class index, or with multilabel a 0 or 1 for each class. Errors: LabelError for an unknown class."""
    names = [part.strip() for part in (label or "").split(";")] if task.multilabel else [label or ""]
    said = [] if task.multilabel and names == ["none"] else names
    if any(name not in index for name in said):
        known = ", ".join(index)
        raise LabelError(
            f"the label {task.label!r} has a value outside the project's classes ({known}); mend the label table"
        )
    if task.multilabel:
        return [int(name in said) for name in index]
    return index[said[0]]


def _collect(
    filled: Filled,
    owners: list[tuple[str, CohortEntry]],
    label_of: Callable[[CohortEntry], int | list[int]],
    facts_of: Callable[[CohortEntry], dict[str, Any]],
    failures: dict[str, int],
) -> Loaded:
    rows, set_aside = filled.rows, filled.failures
    samples: dict[str, Samples] = {}
    studies: dict[str, list[str]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    numbers: dict[str, int] = {}
    for partition in PARTITIONS:
        mine = [i for i, (where, _) in enumerate(owners) if where == partition and rows[i] >= 0]
        mine.sort(key=filled.marks.__getitem__)
        entries = [owners[i][1] for i in mine]
        labels = np.array([label_of(entry) for entry in entries], np.int64)
        groups = np.array([numbers.setdefault(entry.study.patient, len(numbers)) for entry in entries], np.int64)
        samples[partition] = Samples(filled.images, labels, rows[mine].astype(np.int64), groups)
        studies[partition] = sorted({entry.study.study_uid for entry in entries})
        headers = {entry.study.study_uid: facts_of(entry) for entry in entries}
        facts[partition] = [headers[entry.study.study_uid] for entry in entries]
    if set_aside:
        failures = failures | {"pixel data cannot be decoded": len(set_aside)}
    return Loaded(samples, studies, facts, failures, set_aside)


def study_facts(study: StudyRecord, image: Path | None = None) -> dict[str, Any]:
    """The header facts that subgroup metrics go by; field strength and tube voltage are read from one `image`."""
    facts = {"sex": study.sex, "age_years": study.age_years, "manufacturer": study.manufacturer}
    if image is None:
        return facts
    try:
        ds = read_header(image, ["MagneticFieldStrength", "KVP"])
    except PixelError:
        return facts
    return facts | {"field_strength": ds.get("MagneticFieldStrength"), "kvp": ds.get("KVP")}


def _pooled(parts: list[Loaded]) -> Loaded:
    samples = {name: pool([part.samples[name] for part in parts]) for name in PARTITIONS}
    studies = {name: [uid for part in parts for uid in part.studies[name]] for name in PARTITIONS}
    facts = {name: [fact for part in parts for fact in part.facts[name]] for name in PARTITIONS}
    failures: dict[str, int] = {}
    for part in parts:
        for reason, count in part.failures.items():
            failures[reason] = failures.get(reason, 0) + count
    set_aside = {k: v for part in parts for k, v in part.set_aside.items()}
    cases = {name: [case for part in parts for case in part.cases.get(name, [])] for name in PARTITIONS}
    return Loaded(samples, studies, facts, failures, set_aside, cases)
