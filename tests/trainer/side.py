"""A small de-identified side for tests: a catalogue and a dataset folder of DX images, as the node's worker leaves them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.records import Catalogue, InstanceRecord, LabelRecord, StudyRecord
from trainer.pixels.header import scan

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CLASSES = ["normal", "bacterial", "viral"]


def dx(pixels: np.ndarray, sop_uid: str, study_uid: str) -> Dataset:
    """A digital radiograph for presentation holding `pixels` uint16 [H, W]."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DX
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = sop_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = study_uid, study_uid + ".1", "DX"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


@dataclass(frozen=True)
class Side:
    """Where everything is."""

    root: Path

    @property
    def catalogue(self) -> Path:
        return self.root / "catalogue.db"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    def add(self, catalogue: Catalogue, number: int, pixels: np.ndarray, label: str | None, **facts: Any) -> str:
        """One study with one image; returns its SOP Instance UID."""
        study_uid, sop_uid = f"2.25.{number}0", f"2.25.{number}1"
        relative = f"{study_uid}/{sop_uid}.dcm"
        path = self.dataset / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        dx(pixels, sop_uid, study_uid).save_as(path, enforce_file_format=True)
        data = path.read_bytes()
        header = scan(data)
        assert header is not None
        digest = hashlib.sha256(data).hexdigest()
        partition = facts.pop("partition", None)
        patient = facts.pop("patient", f"patient{number}")
        study = StudyRecord(study_uid, patient, "DX", "CHEST", content_hash=digest, instances=1, **facts)
        rows, columns = pixels.shape
        record = InstanceRecord(
            sop_uid, study_uid, study_uid + ".1", DX, ExplicitVRLittleEndian, rows, columns, 1, relative, digest,
            header.offset, header.length,
        )  # fmt: skip
        catalogue.add_study(study, [record])
        labels = [LabelRecord(study_uid, "finding", label)] if label else []
        labels += [LabelRecord(study_uid, "partition", partition)] if partition else []
        catalogue.set_labels(labels)
        return sop_uid


def disc(label: int, random: np.random.Generator, size: int = 32) -> np.ndarray:
    """Noise, with nothing (0), a bright square (1) or bright stripes (2)."""
    pixels = random.normal(1000, 60, (size, size))
    if label == 1:
        pixels[8:24, 8:24] += 250
    if label == 2:
        pixels[:, ::8] += 250
        pixels[:, 1::8] += 250
    return np.clip(pixels, 0, 4095).astype(np.uint16)


def build(root: Path, count: int = 60, seed: int = 0, first: int = 1, step: int = 1) -> Side:
    """A side with `count` one-image patients of three classes: 60 % train, 20 % validation, 20 % test.

    Their pseudonyms and UIDs come of first, first + step, ...
    """
    side = Side(root)
    random = np.random.default_rng(seed)
    catalogue = Catalogue(side.catalogue, side.dataset)
    for n in range(count):
        label = n % 3
        partition = ["train", "train", "train", "validation", "test"][(n // 3) % 5]
        facts = {"sex": "FM"[n % 2], "age_years": 20 + n, "manufacturer": ["Vendor A", "Vendor B"][(n // 6) % 2]}
        side.add(catalogue, first + n * step, disc(label, random), CLASSES[label], partition=partition, **facts)
    catalogue.close()
    return side


def spec(side: Side, out: Path, **changes: Any) -> dict[str, Any]:
    """A job specification for this side as JSON-ready values; `local` is merged."""
    local = {"epochs": 8, "batch": 12, "lr": 3e-3} | changes.pop("local", {})
    facts: dict[str, Any] = {
        "kind": "train",
        "catalogue": str(side.catalogue),
        "dataset": str(side.dataset),
        "cache": str(side.root / "cache"),
        "network": {"name": "small_resnet", "args": {"classes": 3, "widths": [8, 16]}},
        "task": {"name": "classification", "classes": CLASSES, "label": "finding", "size": 32},
        "cohort": {"modalities": ["DX"], "label": "finding", "classes": CLASSES},
        "local": local,
        "evaluate_on": "test",
        "seed": 3,
        "out": str(out),
        "threads": 1,
    }
    return facts | changes


def write_spec(path: Path, facts: dict[str, Any]) -> Path:
    path.write_text(json.dumps(facts))
    return path
