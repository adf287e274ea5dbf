"""Which stable studies an Orthanc offers, when, and how fast: decided by its administrator in the plugin's settings.

The plugin gives its checked settings at /fedpacs/rules. The node keeps the last ones it saw, so that an Orthanc whose plugin is
taken out, or whose settings became wrong, offers no more than before; one that never had the plugin offers everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

from dicom_node.orthanc_reader.client import Traits

NOT_OFFERED = "not offered: "


@dataclass(frozen=True)
class Rules:
    """Empty lists and zeros mean "any". `problem` is what is wrong with the settings: then nothing is offered."""

    modalities: frozenset[str] = frozenset()
    body_parts: frozenset[str] = frozenset()
    calling_aets: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    min_age_days: int = 0
    max_age_days: int = 0
    hours: tuple[tuple[time, time], ...] = ()
    megabytes_per_second: float = 0.0
    problem: str = ""

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Rules:
        """From what /fedpacs/rules answers; what cannot be understood offers nothing."""
        try:
            problems = document["problems"]
            if problems:
                return cls(problem=str(problems[0]))
            offer = document["offer"]
            return cls(
                modalities=frozenset(offer["Modalities"]),
                body_parts=frozenset(part.upper() for part in offer["BodyParts"]),
                calling_aets=frozenset(offer["CallingAets"]),
                labels=frozenset(offer["Labels"]),
                metadata=dict(offer["Metadata"]),
                min_age_days=int(offer["MinAgeDays"]),
                max_age_days=int(offer["MaxAgeDays"]),
                hours=tuple(_window(text) for text in document["hours"]),
                megabytes_per_second=float(document["megabytes_per_second"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return cls(problem="the plugin's rules are not understood: install the plugin of this node's version")

    @classmethod
    def load(cls, text: str) -> Rules:
        """From what the ledger kept of /fedpacs/rules; "" when none was ever seen."""
        return cls.parse(json.loads(text)) if text else cls()

    @property
    def asks(self) -> bool:
        """Whether a study must be looked at, or all are offered."""
        return self != Rules(hours=self.hours, megabytes_per_second=self.megabytes_per_second)

    def open_at(self, now: datetime) -> bool:
        """Whether studies may be taken at this local time."""
        at = now.time()
        return not self.hours or any(
            start <= at < end if start < end else at >= start or at < end for start, end in self.hours
        )

    def withheld_because(self, study: Traits, today: date) -> str:
        """ "" when the study is offered, else the rule that withholds it; no value of the study is in it."""
        if self.problem:
            return NOT_OFFERED + self.problem
        for rule, wanted, there in (
            ("Modalities", self.modalities, study.modalities),
            ("BodyParts", self.body_parts, study.body_parts),
            ("CallingAets", self.calling_aets, study.calling_aets),
            ("Labels", self.labels, study.labels),
        ):
            if wanted and not wanted & there:
                return f"{NOT_OFFERED}Fedpacs.Offer.{rule}"
        if any(study.metadata.get(name) != value for name, value in self.metadata.items()):
            return NOT_OFFERED + "Fedpacs.Offer.Metadata"
        return self._age(study, today)

    def _age(self, study: Traits, today: date) -> str:
        if not (self.min_age_days or self.max_age_days):
            return ""
        try:
            days = (today - datetime.strptime(study.study_date, "%Y%m%d").date()).days
        except ValueError:
            return NOT_OFFERED + "the study has no date to tell its age by"
        if days < self.min_age_days:
            return NOT_OFFERED + "Fedpacs.Offer.MinAgeDays"
        return NOT_OFFERED + "Fedpacs.Offer.MaxAgeDays" if self.max_age_days and days > self.max_age_days else ""


def _window(text: str) -> tuple[time, time]:
    start, _, end = text.partition("-")
    return time.fromisoformat(start), time.fromisoformat(end)
