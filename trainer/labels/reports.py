"""An SR measurement report (TID 1500) → its measurements and qualitative evaluations as label values.

PS3.16 TID 1500, 1501, 1410 and 1411, read with highdicom. A report that says two things under one name, or that refers to
images the node lacks, is an error about its study, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import LabelError

REPORTS = tuple(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (22, 33, 34))
"""Enhanced, Comprehensive and Comprehensive 3D SR."""


@dataclass(frozen=True)
class Finding:
    """name: the concept's meaning. value: a coded answer's meaning, or a number as text with its `unit` (UCUM)."""

    name: str
    value: str
    unit: str = ""


def read_report(path: Path, known: Sequence[str]) -> list[Finding]:
    """Every finding of a report. known: SOP Instance UIDs that the node holds of the study. Errors: LabelError."""
    import highdicom as hd

    try:
        sr = hd.sr.srread(path)
        content = sr.content
        groups = [
            *content.get_image_measurement_groups(),
            *content.get_planar_roi_measurement_groups(),
            *content.get_volumetric_roi_measurement_groups(),
        ]
    except Exception as err:
        raise LabelError(f"{path.name} is not a readable TID 1500 measurement report; export it again") from err
    absent = _referenced(sr) - set(known)
    if absent:
        raise LabelError(
            f"report {sr.SOPInstanceUID} refers to {len(absent)} images that this node lacks; send the whole study"
        )
    out = []
    for group in groups:
        out += [Finding(str(m.name.meaning), f"{m.value:g}", str(m.unit.value)) for m in group.get_measurements()]
        out += [Finding(str(q.name.meaning), str(q.value.meaning)) for q in group.get_qualitative_evaluations()]
    return out


def _referenced(sr: Any) -> set[str]:
    """SOP Instance UIDs that the report gives as its evidence."""
    out: set[str] = set()
    for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in sr.get(name) or []:
            for series in study.get("ReferencedSeriesSequence") or []:
                out |= {str(one.ReferencedSOPInstanceUID) for one in series.get("ReferencedSOPSequence") or []}
    return out


def value_of(findings: Sequence[Finding], name: str) -> str | None:
    """What the reports of one study say under a name (compared without case); None when nothing. Errors: LabelError."""
    said = sorted({finding.value for finding in findings if finding.name.casefold() == name.casefold()})
    if len(said) > 1:
        raise LabelError(f"the study's reports disagree about {name!r} ({len(said)} values); keep one of them")
    return said[0] if said else None
