"""From what the anonymizer gave for each instance to the study's records: pure functions, no I/O."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dicom_node.records import InstanceRecord, StudyRecord

# Modalities that say nothing about what a study is of; they name it only when nothing else does.
_SECONDARY = {"SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "DOC", "OT", "REG", "AU", ""}


@dataclass(frozen=True)
class Clean:
    """An instance that crossed the wall: its new UIDs, its facts, where its bytes are and what they hash to."""

    sop_uid: str
    study_uid: str
    patient: str
    path: str  # relative to the dataset folder
    sha256: str
    facts: Mapping[str, Any]


@dataclass
class Crossing:
    """What became of a study's instances: those that crossed, and how many were set aside for which reason."""

    clean: list[Clean] = field(default_factory=list)
    set_aside: Counter[str] = field(default_factory=Counter)

    @property
    def reason(self) -> str:
        """The reasons in one line, without any value of the patient; "" when all crossed."""
        return "; ".join(f"{count} set aside: {reason}" for reason, count in sorted(self.set_aside.items()))


def instance_record(item: Clean) -> InstanceRecord:
    facts = item.facts
    return InstanceRecord(
        sop_uid=item.sop_uid,
        study_uid=item.study_uid,
        series_uid=str(facts.get("series_uid") or ""),
        sop_class=str(facts.get("sop_class") or ""),
        transfer_syntax=str(facts.get("transfer_syntax") or ""),
        rows=_integer(facts.get("rows")),
        columns=_integer(facts.get("columns")),
        frames=_integer(facts.get("frames")) or 1,
        path=item.path,
        sha256=item.sha256,
        pixel_offset=_integer(facts.get("pixel_offset")),
        pixel_length=_integer(facts.get("pixel_length")),
        view=str(facts.get("view") or ""),
    )


def study_record(
    items: Sequence[Clean], instances: Sequence[InstanceRecord], state: str = "eligible", reason: str = ""
) -> StudyRecord:
    """The study's record from at least one clean item; each fact is the one that most of its images agree on.

    `instances` are all that the study has, also those of an earlier pass whose identified bytes are gone by now.
    """
    images = [i for i in items if i.facts.get("modality") not in _SECONDARY] or list(items)
    return StudyRecord(
        study_uid=items[0].study_uid,
        patient=items[0].patient,
        modality=_most(i.facts.get("modality") for i in images),
        body_part=_most(i.facts.get("body_part") for i in images),
        manufacturer=_most(i.facts.get("manufacturer") for i in images),
        sex=_most(i.facts.get("sex") for i in items),
        age_years=_integer(_most(i.facts.get("age_years") for i in items)),
        instances=len(instances),
        state=state,
        reason=reason,
        content_hash=content_hash(instances),
    )


def with_earlier(
    new: Sequence[InstanceRecord], earlier: Sequence[InstanceRecord], purged: set[str]
) -> list[InstanceRecord]:
    """New records, and of the earlier ones those whose identified bytes were purged since (they cannot be made again)."""
    made = {record.sop_uid for record in new}
    return [*new, *(r for r in earlier if r.sop_uid in purged and r.sop_uid not in made)]


def content_hash(instances: Iterable[InstanceRecord]) -> str:
    """SHA-256 over the sorted (SOP Instance UID, SHA-256) of the de-identified files: changes when any of them does."""
    digest = hashlib.sha256()
    for line in sorted(f"{record.sop_uid} {record.sha256}\n" for record in instances):
        digest.update(line.encode())
    return digest.hexdigest()


def _most(values: Iterable[Any]) -> str:
    counted = Counter(str(v) for v in values if v not in (None, ""))
    # the most common, and of equals the first by name, so that two passes say the same
    return min(counted, key=lambda v: (-counted[v], v)) if counted else ""


def _integer(value: Any) -> int | None:
    try:
        return int(value) if value not in (None, "") else None
    except (TypeError, ValueError):
        return None
