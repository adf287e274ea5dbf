"""How long writing a DICOM Segmentation of 100 CT slices of 512 × 512 takes, by type, and whether its pixels come back.

Two organs (ellipsoids with soft edges) in synthetic CT headers; probabilities in, one file out, as `fedpacs model predict`
writes it. highdicom reads each file back and its pixels are compared. The floor is writing and syncing the same bytes alone.

    python benchmarks/segmentation.py --json [--slices 100] [--size 512] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.data import get_testdata_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.geometry import Stack
from trainer.outputs.segmentation import TYPES, Algorithm, write_segmentation
from trainer.volumes import read_volume

CLASSES = ["background", "liver", "spleen"]
ALGORITHM = Algorithm("benchmark", "1", "ab" * 32)


def make_series(folder: Path, slices: int, size: int) -> list[Path]:
    """CT slices 2 mm apart, of one series."""
    base = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    base.remove_private_tags()
    base.Rows = base.Columns = size
    base.PixelSpacing, base.SliceThickness = [0.8, 0.8], 2
    base.PixelData = bytes(2 * size * size)
    paths = []
    for index in range(slices):
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.9.7778.{index + 1}"
        base.InstanceNumber, base.ImagePositionPatient = index + 1, [0, 0, 2.0 * index]
        paths.append(folder / f"{index:04d}.dcm")
        base.save_as(paths[-1], enforce_file_format=True)
    return paths


def make_probabilities(slices: int, size: int) -> np.ndarray:
    """float32 [3, slices, size, size]: background, and two ellipsoids that fill about a tenth of the volume."""
    z, y, x = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in (slices, size, size)), indexing="ij", sparse=True
    )
    out = np.empty((3, slices, size, size), np.float32)
    for number, (middle, radius) in enumerate([(-0.35, 0.5), (0.5, 0.3)], 1):
        distance = ((x - middle) / radius) ** 2 + (y / 0.6) ** 2 + (z / 0.8) ** 2
        out[number] = np.clip(0.5 + 4 * (1 - distance), 0, 1)
    out[1:] /= np.maximum(out[1:].sum(0), 1)
    out[0] = 1 - out[1:].sum(0)
    return out


def same_pixels(path: Path, where: Stack, probabilities: np.ndarray, kind: str) -> bool:
    """Whether highdicom reads back what went in (FRACTIONAL to half a step of 8 bits)."""
    uids = [plane.sop_uid for plane in where.planes]
    seg = hd.seg.segread(path)
    found = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, rescale_fractional=True)
    if kind == "fractional":
        return float(np.abs(found - np.moveaxis(probabilities[1:], 0, -1)).max()) < 0.003
    chosen = probabilities.argmax(0)
    return all(np.array_equal(found[..., number - 1] > 0, chosen == number) for number in range(1, len(CLASSES)))


def plain_write(path: Path, data: bytes) -> float:
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def measure(slices: int, size: int, repeat: int) -> dict[str, Any]:
    """For each type the median of `repeat` runs in turn."""
    probabilities = make_probabilities(slices, size)
    seconds, processor = ({kind: list[float]() for kind in TYPES} for _ in range(2))
    out: dict[str, Any] = {
        "slices": slices,
        "size": size,
        "foreground": round(float((probabilities[0] < 0.5).mean()), 3),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_series(folder, slices, size)
        where = read_volume(files).stack
        for run in range(repeat):
            for kind in TYPES:
                sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
                started, used = time.perf_counter(), time.process_time()
                path = write_segmentation(folder / str(run), sources, where, probabilities, CLASSES, ALGORITHM, kind)
                seconds[kind].append(time.perf_counter() - started)
                processor[kind].append(time.process_time() - used)
                if run == 0:
                    data = path.read_bytes()
                    out[f"bytes_{kind}"] = len(data)
                    out[f"same_pixels_{kind}"] = same_pixels(path, where, probabilities, kind)
                    out[f"seconds_plain_write_{kind}"] = round(plain_write(folder / "plain", data), 4)
    for words, found in (("seconds", seconds), ("processor_seconds", processor)):
        out |= {f"{words}_{kind}": round(statistics.median(runs), 3) for kind, runs in found.items()}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    facts = {"machine": platform.machine(), "python": platform.python_version(), "highdicom": hd.__version__}
    result = measure(given.slices, given.size, given.repeat) | facts | {"load": round(os.getloadavg()[0], 1)}
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))
    wrong = [kind for kind in TYPES if not result[f"same_pixels_{kind}"]]
    if wrong:
        print(f"segmentation: {', '.join(wrong)} did not come back as written", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
