"""The 3D segmentation task: volumes with masks in the volume cache, patches to train on, a sliding window to infer with.

Volumes are ordered superior, posterior, left whatever plane they were acquired in, z-scored, and brought to the task's
spacing. Inference blends windows by a Gaussian (MONAI's sliding_window_inference) and lays the result back on the
scanner's own planes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dicom_node.records import PARTITIONS, CohortEntry, InstanceRecord
from trainer.cohort import Loaded, entries_of
from trainer.errors import CohortError, LabelError
from trainer.geometry import from_canonical, to_canonical
from trainer.harmonise.landmarks import harmonised
from trainer.local.data import Samples
from trainer.local.patches import Patches
from trainer.pixels.cache import Wanted
from trainer.pixels.prepare import Preparation
from trainer.pixels.volume_cache import StoredVolume, VolumeCache
from trainer.segmentation import case_facts, labelled_volume, series_with_labels, source_digest
from trainer.spec import JobSpec, Source, TaskSpec
from trainer.volumes import Volume

_WINDOWS = 4  # patches through the network at once


def prepare_whole(volume: Volume, task: TaskSpec, mask: np.ndarray | None = None) -> np.ndarray:
    """float32 [1 or 2, D, H, W]: the z-scored image and, when given, the class index of each voxel."""
    values, moved = to_canonical(volume.values, volume.stack.affine, whole=True)
    if scale := task.harmonise:
        values = harmonised(values, scale.at, scale.above_mean)
    values = (values - values.mean()) / max(float(values.std()), 1e-6)
    shape = _resampled(values.shape, moved, task)
    image = _resize(torch.from_numpy(values)[None], shape, "trilinear")
    if mask is None:
        return np.asarray(image.numpy())
    placed = to_canonical(mask, volume.stack.affine, whole=True)[0].astype(np.float32)
    return np.asarray(torch.cat([image, _resize(torch.from_numpy(placed)[None], shape, "nearest-exact")]).numpy())


def _resampled(shape: tuple[int, ...], affine: np.ndarray, task: TaskSpec) -> tuple[int, ...]:
    """Voxels along each axis at the task's spacing."""
    if task.spacing is None:
        return shape
    step = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(max(1, round(count * mm / task.spacing)) for count, mm in zip(shape, step, strict=True))


def _resize(volume: torch.Tensor, shape: tuple[int, ...], mode: str) -> torch.Tensor:
    """[C, D, H, W] to another shape of the same field of view."""
    if tuple(volume.shape[1:]) == tuple(shape):
        return volume
    corners = False if mode == "trilinear" else None
    return functional.interpolate(volume[None], shape, mode=mode, align_corners=corners)[0]


@torch.no_grad()
def slide(model: nn.Module, volume: torch.Tensor, task: TaskSpec, device: torch.device | str) -> torch.Tensor:
    """Class probabilities [classes, D, H, W] of one prepared volume [C, D, H, W], with the network in evaluation mode."""
    from monai.inferers import sliding_window_inference

    low = float(volume.min())
    logits = sliding_window_inference(
        volume[None].float(), task.patch, _WINDOWS, model, overlap=0.5, mode="gaussian", cval=low,
        sw_device=device, device="cpu",
    )  # fmt: skip
    assert isinstance(logits, torch.Tensor)
    return torch.softmax(logits[0], 0)


def predict_volume(model: nn.Module, volume: Volume, task: TaskSpec, device: torch.device | str = "cpu") -> np.ndarray:
    """Class probabilities on the volume's own grid and slice order: float32 [classes, slices, H, W]."""
    model.to(device).eval()
    probabilities = slide(model, torch.from_numpy(prepare_whole(volume, task)), task, device)
    affine = volume.stack.affine
    native = to_canonical(volume.values, affine, whole=True)[0].shape
    return from_canonical(_resize(probabilities, native, "trilinear").numpy(), affine, whole=True)


def load_source(spec: JobSpec, source: Source, threads: int, progress: Callable[[int, int], None] | None) -> Loaded:
    """Volumes by partition from one de-identified side; a study whose labels cannot be trusted is set aside by its UID."""
    task = spec.task
    preparation = Preparation.of(task, f"volumes{task.classes}{task.spacing}")
    cache = VolumeCache(spec.cache, preparation.digest)
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
            make = partial(_prepare_study, source.dataset, task, images, labels)
            wanted.append(Wanted(entry.study.study_uid, source_digest([*images, *labels]), make))
            owners.append((partition, entry))
    stored, spoiled = cache.fill(wanted, threads, progress)
    set_aside |= spoiled
    if set_aside:
        failures = failures | {"label or image cannot be used": len(set_aside)}
    return _collect(spec, source.dataset, stored, owners, failures, set_aside)


def _prepare_study(
    dataset: Path, task: TaskSpec, images: list[InstanceRecord], labels: list[InstanceRecord]
) -> np.ndarray:
    volume, mask = labelled_volume(dataset, task, images, labels)
    return prepare_whole(volume, task, mask)


def _collect(
    spec: JobSpec,
    dataset: Path,
    stored: list[StoredVolume | None],
    owners: list[tuple[str, CohortEntry]],
    failures: dict[str, int],
    set_aside: dict[str, str],
) -> Loaded:
    samples: dict[str, Samples] = {}
    studies: dict[str, list[str]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for partition in PARTITIONS:
        mine = [(one, entry) for one, (at, entry) in zip(stored, owners, strict=True) if one and at == partition]
        mine.sort(key=lambda pair: pair[0].mark)
        samples[partition] = Patches.of([one for one, _ in mine], spec.task.patch, spec.task.patches)
        studies[partition] = [entry.study.study_uid for _, entry in mine]
        told = partition == spec.evaluate_on
        facts[partition] = [case_facts(dataset, spec.task, entry) if told else {} for _, entry in mine]
    return Loaded(samples, studies, facts, failures, set_aside, facts)


def cases_of(
    model: nn.Module, samples: Patches, task: TaskSpec, device: torch.device | str = "cpu"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(truth, said) class indices [D, H, W] of each volume, one volume in memory at a time. Errors: CohortError."""
    if not samples.volumes:
        raise CohortError("there is no labelled volume to evaluate on; label more studies or widen the cohort")
    model.to(device).eval()
    for stored in samples.volumes:
        data = np.array(stored.open())
        said = slide(model, torch.from_numpy(data[:-1]), task, device).argmax(0)
        yield data[-1].astype(np.uint8), said.to(torch.uint8).numpy()
