"""The de-identified records themselves: frozen, no identified value in any field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Partition = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class StudyRecord:
    """One de-identified study. ``patient`` is a keyed pseudonym, ``age_years`` is None when unknown, ``state`` is
    eligible | excluded | withdrawn with its ``reason``; ``content_hash`` changes when any instance does."""

    study_uid: str
    patient: str
    modality: str
    body_part: str = ""
    manufacturer: str = ""
    sex: str = ""
    age_years: int | None = None
    instances: int = 0
    state: str = "eligible"
    reason: str = ""
    content_hash: str = ""
    added_at: float = 0.0


@dataclass(frozen=True)
class InstanceRecord:
    """One de-identified instance. ``path`` is relative to the dataset folder; ``pixel_offset`` and ``pixel_length`` (bytes
    in that file) are None unless the pixel data is native."""

    sop_uid: str
    study_uid: str
    series_uid: str
    sop_class: str
    transfer_syntax: str
    rows: int | None
    columns: int | None
    frames: int
    path: str
    sha256: str
    pixel_offset: int | None = None
    pixel_length: int | None = None
    view: str = ""


@dataclass(frozen=True)
class LabelRecord:
    study_uid: str
    name: str
    value: str
    source: str = ""


class CohortRule(BaseModel):
    """Which studies a project wants (part of its document). An empty list means any value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    min_age_years: int | None = Field(default=None, ge=0)
    max_age_years: int | None = Field(default=None, ge=0)
    label: str = ""
    classes: tuple[str, ...] = ()
    min_patients: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class CohortEntry:
    study: StudyRecord
    instances: list[InstanceRecord]
    label: str | None
    partition: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A study that does not satisfy a rule, and why."""

    study: StudyRecord
    instances: list[InstanceRecord]
    reason: str


@dataclass(frozen=True)
class Cohort:
    """Studies that satisfy a rule, how many failed it for which reason, and which."""

    entries: list[CohortEntry]
    failures: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def patients(self) -> set[str]:
        return {entry.study.patient for entry in self.entries}

    def split(self, salt: str) -> dict[str, list[CohortEntry]]:
        """Entries by partition, always whole patients: the site's designation first, else the keyed hash of the patient."""
        from dicom_node.records.cohort import split

        return split(self.entries, salt)
