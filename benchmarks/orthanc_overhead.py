"""C-STORE throughput of an Orthanc with the fedpacs plugin against the same Orthanc without, interleaved rounds.

A third side loads Debian's Python plugin with an empty script, so that our own cost is told apart from the interpreter's.

Same sender (an outside load driver), same disk; which side begins changes from round to round, and the median of the rounds'
ratios counts, since a shared machine drifts. The plugin has a node's address that nobody listens on: its hints fail, which costs
it more than a node that answers. Orthanc's own processor time for an instance is told beside it: on a crowded machine the rate
says little, and that says much. Prints inst/s and the ratio (1.0 = free); with --json one object.

    python benchmarks/orthanc_overhead.py --json [--rounds 5] [--instances 400] [--associations 8]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ingest import DRIVER, ROOT, Scenario, free_port, machine, running, send, versions

LIBRARY = Path("/usr/share/orthanc/plugins/libOrthancPython.so")


SIDES = ("without", "empty", "with")


def configuration(folder: Path, port: int, side: str) -> Path:
    settings: dict[str, Any] = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomAet": "BENCH",
        "DicomPort": port,
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "StableAge": 2,
        "Plugins": [],
    }
    if side == "empty":
        script = folder / "empty.py"
        script.write_text("")
        settings |= {"Plugins": [str(LIBRARY)], "PythonScript": str(script)}
    if side == "with":
        token = folder / "api.token"
        token.write_text("a-token-that-nobody-asks-for\n")
        settings |= {
            "Plugins": [str(LIBRARY)],
            "PythonScript": str(ROOT / "plugin" / "fedpacs_plugin.py"),
            "Fedpacs": {"Url": f"http://127.0.0.1:{free_port()}", "TokenFile": str(token)},
        }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    return path


def measure(driver: Path, side: str, scenario: Scenario, parent: Path) -> tuple[float, float]:
    """(instances per second, processor milliseconds of Orthanc for an instance)."""
    folder = Path(tempfile.mkdtemp(prefix="overhead-", dir=parent))
    port = free_port()
    try:
        with running(["Orthanc", str(configuration(folder, port, side))], port, {"TCP_NODELAY": "1"}) as orthanc:
            send(driver, port, Scenario(scenario.profile, 20, 1))  # both sides warm
            before = cpu_seconds(orthanc.pid)
            rate = send(driver, port, scenario)
            return rate, round((cpu_seconds(orthanc.pid) - before) * 1000 / scenario.instances, 3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()  # what one side left unwritten is not the other's burden


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=400)
    parser.add_argument("--associations", type=int, default=8)
    parser.add_argument("--load-driver", type=Path, default=DRIVER)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    given = parser.parse_args()
    for needed, there in ((given.load_driver, given.load_driver.exists()), (LIBRARY, LIBRARY.exists())):
        if not there:
            print(f"orthanc_overhead: {needed} is not there, so nothing is measured.", file=sys.stderr)
            return 2
    scenario = Scenario("ct", given.instances, given.associations)
    raw: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side in (SIDES * 2)[number % 3 : number % 3 + 3]:
            rate, milliseconds = measure(given.load_driver, side, scenario, given.folder)
            raw[side].append(rate)
            cpu[side].append(milliseconds)
            print(f"round {number + 1} {side:8} {rate:8.1f} inst/s {milliseconds:6.2f} ms", file=sys.stderr)
    each = [round(w / o, 3) for w, o in zip(raw["with"], raw["without"], strict=True)]
    own = [round(w / e, 3) for w, e in zip(raw["with"], raw["empty"], strict=True)]
    report = {
        "ratio_with_plugin": statistics.median(each),
        "ratio_cpu": round(statistics.median(cpu["with"]) / statistics.median(cpu["without"]), 3),
        "ratio_with_plugin_to_empty_script": statistics.median(own),
        "cpu_ms_medians": {side: statistics.median(found) for side, found in cpu.items()},
        "ratios": each,
        "cpu_ms_per_instance": cpu,
        "medians": {side: statistics.median(rates) for side, rates in raw.items()},
        "raw": raw,
        "machine": machine(),
        "versions": versions(),
    }
    print(
        json.dumps(report, indent=1) if given.json else f"with the plugin: {report['ratio_with_plugin']:.1%} of without"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
