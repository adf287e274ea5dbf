"""Hippocampus in MR through `trainer.job`, from DICOM and DICOM Segmentations: 2D slices against 3D patches.

Writes the shared volumes as MR images with a BINARY segmentation each into a temporary de-identified side, trains on the
CPU and tells Dice and HD95 of the test patients.

    python benchmarks/hippocampus.py --json [--only 2d|3d|3d-dynunet] [--seeds N]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dicom_node.records import Catalogue, InstanceRecord, LabelRecord, StudyRecord
from trainer import job
from trainer.geometry import Plane, stack
from trainer.outputs.segmentation import Algorithm, write_segmentation
from trainer.spec import JobSpec

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mr-hippocampus" / "volumes"
CLASSES = ["background", "Hippocampus anterior", "Hippocampus posterior"]
MR = "1.2.840.10008.5.1.4.1.1.4"
TASK = {"name": "segmentation", "classes": CLASSES, "spacing": 1.0}
PATCHES = {**TASK, "dimensions": 3, "patch": [32, 48, 32], "patches": 2}
COSINE = {"schedule": "cosine", "augment": "light"}
CASES: dict[str, dict[str, Any]] = {
    "2d": {
        "network": {"name": "monai_unet", "args": {"classes": 3, "widths": [16, 32, 64], "units": 1}},
        "task": {**TASK, "size": 64},
        "local": {**COSINE, "epochs": 10, "batch": 16, "lr": 3e-3},
    },
    "3d": {
        "network": {
            "name": "monai_unet",
            "args": {"classes": 3, "dimensions": 3, "widths": [16, 32, 64], "units": 1, "norm": "batch"},
        },
        "task": PATCHES,
        "local": {**COSINE, "epochs": 15, "batch": 4, "lr": 3e-3},
    },
    "3d-dynunet": {
        "network": {"name": "monai_dynunet", "args": {"classes": 3, "dimensions": 3, "widths": [12, 24, 48]}},
        "task": PATCHES,
        "local": {**COSINE, "epochs": 15, "batch": 4, "lr": 3e-3},
    },
}


def headers(number: int, shape: tuple[int, int, int]) -> list[Any]:
    """Axial MR slices of 1 mm from inferior to superior, without their pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    study, out = f"2.25.9{number:05}0", []
    for k in range(shape[0]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MR
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{k + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, f"{study}.1", f"{study}.9"
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = f"p{number}", "", "", "O"
        ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.PositionReferenceIndicator = "MR", 1, k + 1, ""
        ds.SpecificCharacterSet, ds.Manufacturer = "ISO_IR 100", "unknown"
        ds.Rows, ds.Columns = shape[1:]
        ds.PixelSpacing, ds.SliceThickness = [1, 1], 1
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        out.append(ds)
    return out


def write_study(dataset: Path, number: int, image: np.ndarray, label: np.ndarray) -> list[InstanceRecord]:
    """One patient's files and records."""
    sources = headers(number, image.shape)
    folder = dataset / sources[0].StudyInstanceUID
    folder.mkdir(parents=True)
    paths = []
    for ds, pixels in zip(sources, image, strict=True):
        ds.PixelData = pixels.astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"{ds.SOPInstanceUID}.dcm", enforce_file_format=True)
        paths.append(folder / f"{ds.SOPInstanceUID}.dcm")
    planes = [
        Plane(str(ds.SOPInstanceUID), 1, (0, 0, k), (1, 0, 0, 0, 1, 0), (1, 1), image.shape[1:])
        for k, ds in enumerate(sources)
    ]
    truth = np.moveaxis(np.eye(3, dtype=np.float32)[label], -1, 0)
    seg = write_segmentation(folder, sources, stack(planes), truth, CLASSES, Algorithm("manual", "1", "0" * 64))
    study, series = str(sources[0].StudyInstanceUID), str(sources[0].SeriesInstanceUID)
    rows, columns = image.shape[1:]
    out = []
    for path in [*paths, seg]:
        kind, frames = (MR, 1) if path != seg else ("1.2.840.10008.5.1.4.1.1.66.4", 2)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        relative = str(path.relative_to(dataset))
        series_uid = series if path != seg else series + ".2"
        out.append(
            InstanceRecord(
                path.stem, study, series_uid, kind, "1.2.840.10008.1.2.1", rows, columns, frames, relative, digest
            )
        )
    return out


def make_side(root: Path, limit: int) -> None:
    """A catalogue and dataset of the shared volumes; 65 / 15 / 20 % train, validation, test."""
    catalogue = Catalogue(root / "catalogue.db", root / "dataset")
    files = np.random.default_rng(0).permutation(sorted(DATA.glob("*.npz")))[:limit]
    for number, file in enumerate(files):
        with np.load(file) as volume:
            records = write_study(root / "dataset", number, volume["image"], volume["label"])
        study = StudyRecord(records[0].study_uid, f"p{number}", "MR", "BRAIN", content_hash=str(number))
        catalogue.add_study(study, records)
        share = number / len(files)
        partition = "train" if share < 0.65 else "validation" if share < 0.8 else "test"
        catalogue.set_labels([LabelRecord(study.study_uid, "partition", partition)])
    catalogue.close()


def run(root: Path, name: str, seed: int, evaluate_on: str) -> dict[str, Any]:
    facts = {
        "kind": "train", "catalogue": root / "catalogue.db", "dataset": root / "dataset", "cache": root / "cache",
        "out": root / f"{name}-{seed}", "seed": seed, "threads": torch.get_num_threads(), "evaluate_on": evaluate_on,
        "cohort": {"modalities": ["MR"]}, **CASES[name],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        result = job.run(JobSpec.model_validate(facts))
    metrics = result["metrics"]
    kept = {key: metrics[key] for key in ("dice", "hd95", "cases", "dice_interval") if key in metrics}
    return kept | {key: result[key] for key in ("seconds", "training_seconds", "waiting_share", "steps")}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=sorted(CASES), action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--on", choices=["validation", "test"], default="test")
    given = parser.parse_args()
    if not DATA.exists():
        print("hippocampus: the shared test data is not beside this checkout", file=sys.stderr)
        return 3
    torch.set_num_threads(1)
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_side(Path(folder), given.patients)
        for name in given.only or sorted(CASES):
            out[name] = [run(Path(folder), name, seed, given.on) for seed in range(given.seeds)]
    out |= {"on": given.on, "machine": platform.machine(), "torch": torch.__version__}
    print(json.dumps(out) if given.json else json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
