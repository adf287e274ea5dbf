"""From DICOM files to training tensors: our way against pydicom, MONAI LoadImage, MONAI PersistentDataset and RAM.

Makes a cohort of 512 × 512 16-bit CT-like files in a temporary folder, then measures on the same files, in turn, one thread:
the first epoch (decode and prepare to 128²) and later epochs (batches of 32 float32 tensors). Rates are images/s.

    python benchmarks/loading.py --json [--images N]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.local.data import Samples
from trainer.pixels.cache import TensorCache, Wanted
from trainer.pixels.header import scan
from trainer.pixels.prepare import Preparation, prepare_frame
from trainer.pixels.read import read_frames

SIZE = 128
PREPARATION = Preparation(size=SIZE)


def make_files(folder: Path, count: int) -> list[Path]:
    """CT-like images with a realistic header of about a hundred elements."""
    random = np.random.default_rng(0)
    grid = np.hypot(*np.meshgrid(np.linspace(-1, 1, 512), np.linspace(-1, 1, 512)))
    paths = []
    for n in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2.3", "1.2.3.4", "CT"
        for number in range(60):
            ds.add_new(0x00180000 + 0x1000 + number * 2, "LO", f"value {number}")
        ds.Rows = ds.Columns = 512
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelSpacing, ds.ImagePositionPatient = [0.7, 0.7], [0, 0, n]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        pixels = (1000 * (grid < 0.8) + random.integers(0, 200, grid.shape)).astype("<i2")
        ds.PixelData = pixels.tobytes()
        path = folder / f"{n:05}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def offsets(paths: list[Path]) -> list[int]:
    """What the catalogue remembers of each file."""
    found = [scan(path.read_bytes()) for path in paths]
    return [header.offset if header else 0 for header in found]


def decode_pydicom(path: Path) -> np.ndarray:
    """The plain loop: dcmread, pixel_array, rescale."""
    ds = pydicom.dcmread(path)
    return ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def decode_monai(loader: Callable[[str], torch.Tensor], path: Path) -> np.ndarray:
    return np.asarray(loader(str(path)))


def rate(work: Callable[[], int], repeat: int = 3) -> float:
    """Items a second, the best of `repeat` runs."""
    best = 0.0
    for _ in range(repeat):
        started = time.perf_counter()
        count = work()
        best = max(best, count / (time.perf_counter() - started))
    return best


def each(paths: list[Path], load: Callable[[Path], np.ndarray], prepare: bool) -> int:
    for path in paths:
        frame = load(path)
        if prepare:
            prepare_frame(frame, PREPARATION)
    return len(paths)


def monai_loader() -> Callable[[str], torch.Tensor] | None:
    """MONAI LoadImage on its PydicomReader (ITK is not installed)."""
    try:
        from monai.transforms import LoadImage

        return LoadImage(reader="PydicomReader", image_only=True)
    except Exception as err:  # noqa: BLE001 - MONAI's optional imports raise many kinds
        print(f"MONAI LoadImage is not usable here: {err}", file=sys.stderr)
        return None


def first_epoch(paths: list[Path]) -> dict[str, float]:
    """Decode alone, and decode and prepare."""
    at = dict(zip(paths, offsets(paths), strict=True))

    def ours(path: Path) -> np.ndarray:
        return read_frames(path, pixel_offset=at[path]).values[0]

    loaders: dict[str, Callable[[Path], np.ndarray]] = {"ours": ours, "pydicom": decode_pydicom}
    if loader := monai_loader():
        loaders["monai"] = partial(decode_monai, loader)
    out: dict[str, float] = {}
    for _ in range(5):  # in turn, so that a busy moment of the machine hits all
        for name, load in loaders.items():
            for what, prepared in (("decode", False), ("prepare", True)):
                found = rate(partial(each, paths, load, prepared), 1)
                out[f"{what}_{name}"] = max(out.get(f"{what}_{name}", 0.0), found)
    return out


def batches(samples: Samples, size: int = 32) -> int:
    order = np.random.default_rng(0).permutation(len(samples))
    for start in range(0, len(order), size):
        samples.batch(order[start : start + size])
    return len(samples)


def later_epochs(paths: list[Path], folder: Path, times: int) -> dict[str, float]:
    """Batches from the memory-mapped cache, from RAM, and MONAI PersistentDataset hits, over `times` × the files."""
    cache = TensorCache(folder / "cache", PREPARATION)
    wanted = [
        Wanted(p.name, "s", partial(lambda p: prepare_frame(read_frames(p).values[0], PREPARATION), p)) for p in paths
    ]
    started = time.perf_counter()
    filled = cache.fill(wanted)
    fill = len(paths) / (time.perf_counter() - started)
    started = time.perf_counter()
    filled = cache.fill(wanted)
    opened = len(paths) / (time.perf_counter() - started)
    rows = np.tile(filled.rows, times)
    labels = np.zeros(len(rows), np.int64)
    mapped = Samples(filled.images, labels, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = {"cache_fill": fill, "cache_open_verified": opened, "cache": rate(partial(batches, mapped), 1)}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    ram32 = Samples(np.asarray(filled.images, np.float32).copy(), labels, rows)
    ram16 = Samples(np.array(filled.images), labels, rows)
    for _ in range(5):
        for name, samples in (("cache", mapped), ("ram_float32", ram32), ("ram_float16", ram16)):
            out[name] = max(out.get(name, 0.0), rate(partial(batches, samples), 1))
    out["cache_grown_mb"] = grown
    out["persistent_dataset"] = persistent(paths, folder)
    return out


def persistent(paths: list[Path], folder: Path) -> float:
    """MONAI PersistentDataset, every item already cached."""
    from monai.data import PersistentDataset
    from monai.transforms import Compose, Lambda

    chain = Compose([Lambda(lambda p: torch.from_numpy(prepare_frame(read_frames(Path(p)).values[0], PREPARATION)))])
    dataset = PersistentDataset([str(p) for p in paths], chain, cache_dir=folder / "monai")

    def run() -> int:
        for start in range(0, len(paths), 32):
            torch.stack([dataset[i] for i in range(start, min(start + 32, len(paths)))])
        return len(paths)

    run()
    return rate(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dicom").mkdir()
        paths = make_files(folder / "dicom", given.images)
        raw = first_epoch(paths) | later_epochs(paths, folder, 10)
    rounded = {key: round(value, 1) for key, value in raw.items()}
    result: dict[str, object] = {
        "ratio_first_epoch_pydicom": round(raw["prepare_ours"] / raw["prepare_pydicom"], 2),
        "ratio_decode_pydicom": round(raw["decode_ours"] / raw["decode_pydicom"], 2),
        "ratio_cache_persistent_dataset": round(raw["cache"] / raw["persistent_dataset"], 2),
        "ratio_cache_ram": round(raw["cache"] / raw["ram_float32"], 2),
        "ratio_cache_ram_float16": round(raw["cache"] / raw["ram_float16"], 2),
        "images_per_second": rounded,
        "images": given.images,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pydicom": pydicom.__version__,
    }
    if "prepare_monai" in raw:
        result["ratio_first_epoch_monai"] = round(raw["prepare_ours"] / raw["prepare_monai"], 2)
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
