"""Makes the corpus: base objects for each patient, and one function a category that plants content and says what must hold.

Every value that identifies is invented. A category function gets the data set and the person and gives back its checks.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from tests.anonymizer.corpus.key import (
    Case,
    Check,
    equal,
    gone,
    keeps,
    lacks,
    new_uid,
    present,
    pseudonym,
    removed,
    same_pixels,
    shifted,
)  # fmt: skip
from tests.anonymizer.corpus.people import PEOPLE, Person

ROOT = "1.2.826.0.1.3680043.9.7777"
Category = Callable[[FileDataset, Person], list[Check]]
CT = "1.2.840.10008.5.1.4.1.1.2"


def base(person: Person, number: int, sop_class: str = CT, modality: str = "CT", pixels: bool = True) -> FileDataset:
    """A plain object of a person, with everything a modality fills in."""
    index = PEOPLE.index(person)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"{ROOT}.{index}.1.{number}"
    meta.ImplementationClassUID = f"{ROOT}.9"
    ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    if person.charset:
        ds.SpecificCharacterSet = person.charset
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, meta.MediaStorageSOPInstanceUID, modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.{index}", f"{ROOT}.{index}.1"
    ds.FrameOfReferenceUID = f"{ROOT}.{index}.7"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName, ds.PatientID, ds.AccessionNumber = person.name, person.pid, person.accession
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = person.birth, "F", person.age
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = person.study
    ds.StudyTime, ds.StudyID, ds.InstitutionName = "233012", "S1", person.hospital
    ds.ReferringPhysicianName = "Kesselring^Ottoline"
    ds.Manufacturer, ds.ManufacturerModelName, ds.BodyPartExamined = "ACME Imaging", "Scanner 9", "CHEST"
    ds.StudyDescription, ds.SeriesDescription = "CT chest with contrast", "Axial 1.5 mm lung"
    ds.BurnedInAnnotation, ds.InstanceNumber = "NO", number
    if pixels:
        rng = np.random.default_rng(number)
        ds.Rows = ds.Columns = 64
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = rng.integers(0, 4096, (64, 64), dtype=np.uint16).tobytes()
    return ds


def encoded(ds: FileDataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def privacy(category: str, *judges: object) -> list[Check]:
    return [Check(category, "privacy", judge) for judge in judges]  # type: ignore[arg-type]


def retention(category: str, *judges: object) -> list[Check]:
    return [Check(category, "retention", judge) for judge in judges]  # type: ignore[arg-type]


def standing(p: Person) -> list[Check]:
    """What must hold of every file: the person is nowhere, identifiers are mapped, technical facts are kept."""
    checks = [Check("everywhere", "privacy", gone(w), w) for w in (*p.pieces, *p.hospital_words, p.pid, p.accession)]
    checks += privacy("everywhere", gone("Kesselring"), gone("Ottoline"), pseudonym(p.pid), removed("PatientBirthDate"))
    index = PEOPLE.index(p)
    checks += privacy(
        "uids", new_uid(f"{ROOT}.{index}", "StudyInstanceUID"), new_uid(f"{ROOT}.{index}.1", "SeriesInstanceUID")
    )
    checks += privacy("dates", *(shifted(p.pid, p.study, k) for k in ("StudyDate", "SeriesDate", "ContentDate")))
    checks += retention("time of day", equal("233012", "StudyTime"))
    checks += retention(
        "technical",
        equal("ACME Imaging", "Manufacturer"),
        equal("Scanner 9", "ManufacturerModelName"),
        equal("CHEST", "BodyPartExamined"),
        equal(["ORIGINAL", "PRIMARY", "AXIAL"], "ImageType"),
        keeps("CT chest with contrast", "StudyDescription"),
        keeps("Axial 1.5 mm lung", "SeriesDescription"),
        equal("F", "PatientSex"),
    )
    checks += retention("age", equal("090Y" if p.age > "089Y" else p.age, "PatientAge"))
    checks += retention("marked", equal("YES", "PatientIdentityRemoved"), present("DeidentificationMethod"))
    return checks


def cases() -> Iterator[Case]:
    """Every category once for several people, each person's plain object, and all that the other modules make.

    Pictures with burned-in text are not among them, since reading takes its time: ``pictures.cases``.
    """
    from tests.anonymizer.corpus import categories, encodings, hiding, languages, phrases, scripts, streams, wire

    number = 0
    for person in PEOPLE:
        number += 1
        ds = base(person, number)
        yield Case(f"plain-{person.pid}", encoded(ds), [*standing(person), *retention("pixels", same_pixels)])
    for category in categories.CATEGORIES:
        for turn in range(3):
            number += 1
            person = PEOPLE[number % len(PEOPLE)]
            ds = base(person, number)
            checks = category(ds, person)
            yield Case(f"{category.__name__}-{turn}", encoded(ds), [*standing(person), *checks])
    for index, module in enumerate((encodings, phrases, scripts, hiding, streams, languages, wire)):
        yield from module.cases(1000 * index + number)


def text_of(person: Person, piece: int = 0) -> str:
    return person.pieces[piece]


def item(**attributes: object) -> Dataset:
    ds = Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def sequence(*items: Dataset) -> Sequence:
    return Sequence(items)


__all__ = [
    "CT",
    "ROOT",
    "Case",
    "Category",
    "base",
    "cases",
    "encoded",
    "gone",
    "lacks",
    "privacy",
    "retention",
    "struct",
]
