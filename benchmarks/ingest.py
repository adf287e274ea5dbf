"""C-STORE ingest of our receiver, Orthanc and dcmtk's storescp: same sender, same disk, in turn, several rounds.

Ours answers after fsync; storescp never syncs and Orthanc leaves it to SQLite. The sender is an outside load driver
(--load-driver), so that no side is measured by its own client. Rounds are interleaved and medians compared, since a shared
machine drifts. Prints inst/s, the receiver's processor time per instance (user and system, of all its processes; until the last
answer, and what ours still spends on SHA-256 afterwards) and the ratios of the medians; with --json one object.

    python benchmarks/ingest.py --json [--rounds 3] [--scenarios ct_1,ct_8,tiny_1,tiny_8,nagle_1] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT.parent / "shared" / "tools" / "load.py"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass(frozen=True)
class Scenario:
    """What is sent: profile of the driver, instances, associations, and whether Nagle's delay stays on."""

    profile: str
    instances: int
    associations: int
    nagle: bool = False


SCENARIOS = {
    "ct_1": Scenario("ct", 300, 1),
    "ct_8": Scenario("ct", 600, 8),
    "tiny_1": Scenario("tiny", 2000, 1),
    "tiny_8": Scenario("tiny", 20000, 8),
    "nagle_1": Scenario("tiny", 200, 1, nagle=True),
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"ingest: {process.args!r} does not listen; run it by hand to see why.") from None
            time.sleep(0.05)


@contextmanager
def running(argv: list[str], port: int, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A receiver, until the block ends; its whole process group ends with it."""
    process = subprocess.Popen(argv, env=os.environ | (env or {}), start_new_session=True, cwd=ROOT, **QUIET)  # type: ignore[call-overload]
    try:
        wait_for(port, process)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


Figures = dict[str, dict[str, list[float]]]  # receiver → scenario → one value a round
Processes = tuple["subprocess.Popen[bytes]", ...]


@contextmanager
def ours(folder: Path, port: int) -> Iterator[Processes]:
    (folder / "node.toml").write_text(
        f'[dicom]\nae_title = "BENCH"\nport = {port}\nprocesses = 2\nhost = "127.0.0.1"\n[storage]\nmin_free_mb = 0\n'
    )
    argv = [sys.executable, "-m", "dicom_node.receiver", "--config", str(folder / "node.toml")]
    with running(argv, port) as one, running(argv, port) as other:
        deadline = time.monotonic() + 60  # the second has no port of its own to wait for, but tells how it is doing
        while len(list((folder / "run").glob("receiver-*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield one, other


@contextmanager
def storescp(folder: Path, port: int) -> Iterator[Processes]:
    argv = ["storescp", "--fork", "-aet", "BENCH", "-od", str(folder), str(port)]
    with running(argv, port, {"TCP_NODELAY": "1"}) as process:
        yield (process,)


@contextmanager
def orthanc(folder: Path, port: int) -> Iterator[Processes]:
    settings = {
        "Name": "bench",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": "BENCH",
        "DicomPort": port,
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running(["Orthanc", str(folder / "orthanc.json")], port, {"TCP_NODELAY": "1"}) as process:
        yield (process,)


RECEIVERS: dict[str, Callable[[Path, int], Any]] = {"fedpacs": ours, "orthanc": orthanc, "storescp": storescp}


def processor_seconds(processes: Processes) -> float:
    """User and system time of process groups so far, with children that have ended (proc(5): utime to cstime)."""
    groups, ticks = {process.pid for process in processes}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended in this moment
            continue
        if int(fields[2]) in groups:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def send(driver: Path, port: int, scenario: Scenario) -> float:
    """Instances per second, every one of which was answered with Success."""
    argv = [
        sys.executable,
        str(driver),
        "send",
        "127.0.0.1",
        str(port),
        "--aec",
        "BENCH",
        "--profile",
        scenario.profile,
    ]
    argv += ["-a", str(scenario.associations), "-n", str(scenario.instances)] + ["--nagle"] * scenario.nagle
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        done = subprocess.run([*argv, "--json", report.name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"ingest: the load driver failed: {(done.stderr or done.stdout).strip()[-400:]}")
        return float(json.loads(Path(report.name).read_text())["inst_per_s"])


def measure(driver: Path, name: str, scenario: Scenario, parent: Path) -> tuple[float, float, float]:
    """One receiver, fresh folder, one scenario: inst/s, and milliseconds of processor time an instance, until the last answer
    and (ours: the SHA-256 of larger objects) after it."""
    folder = Path(tempfile.mkdtemp(prefix=f"ingest-{name}-", dir=parent))
    port = free_port()
    try:
        with RECEIVERS[name](folder, port) as processes:
            before = processor_seconds(processes)
            rate = send(driver, port, scenario)
            answered = processor_seconds(processes)
            if name == "fedpacs":
                check_kept(folder, scenario.instances)
            ended = processor_seconds(processes)
            each = 1000 / scenario.instances
            return rate, round((answered - before) * each, 3), round((ended - answered) * each, 3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()  # what one receiver left unwritten is not the next one's burden


def check_kept(folder: Path, instances: int, seconds: float = 60) -> None:
    """Every instance has its row, at once, and its SHA-256 soon."""
    deadline = time.monotonic() + seconds
    with closing(sqlite3.connect(folder / "spool" / "spool.db")) as db:
        kept = db.execute("SELECT count(*) FROM instances").fetchone()[0]
        while db.execute("SELECT count(*) FROM instances WHERE sha256=''").fetchone()[0]:
            if time.monotonic() > deadline:
                raise SystemExit(f"ingest: after {seconds:.0f} s some instances still have no SHA-256.")
            time.sleep(0.05)
    if kept != instances:
        raise SystemExit(f"ingest: {instances} instances were acknowledged and {kept} are in the spool.")


def versions() -> dict[str, str]:
    def first_line(*argv: str) -> str:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
        except OSError:
            return "absent"
        found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        return found.group() if found else "unknown"

    return {
        "python": platform.python_version(),
        "orthanc": first_line("Orthanc", "--version"),
        "dcmtk": first_line("storescp", "--version"),
    }


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": os.cpu_count(),
        "cpu": model.group(1) if model else "",
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def middle(figures: Figures, digits: int) -> dict[str, dict[str, float]]:
    """The median of each receiver's rounds, scenario by scenario."""
    return {
        name: {key: round(statistics.median(values), digits) for key, values in found.items()}
        for name, found in figures.items()
    }


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    found = {}
    for peer in ("orthanc", "storescp"):
        for scenario, rate in medians.get(peer, {}).items():
            if scenario in medians.get("fedpacs", {}):
                found[f"ratio_{peer}_{scenario}"] = round(medians["fedpacs"][scenario] / rate, 2)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--receivers", default=",".join(RECEIVERS))
    parser.add_argument("--scale", type=float, default=1.0, help="send this part of each scenario's instances")
    parser.add_argument("--load-driver", type=Path, default=DRIVER)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if not arguments.load_driver.exists():
        print(f"ingest: {arguments.load_driver} is not there; name a load driver with --load-driver.", file=sys.stderr)
        return 2
    binaries = {"orthanc": "Orthanc", "storescp": "storescp"}
    names = [n for n in arguments.receivers.split(",") if n not in binaries or shutil.which(binaries[n])]
    raw: Figures = {name: {} for name in names}
    cpu: Figures = {name: {} for name in names}
    later: Figures = {name: {} for name in names}
    for number in range(arguments.rounds):
        for key in arguments.scenarios.split(","):
            base = SCENARIOS[key]
            scenario = Scenario(
                base.profile, max(1, int(base.instances * arguments.scale)), base.associations, base.nagle
            )
            for name in names[number % len(names) :] + names[: number % len(names)]:
                rate, used, after = measure(arguments.load_driver, name, scenario, arguments.folder)
                raw[name].setdefault(key, []).append(rate)
                cpu[name].setdefault(key, []).append(used)
                later[name].setdefault(key, []).append(after)
                print(f"round {number + 1} {key:8} {name:9} {rate:8.1f} inst/s {used:7.3f} ms CPU", file=sys.stderr)
    medians = middle(raw, 1)
    report = ratios(medians) | {
        "medians": medians, "cpu_ms_per_instance": middle(cpu, 3),
        "cpu_ms_per_instance_after_the_answer": middle(later, 3), "raw": raw, "rounds": arguments.rounds,
        "machine": machine(), "versions": versions(),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        for key, value in ratios(medians).items():
            print(f"{key:28} {value:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
