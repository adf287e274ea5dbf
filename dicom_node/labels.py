"""Imports labels from a CSV keyed by accession number (identified side) and lands them on the de-identified studies."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError
from dicom_node.records import PARTITIONS, Catalogue, LabelRecord
from dicom_node.spool import Spool
from dicom_node.vault import Vault

KEY = "accession_number"
SOURCE = "csv"


@dataclass
class ImportReport:
    """What an import did. ``landed`` counts studies that have their labels now, ``waiting`` rows whose study has not come;
    ``problems`` name row numbers (the header is row 1), never values."""

    rows: int = 0
    labels: int = 0
    landed: int = 0
    waiting: int = 0
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_csv(file: Path, columns: tuple[str, ...] = ()) -> tuple[dict[str, dict[str, str]], list[str]]:
    """{accession number: {label name: value}} and the problems of single rows; empty cells are no label.

    Raises InputError when the file cannot be read, has no accession_number column or lacks one of `columns`.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"The label file {file} cannot be read ({error.strerror}): check the path and its permissions."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"The label file {file} is not UTF-8: export it again as CSV UTF-8.") from None
    reader = csv.DictReader(io.StringIO(text), restkey="", restval="")
    header = [name.strip() for name in reader.fieldnames or []]
    for name in (KEY, *columns):
        if name not in header:
            found = ", ".join(header) or "none"
            raise InputError(f"The label file {file} has no column {name} (it has {found}): add it or rename one.")
    if len(header) != len(set(header)) or "" in header or len(header) < 2:
        raise InputError(
            f"The label file {file} needs {KEY} and at least one more column, each with a name of its own."
        )
    reader.fieldnames = header
    table: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for number, row in enumerate(reader, start=2):
        problem = _row_problem(row, table)
        if problem:
            problems.append(f"row {number}: {problem}")
            continue
        accession = row.pop(KEY).strip()
        table[accession] = {name: value.strip() for name, value in row.items() if value.strip()}
    return table, problems


def _row_problem(row: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    accession = (row.get(KEY) or "").strip()
    if "" in row:
        return "more cells than the header has columns"
    if not accession:
        return "the accession number is empty"
    if accession in known:
        return "its accession number stands in an earlier row"
    partition = (row.get("partition") or "").strip()
    if partition and partition not in PARTITIONS:
        return "partition is not one of " + ", ".join(PARTITIONS)
    return ""


def import_csv(config: NodeConfig, file: Path, columns: tuple[str, ...] = ()) -> ImportReport:
    """Import a label file: studies here get their labels at once, rows of studies yet to come wait for them.

    A second import updates. Raises InputError (see `read_csv`).
    """
    table, problems = read_csv(file, columns)
    report = ImportReport(rows=len(table) + len(problems), problems=problems)
    vault, catalogue = Vault.open(config), Catalogue(config.storage.catalogue)
    try:
        with Spool(config.storage.spool) as spool:
            rows = [(accession, name, value) for accession, labels in table.items() for name, value in labels.items()]
            report.labels = spool.put_labels(rows, SOURCE)
        for accession, labels in table.items():
            if land(vault, catalogue, accession, labels):
                report.landed += 1
            else:
                report.waiting += 1
    finally:
        catalogue.close()
        vault.close()
    audit = AuditLog(config.storage.audit)
    facts = {name: value for name, value in report.as_dict().items() if name != "problems"}
    audit.append("labels.imported", **facts, problems=len(problems))
    audit.close()
    return report


def land(vault: Vault, catalogue: Catalogue, accession: str, labels: Mapping[str, str]) -> int:
    """Put an accession number's labels on its de-identified studies; returns how many studies that were."""
    studies = vault.pseudonyms("accession", accession)
    known = [uid for uid in studies if catalogue.study(uid) is not None]
    catalogue.set_labels(LabelRecord(uid, name, value, SOURCE) for uid in known for name, value in labels.items())
    return len(known)
