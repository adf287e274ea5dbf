"""Who is examined where: the shipped X-rays dealt to hospitals with different label mixes and scanner styles.

Training patients are dealt unevenly (each hospital sees mostly one finding), held-out test patients evenly, so that a
model is judged on every finding at every hospital. A patient is dealt as a whole, never by image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Literal

from aggregator_client.demo import identities
from aggregator_client.demo.images import FINDINGS, XRay

Partition = Literal["train", "validation", "test"]

MAIN_SHARE = 0.9
"""Part of a finding's training patients that goes to the hospitals which mostly see that finding."""
TEST_SHARE = 0.30
VALIDATION_SHARE = 0.10


@dataclass(frozen=True)
class Scanner:
    """How a hospital's device writes its images: intensity style, encoding and header habits."""

    manufacturer: str
    model: str
    modality: Literal["DX", "CR"]
    bits_stored: int
    monochrome1: bool
    transfer_syntax: str
    gamma: float
    gain: float
    noise: float
    blur: float
    private_creator: str


@dataclass(frozen=True)
class Hospital:
    """One site of the demo. `folder` and `ae_title` are what its node is made with."""

    name: str
    folder: str
    ae_title: str
    institution: str
    locale: identities.Locale
    scanner: Scanner
    accession_format: str


@dataclass(frozen=True)
class Exam:
    """One study to send: its images, its invented patient, and what the site's data manager knows about it."""

    hospital: Hospital
    person: identities.Person
    accession: str
    study_date: date
    images: tuple[XRay, ...]
    finding: str
    partition: Partition
    seed: int


EXPLICIT, IMPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"

HOSPITALS: tuple[Hospital, ...] = (
    Hospital(
        "Lindenau",
        "lindenau",
        "LINDENAU",
        "Universitätskinderklinik Lindenau",
        identities.GERMANY,
        Scanner("Kestrel Medizintechnik", "Pulmo DX 4", "DX", 8, False, EXPLICIT, 1.0, 1.0, 0.0, 0.0, "KESTREL DX 2"),
        "LK{:07d}",
    ),
    Hospital(
        "St Brendan",
        "st-brendan",
        "STBRENDAN",
        "St. Brendan's Children's Hospital",
        identities.IRELAND,
        Scanner("Northwind Imaging", "CR Reader 75", "CR", 8, True, IMPLICIT, 1.35, 0.9, 0.02, 0.6, "NORTHWIND_CR"),
        "SBH-{:06d}",
    ),
    Hospital(
        "Aozora",
        "aozora",
        "AOZORA",
        "青空こども病院",
        identities.JAPAN,
        Scanner("Aozora Roentgen", "AR-12 Flat Panel", "DX", 12, False, EXPLICIT, 0.75, 1.1, 0.01, 0.0, "AOZORA HDR"),
        "{:08d}",
    ),
    Hospital(
        "Berezivka",
        "berezivka",
        "BEREZIVKA",
        "Дитяча лікарня Березівка",
        identities.UKRAINE,
        Scanner("Northwind Imaging", "CR Reader 35", "CR", 10, True, EXPLICIT, 1.2, 1.0, 0.03, 0.4, "NORTHWIND_CR"),
        "B{:07d}",
    ),
    Hospital(
        "Saint-Cyr",
        "saint-cyr",
        "SAINTCYR",
        "Hôpital des Enfants Saint-Cyr",
        identities.FRANCE,
        Scanner("Kestrel Medizintechnik", "Pulmo DX 2", "DX", 12, True, IMPLICIT, 0.9, 0.8, 0.02, 0.3, "KESTREL DX 1"),
        "SC{:08d}",
    ),
)


def deal(images: Sequence[XRay], sites: int, seed: int = 0) -> list[list[Exam]]:
    """The exams of the first `sites` hospitals (2 to 5), in the order in which they are sent."""
    if not 2 <= sites <= len(HOSPITALS):
        raise ValueError(f"the demo has 2 to {len(HOSPITALS)} hospitals, not {sites}")
    rng = random.Random(seed)
    dealt: list[list[tuple[tuple[XRay, ...], Partition]]] = [[] for _ in range(sites)]
    for finding in FINDINGS:
        patients = _patients(images, finding)
        rng.shuffle(patients)
        test = round(len(patients) * TEST_SHARE / sites) * sites
        for index, patient in enumerate(patients[:test]):
            dealt[index % sites].append((patient, "test"))
        for site, share in enumerate(_share_out(patients[test:], FINDINGS.index(finding), sites)):
            validation = max(1, round(len(share) * VALIDATION_SHARE))
            dealt[site] += [(patient, "validation") for patient in share[:validation]]
            dealt[site] += [(patient, "train") for patient in share[validation:]]
    return [_exams(HOSPITALS[site], patients, random.Random(seed * 97 + site)) for site, patients in enumerate(dealt)]


def _patients(images: Sequence[XRay], finding: str) -> list[tuple[XRay, ...]]:
    groups: dict[str, list[XRay]] = {}
    for image in images:
        if image.finding == finding:
            groups.setdefault(image.patient, []).append(image)
    return [tuple(group) for group in groups.values()]


def _share_out(patients: list[tuple[XRay, ...]], finding: int, sites: int) -> list[list[tuple[XRay, ...]]]:
    """Split so that the hospitals whose main finding this is get MAIN_SHARE of the patients, the others the rest."""
    main = [site for site in range(sites) if site % len(FINDINGS) == finding]
    others = [site for site in range(sites) if site not in main]
    if not main:  # two hospitals, three findings: the third finding is shared evenly
        main, others = others, []
    weights = [0.0] * sites
    for site in main:
        weights[site] = (MAIN_SHARE if others else 1.0) / len(main)
    others.sort(key=lambda site: (site - finding) % sites)
    for rank, site in enumerate(others):  # unevenly among the others too: the next one sees half as much
        weights[site] = (1 - MAIN_SHARE) * 0.5**rank / sum(0.5**r for r in range(len(others)))
    bounds, done = [0], 0.0
    for weight in weights:
        done += weight
        bounds.append(round(done * len(patients)))
    return [patients[start:stop] for start, stop in pairwise(bounds)]


def _exams(hospital: Hospital, patients: list[tuple[tuple[XRay, ...], Partition]], rng: random.Random) -> list[Exam]:
    """One study a patient, or two on different days for every second patient with two images."""
    rng.shuffle(patients)
    exams: list[Exam] = []
    for number, (images, partition) in enumerate(patients):
        day = date(2024, 1, 8) + timedelta(days=rng.randrange(600))
        person = identities.invent(hospital.locale, 410_023 + 37 * number, day, rng)
        visits = [images] if number % 2 else [(image,) for image in images]
        for visit, group in enumerate(visits):
            accession = hospital.accession_format.format(300_000 + 11 * len(exams) + rng.randrange(10))
            study_date = day + timedelta(days=9 * visit)
            exams.append(
                Exam(hospital, person, accession, study_date, group, group[0].finding, partition, rng.randrange(2**31))
            )
    return exams


def label_csv(exams: Sequence[Exam]) -> str:
    """The CSV the site's data manager imports: accession number, finding, and the held-out list as `partition`."""
    rows = [f"{exam.accession},{exam.finding},{exam.partition}" for exam in exams]
    return "\n".join(["accession_number,finding,partition", *rows]) + "\n"
