"""How long the console's pages take with 100,000 studies: median and 95th percentile of whole answers over loopback HTTP.

    python benchmarks/console.py [--studies N] [--repeats N] [--json]

The node's databases are filled as its own processes fill them (spool, catalogue, labels, audit log); the server is the product's
own, in a thread beside the client. "after a change": somebody has written to the catalogue since.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.database import transaction
from dicom_node.records import Catalogue
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool
from dicom_node.web.app import create_app

GOAL_MS = 200.0
MESSAGES = 2000
MODALITIES = ("CT", "MR", "DX", "US", "PT")


def fill(config: NodeConfig, studies: int) -> None:
    """`studies` de-identified ones of half as many patients, a tenth excluded, a fiftieth quarantined, every second labelled."""
    now = time.time() - studies
    spool = Spool(config.storage.spool)
    with closing(Catalogue(config.storage.catalogue)) as catalogue, transaction(catalogue.connection) as db:
        db.executemany(
            "INSERT INTO studies VALUES(?, ?, ?, 'CHEST', 'Vendor', 'F', 60, 3, ?, ?, 'hash', ?)",
            ((uid(n), f"P{n // 2:08x}", MODALITIES[n % 5], *state(n), now + n) for n in range(studies)),
        )
        db.executemany(
            "INSERT INTO labels VALUES(?, 'finding', 'normal', 'csv')", ((uid(n),) for n in range(0, studies, 2))
        )
        db.executemany("INSERT INTO uses VALUES('digest', 1, ?, ?)", ((uid(n), now) for n in range(0, studies, 4)))
    with transaction(spool.db) as db:
        db.executemany(
            "INSERT INTO studies VALUES(?, ?, 'id', '', ?, ?, 3, NULL, ?, 1, ?)",
            ((f"key{n}", f"1.2.{n}", now + n, now + n, *kept(n)) for n in range(studies)),
        )
        db.executemany(
            "INSERT INTO instances VALUES(?, ?, ?, '1.2', '1.2', '1.2.840.10008.1.2.1', 'CT', '1.seg', ?, 1000, 0, ?, 'PACS', ?,"
            " NULL, 'received', '')",
            (
                (3 * n + k, f"1.2.{n}.{k}", f"key{n}", 3000 * n + 1000 * k, f"{n}.{k}", now)
                for n in range(studies)
                for k in range(3)
            ),
        )
    spool.close()
    with closing(AuditLog(config.storage.audit)) as audit:
        for number in range(MESSAGES):
            audit.append(
                "egress", what="update", project="ab" * 32, round=number, recipient="University", bytes=26_000, sha256="cd" * 32,
                privacy={"mode": "sealed"},
            )  # fmt: skip


def uid(number: int) -> str:
    return f"2.25.{10**30 + number * 7919}"


def state(number: int) -> tuple[str, str]:
    return ("excluded", "policy.modalities: not admitted") if number % 10 == 3 else ("eligible", "")


def kept(number: int) -> tuple[str, str]:
    return ("quarantined", "text is burned into the pixels") if number % 50 == 7 else ("deidentified", "")


def measure(
    client: httpx.Client, path: str, repeats: int, before: Callable[[], object] = lambda: None
) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        answer = client.get(path)
        times.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, (path, answer.text[:200])
    return {
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(sorted(times)[int(len(times) * 0.95) - 1], 1),
    }


def run(folder: Path, studies: int, repeats: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = load_config(write_default_config(folder / "node", http_port=port))
    began = time.perf_counter()
    fill(config, studies)
    filled = time.perf_counter() - began
    server = uvicorn.Server(
        uvicorn.Config(create_app(config), host="127.0.0.1", port=port, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    pages = {
        "home": "/", "studies, first page": "/pages/studies", "studies, page 1,000": "/pages/studies?page=1000",
        "studies, excluded": "/pages/studies?state=excluded&page=100", "search, modality": "/pages/studies?q=MR&page=200",
        "search, UID": f"/pages/studies?q={uid(studies // 2)[:-2]}", "one study": f"/pages/studies/{uid(studies // 2)}",
        "what left": "/pages/left", "training": "/pages/training", "status (REST)": "/status",
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {config.web.token_file.read_text().strip()}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=120) as client:
        client.get("/")
        found = {name: measure(client, path, repeats) for name, path in pages.items()}
        with closing(Catalogue(config.storage.catalogue)) as other:
            found["home, after a change"] = measure(
                client, "/", repeats, lambda: other.set_state(uid(0), "eligible", "")
            )
    server.should_exit = True
    thread.join(30)
    worst = max(found.values(), key=lambda one: one["p95_ms"])
    return {
        "studies": studies, "repeats": repeats, "pages": found, "worst_median_ms": max(f["median_ms"] for f in found.values()),
        "worst_p95_ms": worst["p95_ms"], "goal_ms": GOAL_MS, "fill_s": round(filled, 1), "machine": platform.platform(),
        "cores": os.cpu_count(), "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), arguments.studies, arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, figures in found["pages"].items():
        print(f"{name:22} median {figures['median_ms']:7.1f} ms   p95 {figures['p95_ms']:7.1f} ms")
    worst = f"worst median {found['worst_median_ms']} ms, p95 {found['worst_p95_ms']} ms"
    print(f"{found['studies']} studies; goal {GOAL_MS:.0f} ms: {worst}")


if __name__ == "__main__":
    main()
