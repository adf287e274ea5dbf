"""What a trainer process is asked to do: JobSpec, read from a JSON file.

A spec is made by the node from an approved project; nothing in it is code, and unknown keys are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainer.errors import SpecError

LANDMARKS = 11  # len(trainer.harmonise.landmarks.PERCENTILES), without numpy


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Strict):
    """An installed network's name and its arguments (see trainer.networks)."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)


class LandmarkScale(_Strict):
    """Where histogram landmarks go (trainer.harmonise): the same scale at every hospital and in every prediction.

    at: 11 ascending numbers for the 1st, 10th, 20th … 90th and 99th percentile. above_mean: percentiles of the values above an
    image's mean, which leaves air out, in place of all its values.
    """

    at: tuple[float, ...]
    above_mean: bool = False

    @field_validator("at")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(math.isfinite(number) for number in value) and list(value) == sorted(set(value))
        if len(value) != LANDMARKS or not rising:
            raise ValueError(f"must be {LANDMARKS} numbers, each above the one before")
        return value


class TaskSpec(_Strict):
    """What is learned, and on which grid.

    classification: `classes` in index order, read from the study label `label`; images are padded to a square and resized
    to size × size. segmentation: classes[0] is the background, the others are found in DICOM Segmentations by segment label
    or code; slices are brought to `spacing` mm and cropped or padded to size × size, or resized when spacing is not given.
    With dimensions 3 whole volumes are brought to `spacing` mm (or kept) and learned from in `patches` patches of `patch`
    voxels (towards superior, posterior, left) a volume and epoch; inference slides that window over the volume.
    With multilabel a study's label names any number of the classes, joined by ";", or "none".
    With slices > 1 a classification sample is a whole series: that many planes, evenly spread over it, as channels (2.5D).
    With harmonise each image (2.5D, segmentation: the series as a whole) has its histogram landmarks moved before it is z-scored.
    """

    name: Literal["classification", "segmentation"] = "classification"
    classes: list[str] = Field(min_length=2)
    label: str = ""
    size: int = Field(default=64, ge=8, le=1024)
    spacing: float | None = Field(default=None, gt=0, le=100)
    dimensions: Literal[2, 3] = 2
    patch: tuple[int, int, int] = (32, 32, 32)
    patches: int = Field(default=4, ge=1, le=1024)
    slices: int = Field(default=1, ge=1, le=64)
    multilabel: bool = False
    harmonise: LandmarkScale | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> TaskSpec:
        if self.dimensions == 3 and self.name != "segmentation":
            raise ValueError("dimensions 3 is for segmentation; use slices for a classification of series")
        if self.slices > 1 and self.name != "classification":
            raise ValueError("slices is for classification; use dimensions 3 for a segmentation of volumes")
        if self.multilabel and (self.name != "classification" or any(";" in c or c == "none" for c in self.classes)):
            raise ValueError('multilabel is for classification, and no class may be "none" or hold a semicolon')
        if min(self.patch) < 4 or max(self.patch) > 512:
            raise ValueError("patch needs between 4 and 512 voxels along each axis")
        return self

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("classes must be distinct")
        return value


Range = tuple[float, float]


class StudyContract(_Strict):
    """What every study must fulfil. A key that is left out asks for nothing; a range is [least, most], both allowed.

    min_slices: images or frames of each image series. spacing_mm: distance of pixels in plane, both ways. slice_mm: distance
    between slices. intensity: in modality units (HU, SUV, or what the scanner gives), between which the 1st and the 99th
    percentile of every image lie.
    """

    min_slices: int = Field(default=1, ge=1, le=100_000)
    spacing_mm: Range | None = None
    slice_mm: Range | None = None
    intensity: Range | None = None

    @field_validator("spacing_mm", "slice_mm", "intensity")
    @classmethod
    def _ordered(cls, value: Range | None, info: Any) -> Range | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("must be [least, most], the least below the most")
        if value is not None and info.field_name != "intensity" and value[0] < 0:
            raise ValueError("must be lengths in mm of 0 or more")
        return value

    @property
    def asks(self) -> bool:
        """Whether any study needs to be measured for it."""
        return self.min_slices > 1 or any((self.spacing_mm, self.slice_mm, self.intensity))


def lr_at_round(lr: float, number: int, rounds: int) -> float:
    """The learning rate of round `number` (from 0): a half cosine from lr down to lr / 20 over the rounds."""
    share = 0.5 * (1 + math.cos(math.pi * number / max(rounds - 1, 1)))
    return lr * (0.05 + 0.95 * share)


class LocalSpec(_Strict):
    """One site's training between two exchanges. `steps`, when set, bounds the optimiser steps instead of `epochs`.

    A batch goes through the network in `accumulate` parts, whose gradients add up to the whole batch's.

    schedule: "constant" within one exchange (the coordinator lowers lr from round to round by `lr_at_round`), or "cosine",
    the same half cosine over the epochs of one long training (centralised or local-only comparison in a single job).

    precision "mixed" computes in float16 on CUDA and bfloat16 on a CPU, with float32 weights; noisy and split training know
    float32 only.
    """

    epochs: int = Field(default=1, ge=1, le=1000)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=2, le=4096)
    accumulate: int = Field(default=1, ge=1, le=256)
    lr: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=1e-4, ge=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = "constant"
    augment: Literal["none", "light", "style"] = "light"
    class_weighted: bool = True
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    algorithm: Literal["fedavg", "fedprox", "scaffold", "fedbn"] = "fedavg"
    mu: float = Field(default=0.01, ge=0)
    precision: Literal["float32", "mixed"] = "float32"

    @field_validator("augment", mode="before")
    @classmethod
    def _bool(cls, value: Any) -> Any:
        return {True: "light", False: "none"}.get(value, value) if isinstance(value, bool) else value


class PrivateSteps(_Strict):
    """Local training with differential privacy: `steps` noisy steps, each unit in a step with probability `rate`.

    unit: "record" (no patient may have two) or "patient", whose records are clipped together. per_unit: the most records of a
    unit in a step. expected_units: what each noisy sum is divided by. Set by the node, which records the spending first.
    """

    unit: Literal["record", "patient"]
    noise_multiplier: float = Field(gt=0, le=1e6)
    clip: float = Field(gt=0, le=1e6)
    rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    expected_units: float = Field(gt=0)
    per_unit: int = Field(default=8, ge=1, le=1024)


class Source(_Strict):
    """One de-identified side: its catalogue and its dataset folder."""

    catalogue: Path
    dataset: Path


class JobSpec(_Strict):
    """One run of `python -m trainer.job`.

    kind: "train" fits on the train patients and evaluates on `evaluate_on`; "evaluate" only evaluates; "scores" also
    writes the class probabilities. `pooled` names further de-identified sides to pool with this one (a centralised
    comparison on one machine; a hospital's node never sets it). With `evaluate_first` a "train" job evaluates the weights
    it was given instead of those it made (in a federation, the global model of the round before).

    `initial_seed`: the weights given must be the network's initial ones of this seed, or the job ends.

    `state_in` is what the site keeps between rounds, the `state.safetensors` of its last job: SCAFFOLD's control variates
    (with the coordinator's as "global.*"), or FedBN's norm layers, which then replace those of `weights_in`.

    With `processes` above 1 a training runs in as many through torchrun, on a GPU each or on the CPU (trainer.launch).
    """

    kind: Literal["train", "evaluate", "scores"] = "train"
    catalogue: Path
    dataset: Path
    cache: Path
    pooled: list[Source] = Field(default_factory=list)
    network: NetworkSpec
    task: TaskSpec
    cohort: dict[str, Any] = Field(default_factory=dict)
    contract: StudyContract = Field(default_factory=StudyContract)
    split_salt: str = ""
    evaluate_on: Literal["train", "validation", "test"] = "validation"
    evaluate_first: bool = False
    local: LocalSpec = Field(default_factory=LocalSpec)
    private: PrivateSteps | None = None
    seed: int = 0
    weights_in: Path | None = None
    initial_seed: int | None = None
    state_in: Path | None = None
    reestimate_norm: bool = False
    out: Path
    device: str = "auto"
    threads: int = Field(default=0, ge=0, le=256)
    processes: int = Field(default=1, ge=1, le=64)
    checkpoint_seconds: float = Field(default=30.0, ge=0)

    @model_validator(mode="after")
    def _noise_is_alone(self) -> JobSpec:
        if self.private is not None and (self.processes > 1 or self.local.precision != "float32"):
            raise ValueError("training with differential privacy takes one process and float32")
        return self


def load_spec(path: Path) -> JobSpec:
    """Read a JobSpec from a JSON file. Errors: SpecError names the file and the first wrong key."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return JobSpec.model_validate(raw)
    except OSError as err:
        raise SpecError(
            f"cannot read the job specification {path.name} ({err.strerror}); give an existing file"
        ) from err
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"job specification {path.name}: {key or 'document'} is wrong ({first['msg']}); mend that key"
        ) from err
    except (ValueError, RecursionError) as err:
        raise SpecError(f"job specification {path.name} is not JSON; write it again") from err
