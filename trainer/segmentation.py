"""The segmentation task: series with DICOM Segmentations → 2D slices with masks; evaluation by volume; prediction.

Each volume is brought to one orientation (trainer.geometry), z-scored as a whole, and cut into the slices it was
acquired in. trainer.volumetric does the same with whole volumes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dicom_node.records import PARTITIONS, CohortEntry, InstanceRecord
from trainer.cohort import Loaded, entries_of, study_facts
from trainer.errors import CohortError, LabelError, PixelError
from trainer.evaluation.segmentation import dice_metrics
from trainer.geometry import from_canonical, stack, to_canonical
from trainer.harmonise.landmarks import harmonised
from trainer.labels.contours import RTSTRUCT, read_contours
from trainer.labels.segmentation import LABELMAP, SEGMENTATION, read_segmentation
from trainer.local.data import Samples, Slices
from trainer.measured import is_image
from trainer.pixels.cache import Filled, TensorCache, Wanted
from trainer.pixels.grid import Grid
from trainer.pixels.prepare import Preparation
from trainer.spec import JobSpec, Source, TaskSpec
from trainer.volumes import Volume, planes_of, read_header, read_volume

Progress = Callable[[int, int], None]
__all__ = ["dice_metrics"]


def prepare_volume(volume: Volume, task: TaskSpec, mask: np.ndarray | None = None) -> np.ndarray:
    """float32 [slices, 1 or 2, size, size]: the z-scored image and, when given, the class index of each pixel."""
    affine = volume.stack.affine
    values, moved = to_canonical(volume.values, affine)
    if scale := task.harmonise:
        values = harmonised(values, scale.at, scale.above_mean)
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
    preparation = Preparation.of(spec.task, "segmentation" + settings)
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
    kept = [i for i in whole if i >= 0]
    loaded = _collect(filled, kept, owners, failures, set_aside | spoiled)
    uids, mine = loaded.studies[spec.evaluate_on], {entry.study.study_uid: entry for _, entry in owners}
    loaded.cases[spec.evaluate_on] = [case_facts(source.dataset, spec.task, mine[uid]) for uid in uids]
    return loaded


def case_facts(dataset: Path, task: TaskSpec, entry: CohortEntry) -> dict[str, Any]:
    """What a volume's metrics need and go by: header facts and the prepared grid's spacing in mm (None when unknown)."""
    images = [record for record in entry.instances if is_image(record)]
    planes = [plane for record in images for plane in planes_of(read_header(dataset / record.path))]
    affine = stack(planes).affine
    native = tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0))
    spacing: tuple[float, ...] | None = None
    if task.spacing is not None:
        spacing = (native[0], task.spacing, task.spacing) if task.dimensions == 2 else (task.spacing,) * 3
    elif task.dimensions == 3:
        whole = to_canonical(np.zeros((1, 1, 1), np.float32), affine, whole=True)[1]
        spacing = tuple(float(mm) for mm in np.linalg.norm(whole[:3, :3], axis=0))
    return study_facts(entry.study, dataset / images[0].path) | {"spacing_mm": spacing}


def series_with_labels(entry: CohortEntry) -> tuple[list[InstanceRecord], list[InstanceRecord]]:
    """The image series of a study and its segmentations and contours. Errors: LabelError when that is not clear."""
    labels = [record for record in entry.instances if record.sop_class in (SEGMENTATION, LABELMAP, RTSTRUCT)]
    if not labels:
        raise LabelError(f"study {entry.study.study_uid} holds no segmentation; attach one or leave it out")
    series: dict[str, list[InstanceRecord]] = {}
    for record in entry.instances:
        if is_image(record):
            series.setdefault(record.series_uid, []).append(record)
    if len(series) != 1:
        raise LabelError(f"study {entry.study.study_uid} has {len(series)} image series; a segmentation task needs one")
    return next(iter(series.values())), labels


def source_digest(records: list[InstanceRecord]) -> str:
    """One SHA-256 for everything a prepared study is made from."""
    return hashlib.sha256("".join(sorted(record.sha256 for record in records)).encode()).hexdigest()


def labelled_volume(
    dataset: Path, task: TaskSpec, images: list[InstanceRecord], labels: list[InstanceRecord]
) -> tuple[Volume, np.ndarray]:
    """A study's volume with the class index of each voxel, uint8 [slices, H, W].

    Errors: PixelError, also when labels cannot be laid on the volume or when two label objects disagree.
    """
    volume = read_volume([dataset / record.path for record in images])
    masks = []
    for record in labels:
        read = read_contours if record.sop_class == RTSTRUCT else read_segmentation
        try:
            masks.append(read(dataset / record.path, volume.stack, volume.frame_of_reference, task.classes))
        except LabelError as err:
            raise PixelError(str(err)) from err
    unlike = max((int((mask != masks[0]).sum()) for mask in masks), default=0)
    if unlike:
        raise PixelError(
            f"the {len(masks)} label objects of study {images[0].study_uid} disagree on {unlike} voxels;"
            " keep the one to learn from"
        )
    return volume, masks[0]


def _wanted(dataset: Path, task: TaskSpec, images: list[InstanceRecord], labels: list[InstanceRecord]) -> list[Wanted]:
    """One cache row a slice; the volume is prepared once and handed out slice by slice."""
    digest = source_digest([*images, *labels])
    frames = sum(record.frames for record in images)
    volume = _Once(partial(_prepare_study, dataset, task, images, labels))
    study = images[0].study_uid
    return [Wanted(f"{k} {study}", digest, partial(volume.slice, k, frames)) for k in range(frames)]


def _prepare_study(
    dataset: Path, task: TaskSpec, images: list[InstanceRecord], labels: list[InstanceRecord]
) -> np.ndarray:
    volume, mask = labelled_volume(dataset, task, images, labels)
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
    filled: Filled,
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
        marks: dict[str, list[int]] = {}
        for i in mine:
            marks.setdefault(owners[i][1].study.study_uid, []).append(int(filled.marks[i]))
        uids = sorted(marks, key=lambda uid: sorted(marks[uid]))
        number = {uid: n for n, uid in enumerate(uids)}
        mine.sort(key=lambda i: number[owners[i][1].study.study_uid])
        groups = np.array([number[owners[i][1].study.study_uid] for i in mine], np.int64)
        samples[partition] = Slices(filled.images, np.zeros(0, np.int64), filled.rows[mine].astype(np.int64), groups)
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


def cases_of(
    model: nn.Module, samples: Samples, device: torch.device | str = "cpu"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(truth, said) class indices [slices, size, size] of each volume, one volume in memory at a time."""
    groups = samples.groups if samples.groups is not None else np.zeros(len(samples), np.int64)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        mine = Slices(samples.images, samples.labels, rows if samples.rows is None else samples.rows[rows])
        truth = np.concatenate([masks.numpy().astype(np.uint8) for _, masks in mine.batches(64)])
        yield truth, predict_slices(model, mine, device)
