"""Header de-identification with verification against plain copying and other tools, in turn, on the same CT files.

Every contender reads each file, de-identifies it and writes the result, in one process; rounds are interleaved and the
best of each is taken, so that all see the same machine. The ratios are ours over theirs in files a second of processor time
(all of them are bound by it, and other people's work on the machine does not count); `wall` has the same by the clock. Peers
that are not installed are named as missing (`pip install -c constraints.txt -e '.[bench]'`).

    python benchmarks/deid.py [--files 200] [--rounds 3] [--workers 2] [--json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anonymizer import load_profile
from anonymizer.batch import Job, Line, Worker, plan_outputs, run

Contender = Callable[[Path, Path], None]


def make_files(folder: Path, count: int) -> list[Path]:
    """512×512 CT slices of one chest with a clinical header and no private attributes: nothing but the header is at stake."""
    base = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    base.remove_private_tags()
    base.BodyPartExamined, base.Rows, base.Columns = "CHEST", 512, 512
    base.PixelData = np.random.default_rng(0).integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
    paths = []
    for index in range(count):
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.9.7777.{index}"
        base.InstanceNumber, base.SliceLocation = index, str(index * 1.5)
        path = folder / f"{index:04d}.dcm"
        base.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def pydicom_read_write(source: Path, target: Path) -> None:
    pydicom.dcmread(source).save_as(target)


def ours() -> Contender:
    worker = Worker(Job(load_profile("federated-default"), bytes(range(32))))

    def contender(source: Path, target: Path) -> None:
        line = worker.line(source, target)
        assert line.status == "ok", line.reason
        line.json()

    return contender


def dcmanon() -> Contender:
    from dcmanon import Anonymizer  # type: ignore[import-not-found]

    anonymizer = Anonymizer()
    return lambda source, target: target.write_bytes(anonymizer.anonymize(str(source))) and None


def dicognito() -> Contender:
    from dicognito.anonymizer import Anonymizer  # type: ignore[import-not-found]

    anonymizer = Anonymizer(seed="benchmark")

    def contender(source: Path, target: Path) -> None:
        ds = pydicom.dcmread(source)
        anonymizer.anonymize(ds)
        ds.save_as(target)

    return contender


def dicom_anonymizer() -> Contender:
    from dicomanonymizer import anonymize_dataset  # type: ignore[import-not-found]

    def contender(source: Path, target: Path) -> None:
        ds = pydicom.dcmread(source)
        anonymize_dataset(ds)
        ds.save_as(target)

    return contender


PEERS = {"dcmanon": dcmanon, "dicognito": dicognito, "dicom-anonymizer": dicom_anonymizer}
PYDICOM_BASED = ("dicognito", "dicom-anonymizer")


def rate(contender: Contender, files: list[Path], out: Path) -> tuple[float, float]:
    """Files a second of processor time, and by the clock."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    started, used = time.perf_counter(), time.process_time()
    for path in files:
        contender(path, out / path.name)
    used, taken = time.process_time() - used, time.perf_counter() - started
    return len(files) / used, len(files) / taken


def parallel(files: list[Path], out: Path, workers: int) -> float:
    """Files a second of the batch runner with several processes, their start not counted out."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    lines: list[Line] = []
    started = time.perf_counter()
    run(Job(load_profile("federated-default"), bytes(range(32))), plan_outputs(files, out), workers, lines.append)
    assert all(line.status == "ok" for line in lines)
    return len(files) / (time.perf_counter() - started)


def measure(files: list[Path], out: Path, rounds: int, workers: int) -> dict[str, Any]:
    contenders: dict[str, Contender] = {"copy": copy, "fedpacs": ours(), "pydicom read+write": pydicom_read_write}
    missing = []
    for name, make in PEERS.items():
        try:
            contenders[name] = make()
        except ImportError:
            missing.append(name)
    best = dict.fromkeys(contenders, (0.0, 0.0))
    several: dict[int, float] = dict.fromkeys((1, workers), 0.0)
    for _ in range(rounds):
        for name, contender in contenders.items():
            one = rate(contender, files, out)
            best[name] = (max(best[name][0], one[0]), max(best[name][1], one[1]))
        for number in several:
            several[number] = max(several[number], parallel(files, out, number))
    processor, clock = ({name: pair[i] for name, pair in best.items()} for i in (0, 1))
    return {
        **ratios(processor),
        "wall": ratios(clock),
        "ratio_workers": round(several[workers] / several[1], 2),
        "workers": workers,
        "files_per_second": {name: round(value, 1) for name, value in processor.items()},
        "files_per_second_wall": {name: round(value, 1) for name, value in clock.items()},
        "files_per_second_workers": {str(number): round(value, 1) for number, value in several.items()},
        "missing": missing,
    }


def ratios(rates: dict[str, float]) -> dict[str, float | None]:
    ours, peers = rates["fedpacs"], [rates[name] for name in PYDICOM_BASED if name in rates]
    return {
        "ratio_copy": round(ours / rates["copy"], 3),
        "ratio_dcmanon": round(ours / rates["dcmanon"], 2) if "dcmanon" in rates else None,
        "ratio_best_pydicom": round(ours / max(peers), 2) if peers else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where to write; a memory file system shows the tools, not the disk"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        source = Path(scratch) / "in"
        source.mkdir()
        result = measure(make_files(source, args.files), Path(scratch) / "out", args.rounds, args.workers)
    result |= {
        "files": args.files,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": sys.version.split()[0],
    }
    result["versions"] = {name: _version(name) for name in ("pydicom", *PEERS)}
    if args.json:
        print(json.dumps(result))
        return 0
    out = io.StringIO()
    for name, value in result["files_per_second"].items():
        out.write(
            f"{name:20} {value:8.1f} files/s   ours/theirs {result['files_per_second']['fedpacs'] / value:6.2f}\n"
        )
    out.write(f"with {args.workers} processes: {result['ratio_workers']} times one process of the same runner\n")
    out.write(f"not installed: {result['missing'] or 'none'}\n")
    print(out.getvalue(), end="")
    return 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
