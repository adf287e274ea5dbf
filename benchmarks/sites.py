"""Simulated hospitals over real chest X-rays and MR: label skew by Dirichlet over patients, and each site's scanner
look.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from trainer.local.data import Samples, Slices

CLASSES = ["normal", "bacterial", "viral"]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Style:
    """A scanner's look on 8-bit pixels: gamma, then Gaussian blur (pixels of the 128² image), then contrast and
    noise.
    """

    gamma: float = 1.0
    blur: float = 0.0
    contrast: float = 1.0
    noise: float = 0.0

    def apply(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """uint8 [H, W] → uint8 [H, W]."""
        unit = (pixels / 255.0) ** self.gamma
        image = Image.fromarray(np.uint8(np.round(unit * 255)))
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur))
        unit = (np.asarray(image) / 255.0 - 0.5) * self.contrast + 0.5
        unit = unit + random.normal(0.0, self.noise, unit.shape) if self.noise else unit
        return np.uint8(np.round(np.clip(unit, 0, 1) * 255))


STYLES = [
    Style(),
    Style(gamma=0.6, blur=0.8),
    Style(gamma=1.6, contrast=0.8, noise=0.03),
    Style(gamma=0.8, contrast=1.3, noise=0.05),
]


@dataclass(frozen=True)
class Patients:
    """One row an image: pixels uint8 [N, 128, 128], class index [N], patient number [N]."""

    pixels: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


def load(folder: Path = DATA / "cxr-pneumonia") -> Patients:
    """Read the PNGs named by the manifest."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["patient_id"] for row in rows})
    number = {name: i for i, name in enumerate(names)}
    pixels = np.stack([np.asarray(Image.open(folder / row["file"]).convert("L")) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    return Patients(pixels, labels, np.array([number[row["patient_id"]] for row in rows]))


def split(data: Patients, seed: int, shares: tuple[float, float] = (0.65, 0.15)) -> tuple[np.ndarray, ...]:
    """Rows of train, validation and test: whole patients, each class in its share."""
    random = np.random.default_rng([seed, 1])
    parts: list[list[int]] = [[], [], []]
    first = {p: int(data.labels[data.patients == p][0]) for p in np.unique(data.patients)}
    for k in range(len(CLASSES)):
        mine = random.permutation([p for p, label in first.items() if label == k])
        a, b = round(len(mine) * shares[0]), round(len(mine) * sum(shares))
        for part, chosen in zip(parts, (mine[:a], mine[a:b], mine[b:]), strict=True):
            part.extend(chosen.tolist())
    return tuple(np.flatnonzero(np.isin(data.patients, part)) for part in parts)


def dirichlet(
    data: Patients, rows: np.ndarray, sites: int, alpha: float, seed: int, least: int = 30
) -> list[np.ndarray]:
    """Deal rows to sites by patient: each class's patients by a Dirichlet(alpha) share (Hsu et al. 2019)."""
    random = np.random.default_rng([seed, 2])
    while True:
        parts: list[list[int]] = [[] for _ in range(sites)]
        for k in range(len(CLASSES)):
            mine = random.permutation(np.unique(data.patients[rows[data.labels[rows] == k]]))
            cuts = (np.cumsum(random.dirichlet([alpha] * sites))[:-1] * len(mine)).astype(int)
            for part, chosen in zip(parts, np.split(mine, cuts), strict=True):
                part.extend(chosen.tolist())
        dealt = [rows[np.isin(data.patients[rows], part)] for part in parts]
        if min(len(part) for part in dealt) >= least:
            return dealt


def evenly(data: Patients, rows: np.ndarray, sites: int, seed: int) -> list[np.ndarray]:
    """Deal rows to sites by patient, every class alike (held-out patients)."""
    random = np.random.default_rng([seed, 3])
    parts: list[list[int]] = [[] for _ in range(sites)]
    for k in range(len(CLASSES)):
        mine = random.permutation(np.unique(data.patients[rows[data.labels[rows] == k]]))
        for i, part in enumerate(np.array_split(mine, sites)):
            parts[(i + k) % sites].extend(part.tolist())
    return [rows[np.isin(data.patients[rows], part)] for part in parts]


def prepare(data: Patients, rows: np.ndarray, style: Style, size: int, seed: int) -> Samples:
    """Style, resize to size², z-score each image: the same preparation the trainer does after decoding."""
    from trainer.pixels.prepare import Preparation, prepare_frame

    random = np.random.default_rng([seed, 4])
    preparation = Preparation(size=size)
    images = [prepare_frame(style.apply(data.pixels[row], random).astype(np.float32), preparation) for row in rows]
    return Samples(np.stack(images).astype(np.float16), data.labels[rows])


def hippocampus(seed: int, size: int, folder: Path = DATA / "mr-hippocampus") -> list[tuple[Samples, Samples, Samples]]:
    """Four hospitals with 40, 30, 20 and 10 % of the training volumes and a scanner look each: (train, validation, test)."""
    random = np.random.default_rng([seed, 5])
    files = random.permutation(sorted((folder / "volumes").glob("*.npz")))
    held = len(files) // 5
    parts = {"test": files[:held], "validation": files[held : held + held // 2], "train": files[held + held // 2 :]}
    cuts = (np.cumsum([0.4, 0.3, 0.2])[:3] * len(parts["train"])).astype(int)
    dealt = {"train": np.split(parts["train"], cuts)}
    dealt |= {name: np.array_split(parts[name], 4) for name in ("validation", "test")}
    return [
        tuple(_slices(dealt[name][i], STYLES[i], size, random) for name in ("train", "validation", "test"))
        for i in range(4)
    ]


def _slices(files: Sequence[Path], style: Style, size: int, random: np.random.Generator) -> Slices:
    """Volumes as z-scored slices with their masks at 1 mm, cropped or padded to size × size."""
    import torch

    from trainer.pixels.grid import Grid

    grid = Grid(size, 1.0)
    images, groups = [], []
    for number, file in enumerate(files):
        with np.load(file) as volume:
            values = np.stack([style.apply(plane, random) for plane in volume["image"]]).astype(np.float32)
            label = volume["label"].astype(np.float32)
        values = (values - values.mean()) / values.std()
        both = [
            grid.fit(torch.from_numpy(values)[:, None], (1.0, 1.0), "bilinear", float(values.min())),
            grid.fit(torch.from_numpy(label)[:, None], (1.0, 1.0), "nearest-exact", 0.0),
        ]
        images.append(torch.cat(both, 1).numpy().astype(np.float16))
        groups.append(np.full(len(values), number))
    joined = np.concatenate(images)
    return Slices(joined, np.zeros(0, np.int64), np.arange(len(joined)), np.concatenate(groups))


def retina(seed: int, size: int, folder: Path = DATA / "retina-vessel") -> list[tuple[Samples, Samples, Samples]]:
    """Three natural sites with a camera each (DRIVE, CHASE, HRF): (train, validation, test), whole patients.

    A site's patients fall 60 / 15 / 25 per cent; each image is z-scored and resized to size × size.
    """
    random = np.random.default_rng([seed, 6])
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = []
    for site in ("drive", "chase", "hrf"):
        mine = [row for row in rows if row["site"] == site]
        people = random.permutation(sorted({row["patient_id"] for row in mine}))
        held, judged = max(1, round(0.25 * len(people))), max(1, round(0.15 * len(people)))
        cuts = np.split(people, [held, held + judged])
        test, validation, train = ([row for row in mine if row["patient_id"] in set(cut)] for cut in cuts)
        parts.append(tuple(_photographs(folder, part, size) for part in (train, validation, test)))
    return parts


def _photographs(folder: Path, rows: Sequence[dict[str, str]], size: int) -> Slices:
    """Images with their vessel masks: [N, 2, size, size]."""
    planes = []
    for row in rows:
        image = Image.open(folder / row["image"]).convert("L").resize((size, size), Image.Resampling.BILINEAR)
        mask = Image.open(folder / row["mask"]).convert("1").resize((size, size), Image.Resampling.NEAREST)
        values = np.asarray(image, np.float32)
        planes.append(
            np.stack([(values - values.mean()) / max(float(values.std()), 1e-6), np.asarray(mask, np.float32)])
        )
    count = len(planes)
    return Slices(np.stack(planes).astype(np.float16), np.zeros(0, np.int64), np.arange(count), np.arange(count))


def chest(
    seed: int, size: int, alpha: float | None = 0.3, styled: bool = True, count: int = 4
) -> list[tuple[Samples, ...]]:
    """Hospitals with chest X-rays: (train, validation, test). `alpha` None deals training patients evenly (IID)."""
    patients = load()
    train, validation, test = split(patients, seed)
    least = 30 if alpha is None or alpha >= 0.3 else 15
    dealt = zip(
        evenly(patients, train, count, seed)
        if alpha is None
        else dirichlet(patients, train, count, alpha, seed, least),
        evenly(patients, validation, count, seed),
        evenly(patients, test, count, seed),
        [STYLES[i % len(STYLES)] if styled else Style() for i in range(count)],
        strict=True,
    )
    return [tuple(prepare(patients, rows, style, size, seed) for rows in (a, b, c)) for a, b, c, style in dealt]
