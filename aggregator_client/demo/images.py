"""The chest X-rays shipped with the project (CC BY 4.0, see data/ATTRIBUTION.md)."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PACK = Path(__file__).parent / "data" / "chest-xrays.zip"
FINDINGS = ("normal", "bacterial", "viral")


@dataclass(frozen=True)
class XRay:
    """One image of the pack: `name` is its file in the pack, `pixels` is (128, 128) uint8, bright = dense."""

    name: str
    patient: str
    finding: str
    pixels: NDArray[np.uint8]


def load_pack(path: Path = PACK) -> list[XRay]:
    """Every image of the pack, in the order of its manifest; a patient's images stand together."""
    with zipfile.ZipFile(path) as pack:
        manifest = csv.DictReader(io.StringIO(pack.read("manifest.csv").decode("utf-8")))
        return [XRay(row["file"], row["patient"], row["finding"], _decode(pack.read(row["file"]))) for row in manifest]


def _decode(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("L"), dtype=np.uint8)
