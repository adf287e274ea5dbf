"""Labels from the structured reports of the catalogue's studies, written into the catalogue by study."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.records import Catalogue, LabelRecord
from trainer.errors import LabelError
from trainer.labels.reports import REPORTS, Finding, read_report, value_of


@dataclass
class Landed:
    """labelled: how many studies got a value. set_aside: {study UID: sentence}. without: studies whose reports are silent."""

    labelled: int = 0
    without: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)


def land_reports(catalogue_path: Path, dataset: Path, name: str, label: str = "") -> Landed:
    """Give every eligible study with reports the label `label` (or `name`) that its reports tell under `name`.

    A study that has another value of that label already, from a table, keeps it and is set aside: sources that disagree
    are told, not settled here.
    """
    done = Landed()
    with closing(Catalogue(catalogue_path, dataset)) as catalogue:
        for study in catalogue.studies("eligible"):
            records = catalogue.instances(study.study_uid)
            reports = [record for record in records if record.sop_class in REPORTS]
            if not reports:
                continue
            known = [record.sop_uid for record in records]
            before = {one.name: one.value for one in catalogue.labels(study.study_uid)}.get(label or name)
            try:
                findings: list[Finding] = []
                for record in reports:
                    findings += read_report(dataset / record.path, known)
                value = value_of(findings, name)
                if value is not None and before not in (None, value):
                    raise LabelError(f"the study's label {label or name!r} is another than its reports say; mend one")
            except LabelError as err:
                done.set_aside[study.study_uid] = str(err)
                continue
            if value is None:
                done.without += 1
                continue
            catalogue.set_labels([LabelRecord(study.study_uid, label or name, value, "SR")])
            done.labelled += 1
    return done
