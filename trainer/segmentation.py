"""The segmentation task: series with DICOM Segmentations → 2D slices with masks; evaluation by volume; prediction.

Each volume is brought to one orientation (trainer.geometry), z-scored as a whole, and cut into the slices it was
acquired in. Dice is computed over a patient's whole volume.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dicom_node.records import PARTITIONS, CohortEntry, InstanceRecord
from trainer.cohort import Loaded, entries_of, is_image, study_facts
from trainer.errors import CohortError, LabelError, PixelError
from trainer.geometry import from_canonical, to_canonical
from trainer.labels.segmentation import LABELMAP, SEGMENTATION, read_segmentation
from trainer.local.data import Samples, Slices
from trainer.pixels.cache import TensorCache, Wanted
from trainer.pixels.grid import Grid
from trainer.pixels.prepare import Preparation
from trainer.spec import JobSpec, Source, TaskSpec
from trainer.volumes import Volume, read_volume

Progress = Callable[[int, int], None]


def prepare_volume(volume: Volume, task: TaskSpec, mask: np.ndarray | None = None) -> np.ndarray:
    """float32 [slices, 1 or 2, size, size]: the z-scored image and, when given, the class index of each pixel."""
    affine = volume.stack.affine
    values, moved = to_canonical(volume.values, affine)
    values = (values - values.mean()) / max(float(values.std()), 1e-6)
    spacing = _in_plane(moved)
    grid = Grid(task.size, task.spacing)
    images = grid.fit(torch.from_numpy(values)[:, None], spacing, "bilinear", float(values.min()))
    if mask is None:
        return np.asarray(images.numpy())
    placed = to_canonical(mask, affine)[0].astype(np.float32)
    masks = grid.fit(torch.from_numpy(placed)[:, None], spacing, "nearest-exact", 0.0)
    return np.asarray(torch.cat([images, masks], 1).numpy())


def _in_plane(affine: np.ndarray) -> tuple[float, float]:
    """mm between rows and between columns of a canonical volume's slices."""
    return float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 2]))


@torch.no_grad()
def predict_volume(
    model: nn.Module, volume: Volume, task: TaskSpec, device: torch.device | str = "cpu", batch: int = 32
) -> np.ndarray:
    """Class probabilities on the volume's own grid and slice order: float32 [classes, slices, H, W]."""
    slices = torch.from_numpy(prepare_volume(volume, task))
    model.to(device).eval()
    parts = [torch.softmax(model(part.to(device)), 1).cpu() for part in slices.split(batch)]
    affine = volume.stack.affine
    canonical, moved = to_canonical(volume.values, affine)
    shape = (int(canonical.shape[1]), int(canonical.shape[2]))
    restored = Grid(task.size, task.spacing).restore(torch.cat(parts), shape, _in_plane(moved))
    return from_canonical(restored.movedim(1, 0).numpy(), affine)


def load_source(spec: JobSpec, source: Source, threads: int, progress: Progress | None) -> Loaded:
    """Slices by partition from one de-identified side; a study whose labels cannot be trusted is set aside by its UID."""
    settings = f"{spec.task.classes}{spec.task.spacing}"
    preparation = Preparation(size=spec.task.size, extra="segmentation" + settings)
    cache = TensorCache(spec.cache, preparation, channels=2)
    entries, failures = entries_of(spec, source, cache)
    wanted: list[Wanted] = []
    owners: list[tuple[str, CohortEntry]] = []
    set_aside: dict[str, str] = {}
    for partition, group in entries.items():
        for entry in group:
            try:
                images, labels = series_with_labels(entry)
            except LabelError as err:
                set_aside[entry.study.study_uid] = str(err)
                continue
            wanted += _wanted(source.dataset, spec.task, images, labels)
            owners += [(partition, entry)] * len(images)
    filled = cache.fill(wanted, threads, progress)
    spoiled = {w.key.split(" ")[1]: filled.failures[w.key] for w in wanted if w.key in filled.failures}
    whole = [
        i if filled.rows[i] >= 0 and owners[i][1].study.study_uid not in spoiled else -1 for i in range(len(wanted))
    ]
    return _collect(filled.images, filled.rows, [i for i in whole if i >= 0], owners, failures, set_aside | spoiled)


def series_with_labels(entry: CohortEntry) -> tuple[list[InstanceRecord], InstanceRecord]:
    """The image series of a study and its one segmentation. Errors: LabelError when that is not clear."""
    labels = [record for record in entry.instances if record.sop_class in (SEGMENTATION, LABELMAP)]
    if not labels:
        raise LabelError(f"study {entry.study.study_uid} holds no segmentation; attach one or leave it out")
    if len({record.sop_class for record in labels}) < len(labels):
        raise LabelError(f"study {entry.study.study_uid} holds several segmentations; keep the one to learn from")
    series: dict[str, list[InstanceRecord]] = {}
    for record in entry.instances:
        if is_image(record):
            series.setdefault(record.series_uid, []).append(record)
    if len(series) != 1:
        raise LabelError(f"study {entry.study.study_uid} has {len(series)} image series; a segmentation task needs one")
    return next(iter(series.values())), labels[0]


def _wanted(dataset: Path, task: TaskSpec, images: list[InstanceRecord], label: InstanceRecord) -> list[Wanted]:
    """One cache row a slice; the volume is prepared once and handed out slice by slice."""
    digest = hashlib.sha256("".join(sorted(r.sha256 for r in [*images, label])).encode()).hexdigest()
    frames = sum(record.frames for record in images)
    volume = _Once(partial(_prepare_study, dataset, task, images, label))
    study = images[0].study_uid
    return [Wanted(f"{k} {study}", digest, partial(volume.slice, k, frames)) for k in range(frames)]


def _prepare_study(dataset: Path, task: TaskSpec, images: list[InstanceRecord], label: InstanceRecord) -> np.ndarray:
    volume = read_volume([dataset / record.path for record in images])
    try:
        mask = read_segmentation(dataset / label.path, volume.stack, volume.frame_of_reference, task.classes)
    except LabelError as err:
        raise PixelError(str(err)) from err
    return prepare_volume(volume, task, mask)


class _Once:
    """Prepare a study when its first slice is asked for and drop it after its last."""

    def __init__(self, make: Callable[[], np.ndarray]) -> None:
        self.make = make
        self.done: np.ndarray | None = None
        self.lock = threading.Lock()

    def slice(self, index: int, count: int) -> np.ndarray:
        with self.lock:
            done = self.done if self.done is not None else self.make()
            self.done = done if index < count - 1 else None
        if len(done) != count:
            raise PixelError(f"the series has {count} images at {len(done)} places; keep one volume of a time series")
        return np.asarray(done[index])


def _collect(
    images: np.ndarray,
    rows: np.ndarray,
    kept: list[int],
    owners: list[tuple[str, CohortEntry]],
    failures: dict[str, int],
    set_aside: dict[str, str],
) -> Loaded:
    samples: dict[str, Samples] = {}
    studies: dict[str, list[str]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for partition in PARTITIONS:
        mine = [i for i in kept if owners[i][0] == partition]
        uids = sorted({owners[i][1].study.study_uid for i in mine})
        number = {uid: n for n, uid in enumerate(uids)}
        groups = np.array([number[owners[i][1].study.study_uid] for i in mine], np.int64)
        samples[partition] = Slices(images, np.zeros(0, np.int64), rows[mine].astype(np.int64), groups)
        studies[partition] = uids
        facts[partition] = [study_facts(owners[i][1].study) for i in mine]
    if set_aside:
        failures = failures | {"label or image cannot be used": len(set_aside)}
    return Loaded(samples, studies, facts, failures, set_aside)


@torch.no_grad()
def predict_slices(model: nn.Module, samples: Samples, device: torch.device | str = "cpu") -> np.ndarray:
    """Chosen class of every pixel: uint8 [N, size, size]."""
    model.to(device).eval()
    parts = [model(images.to(device)).argmax(1).to(torch.uint8).cpu().numpy() for images, _ in samples.batches(32)]
    if not parts:
        raise CohortError("there is no labelled slice to evaluate on; label more studies or widen the cohort")
    return np.concatenate(parts)


def dice_metrics(truth: np.ndarray, said: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Dice over whole volumes: truth and said [N, H, W] class indices, groups [N] the volume of each slice.

    A class that neither reader saw in a volume has no Dice there and is left out of the means.
    """
    values: dict[str, list[float]] = {name: [] for name in classes[1:]}
    for group in np.unique(groups):
        a, b = truth[groups == group], said[groups == group]
        for index, name in enumerate(classes[1:], 1):
            total = int((a == index).sum() + (b == index).sum())
            if total:
                values[name].append(2.0 * int(((a == index) & (b == index)).sum()) / total)
    known = [v for mine in values.values() for v in mine]
    return {
        "dice": round(float(np.mean(known)), 6) if known else None,
        "cases": len(np.unique(groups)),
        "per_class": {
            name: {"cases": len(mine), "dice": round(float(np.mean(mine)), 6) if mine else None}
            for name, mine in values.items()
        },
    }


def evaluate(model: nn.Module, samples: Samples, classes: Sequence[str], device: torch.device | str) -> dict[str, Any]:
    """Dice by volume of a model on slices."""
    said = predict_slices(model, samples, device)
    truth = np.concatenate([masks.numpy() for _, masks in samples.batches(64)])
    groups = samples.groups if samples.groups is not None else np.zeros(len(samples), np.int64)
    return dice_metrics(truth, said, groups, classes)
