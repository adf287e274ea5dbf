"""Inference on DICOM files: a series at a time, to Segmentation objects or to a list of class probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import segmentation, volumetric
from trainer.errors import PixelError, TrainerError
from trainer.evaluation import classification
from trainer.modelcard import LoadedModel
from trainer.outputs.measurements import write_measurements
from trainer.outputs.segmentation import Algorithm, write_segmentation
from trainer.pixels.prepare import Preparation, prepare_frame
from trainer.pixels.read import read_frames
from trainer.pixels.series import prepare_series
from trainer.volumes import read_header, read_volume

_NOT_IMAGES = ("SEG", "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "PLAN", "FID")


@dataclass
class Predicted:
    """outputs: one entry a series (segmentation) or instance (classification); set_aside: {series or file: sentence}."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)


def find_series(paths: Iterable[Path]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Image files under the given files and folders by Series Instance UID, and what is not readable with its reason."""
    series: dict[str, list[Path]] = {}
    unread: dict[str, str] = {}
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            try:
                ds = read_header(file)
                if str(ds.get("Modality", "")) not in _NOT_IMAGES and "Rows" in ds:
                    series.setdefault(str(ds.SeriesInstanceUID), []).append(file)
            except (PixelError, AttributeError) as err:
                unread[file.name] = str(err)
    return series, unread


def predict(
    model: LoadedModel,
    paths: Sequence[Path],
    out: Path,
    *,
    kind: str = "binary",
    measurements: bool = False,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> Predicted:
    """Run the model on every image series below `paths` and write into `out`; one bad series does not stop the rest.

    measurements: also write a measurement report for each Segmentation. What answers a coordinator leaves it out.
    """
    series, unread = find_series(paths)
    done = Predicted(set_aside=unread)
    out.mkdir(parents=True, exist_ok=True)
    for uid, files in series.items():
        try:
            if model.card.task.name == "segmentation":
                done.outputs.append(_segment(model, uid, files, out, kind, measurements, device))
            else:
                done.outputs += _classify(model, uid, files, device)
        except TrainerError as err:
            done.set_aside[uid] = str(err)
        report(uid)
    if model.card.task.name == "classification" and done.outputs:
        lines = "".join(json.dumps(row) + "\n" for row in done.outputs)
        (out / "predictions.jsonl").write_text(lines, encoding="utf-8")
    return done


def _segment(
    model: LoadedModel,
    uid: str,
    files: list[Path],
    out: Path,
    kind: str,
    measurements: bool,
    device: torch.device | str,
) -> dict[str, Any]:
    volume = read_volume(files)
    run = volumetric.predict_volume if model.card.task.dimensions == 3 else segmentation.predict_volume
    probabilities = run(model.network, volume, model.card.task, device)
    used = {plane.sop_uid for plane in volume.stack.planes}
    sources = [ds for ds in map(read_header, files) if str(ds.SOPInstanceUID) in used]
    algorithm = Algorithm(model.card.name, model.card.version, model.card.sha256)
    path = write_segmentation(out, sources, volume.stack, probabilities, model.card.task.classes, algorithm, kind)
    voxel = abs(float(np.linalg.det(volume.stack.affine[:3, :3]))) / 1000
    chosen = probabilities.argmax(0)
    volumes = {n: round(float((chosen == i).sum()) * voxel, 3) for i, n in enumerate(model.card.task.classes) if i}
    told: dict[str, Any] = {"series": uid, "output": path.name, "ml": volumes, "issues": volume.stack.issues}
    if measurements:
        told["measurements"] = write_measurements(out, sources, read_header(path), volumes, algorithm).name
    return told


def _classify(model: LoadedModel, uid: str, files: list[Path], device: torch.device | str) -> list[dict[str, Any]]:
    """Probabilities of each image, or for a 2.5D task of the series as a whole."""
    task = model.card.task
    preparation = Preparation.of(task)
    if task.slices > 1:
        return [
            {"series": uid, "probabilities": _shares(model, prepare_series(files, preparation, task.slices), device)}
        ]
    out = []
    for file in files:
        sop_uid = str(read_header(file).SOPInstanceUID)
        frames = read_frames(file, sop_uid).values
        image = prepare_frame(frames[len(frames) // 2], preparation)
        out.append({"sop_instance_uid": sop_uid, "probabilities": _shares(model, image, device)})
    return out


@torch.no_grad()
def _shares(model: LoadedModel, image: np.ndarray, device: torch.device | str) -> dict[str, float]:
    logits = model.network.to(device)(torch.from_numpy(image)[None].to(device))
    shares = classification.probabilities_of(logits, model.card.task.multilabel)[0].cpu().tolist()
    return {name: round(share, 6) for name, share in zip(model.card.task.classes, shares, strict=True)}
