"""Which studies a pull asks a PACS for: the query keys, and the plan's name that follows from them."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

from pydicom import Dataset

from dicom_node.errors import InputError

_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")


@dataclass(frozen=True)
class Selection:
    """Matching keys at study level (PS3.4 table C.6-5). Empty means any; several lists multiply into several queries."""

    modalities: tuple[str, ...] = ()
    first_date: str = ""  # YYYYMMDD
    last_date: str = ""
    description: str = ""  # with the wildcards * and ?
    patients: tuple[str, ...] = ()
    accessions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        modalities: list[str],
        first: str,
        last: str,
        description: str,
        patients: Path | None,
        accessions: Path | None,
    ) -> Selection:
        """From the command line. Raises InputError; a selection of everything is refused."""
        made = cls(
            tuple(modalities),
            _day(first, "--from"),
            _day(last, "--to"),
            description,
            _lines(patients),
            _lines(accessions),
        )
        if made == cls():
            raise InputError(
                "This would ask for every study of the PACS: give --modality, --from, --to or another key."
            )
        if made.first_date and made.last_date and made.first_date > made.last_date:
            raise InputError("--from is later than --to: exchange them.")
        return made

    def digest(self, source: str) -> str:
        """The name of the plan for this selection at this PACS."""
        return hashlib.sha256(json.dumps([source, asdict(self)], sort_keys=True).encode()).hexdigest()

    def queries(self) -> Iterator[Dataset]:
        """C-FIND identifiers at study level."""
        for patient in self.patients or ("",):
            for accession in self.accessions or ("",):
                for modality in self.modalities or ("",):
                    yield self._query(patient, accession, modality)

    def _query(self, patient: str, accession: str, modality: str) -> Dataset:
        query = Dataset()
        query.SpecificCharacterSet = "ISO_IR 192"
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = ""
        query.PatientID, query.AccessionNumber, query.ModalitiesInStudy = patient, accession, modality
        query.StudyDate = f"{self.first_date}-{self.last_date}" if self.first_date or self.last_date else ""
        query.StudyDescription = self.description
        query.NumberOfStudyRelatedInstances = None
        return query


def halves(query: Dataset) -> list[Dataset]:
    """The query over each half of its dates, for a PACS that limits its answers; [] when it cannot be split."""
    first, _, last = str(query.StudyDate).partition("-")
    if not first or not last or first == last:
        return []
    start, end = _as_date(first), _as_date(last)
    middle = start + (end - start) // 2
    made = []
    for low, high in ((start, middle), (middle + timedelta(days=1), end)):
        half = copy.deepcopy(query)
        half.StudyDate = f"{low:%Y%m%d}-{high:%Y%m%d}"
        made.append(half)
    return made


def _day(text: str, option: str) -> str:
    if not text:
        return ""
    found = _DATE.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        return f"{date(*map(int, found.groups())):%Y%m%d}"
    except ValueError:
        raise InputError(f"{option} {text!r} is no date: write it as 2024-01-31.") from None


def _as_date(text: str) -> date:
    return date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def _lines(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        values = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{file} cannot be read: name a UTF-8 text file with one value a line.") from None
    if not (kept := tuple(value for value in values if value)):
        raise InputError(f"{file} holds no value: write one a line.")
    return kept
