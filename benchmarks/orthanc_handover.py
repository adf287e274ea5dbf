"""How fast studies go from an Orthanc into the node's spool, against what the machine and Orthanc give at best.

    dd        dd of Orthanc's attachments into one file, synced: what the disk gives, unchecked
    rest      GET /instances/{id}/file over four connections into memory: Orthanc's fastest route, unchecked, nothing kept
    handover  the node's reader: pulled over four connections, size and MD5 checked, hashed, kept and synced, closed

Interleaved rounds on warm caches; the median of the rounds' ratios counts. With --json one object.

    python benchmarks/orthanc_handover.py --json [--rounds 3] [--studies 2] [--instances 200]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ingest import ROOT, free_port, machine, running, versions

sys.path.insert(0, str(ROOT))

from dicom_node.orthanc_reader.client import OrthancClient
from dicom_node.orthanc_reader.ledger import Ledger
from dicom_node.orthanc_reader.reader import Reader
from dicom_node.spool import Spool
from tests.interop.studies import ct_instance, planted


def fill(client: OrthancClient, studies: int, instances: int) -> int:
    """CT of 512 x 512 with unlike pixels; -> bytes."""
    total = 0
    for study in range(studies):
        for number in range(1, instances + 1):
            data = ct_instance(planted(study), number, 512)
            client.store(data)
            total += len(data)
    return total


def dd(attachments: list[Path], folder: Path) -> float:
    """Seconds to copy the attachments into one synced file."""
    started = time.perf_counter()
    names = folder / "names"
    names.write_text("".join(f"{path}\0" for path in attachments))
    subprocess.run(
        f"xargs -0 cat < '{names}' | dd of='{folder / 'copy'}' bs=1M iflag=fullblock conv=fsync status=none",
        shell=True, check=True,
    )  # fmt: skip
    return time.perf_counter() - started


def rest(client: OrthancClient) -> float:
    """Seconds to read every file over REST."""
    started = time.perf_counter()
    instances = [i for study in client.studies() for i in client.instances(study.orthanc_id)]
    with ThreadPoolExecutor(4) as pool:
        got = sum(len(data) for data in pool.map(client.raw_file, instances))
    assert got == sum(i.size for i in instances)
    return time.perf_counter() - started


def handover(client: OrthancClient, studies: int, folder: Path) -> float:
    """Seconds until every study is in the spool and closed in the ledger."""
    with Spool(folder / "spool") as spool:
        reader = Reader(client, Ledger(folder / "orthanc.db", client.url), spool, quiet_seconds=0.001)
        started = time.perf_counter()
        handed = reader.step()
        seconds = time.perf_counter() - started
    if handed != studies:
        raise SystemExit(f"orthanc_handover: {handed} of {studies} studies were handed over.")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--studies", type=int, default=2)
    parser.add_argument("--instances", type=int, default=200, help="for each study, of half a megabyte")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    given = parser.parse_args()
    if shutil.which("Orthanc") is None:
        print("orthanc_handover: Orthanc is not installed, so nothing is measured.", file=sys.stderr)
        return 2
    parent = Path(tempfile.mkdtemp(prefix="handover-", dir=given.folder))
    http, dicom = free_port(), free_port()
    settings = {"StorageDirectory": str(parent / "db"), "IndexDirectory": str(parent / "db"), "HttpPort": http,
                "DicomPort": dicom, "StableAge": 1, "Plugins": []}  # fmt: skip
    (parent / "orthanc.json").write_text(json.dumps(settings))
    raw: dict[str, list[float]] = {"dd": [], "rest": [], "handover": []}
    try:
        with running(["Orthanc", str(parent / "orthanc.json")], dicom, {"TCP_NODELAY": "1"}):
            client = OrthancClient(f"http://127.0.0.1:{http}")
            size = fill(client, given.studies, given.instances)
            while not all(study.stable for study in client.studies()):
                time.sleep(0.2)
            attachments = [p for p in (parent / "db").rglob("*") if p.is_file() and p.stat().st_size > 500_000]
            attachments = [p for p in attachments if p.suffix == ""]
            rest(client)  # caches are warm for all
            ways: dict[str, Callable[[Path], float]] = {
                "dd": lambda folder: dd(attachments, folder),
                "rest": lambda folder: rest(client),
                "handover": lambda folder: handover(client, given.studies, folder),
            }
            for number in range(given.rounds):
                names = list(ways)[number % 3 :] + list(ways)[: number % 3]
                for name in names:
                    folder = parent / f"{name}{number}"
                    folder.mkdir()
                    raw[name].append(round(size / ways[name](folder) / 1e6, 1))
                    shutil.rmtree(folder)
                    print(f"round {number + 1} {name:9} {raw[name][-1]:8.1f} MB/s", file=sys.stderr)
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    ratios = {
        f"ratio_{peer}": round(statistics.median(h / p for h, p in zip(raw["handover"], raw[peer], strict=True)), 3)
        for peer in ("dd", "rest")
    }
    report = {**ratios, "mb": round(size / 1e6), "medians": {n: statistics.median(r) for n, r in raw.items()}, "raw": raw,
              "machine": machine(), "versions": versions()}  # fmt: skip
    print(json.dumps(report, indent=1) if given.json else json.dumps(ratios))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
