"""The coordinator's memory against the number of sites: its whole path of a round, with sealed updates of a large model.

    python benchmarks/memory.py --json [--sites 2,50] [--widths 64,512,2048]      (50.8 million parameters)

For each number of sites a fresh process runs one round over a hub in memory that makes each site's sealed update when it is asked
for: request sealed to every site, answers opened, checked, kept on disk and averaged one by one. What is compared is the peak
resident memory, which must not grow with the sites; the hub's own update under way is part of it. Needs disk: sites × model.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aggregator_client import messages
from aggregator_client.coordinator.server import Run
from aggregator_client.coordinator.state import RunState
from aggregator_client.keys import CoordinatorKeys, NodeKeys, coordinator_keys, node_keys
from aggregator_client.messages import ANSWERS, COORDINATOR, Message
from aggregator_client.sealing import Context
from aggregator_client.transport import Failure, Handle, SiteInfo
from tests.aggregator_client import federation
from trainer import weights


class MakingHub:
    """A hub whose sites' answers are made one at a time, when they are collected."""

    def __init__(self, keys: dict[str, NodeKeys], coordinator: CoordinatorKeys, start: weights.Weights) -> None:
        self.keys, self.coordinator, self.start = keys, coordinator, start
        self.waiting: deque[tuple[Handle, Context, str]] = deque()

    def register(self, site: str, public_key: bytes) -> None:
        """Every site is known."""

    def sites(self) -> list[SiteInfo]:
        return [SiteInfo(name, True, time.time(), 0.0) for name in self.keys]

    def start_run(self) -> None:
        self.waiting.clear()

    def send(self, site: str, payload: bytes) -> Handle:
        context, request = messages.unwrap(
            payload, private=self.keys[site].sealing, sender_public=self.coordinator.signing_public
        )
        handle = Handle(site, f"{site}/{context.round}")
        self.waiting.append((handle, context, request.digest()))
        return handle

    def collect(self, handles: Iterable[Handle], deadline: float) -> Iterator[tuple[Handle, bytes | Failure]]:
        if self.waiting:
            handle, context, digest = self.waiting.popleft()
            yield handle, self._answer(handle.site, context, digest)

    def _answer(self, site: str, context: Context, digest: str) -> bytes:
        kind = ANSWERS[context.kind]
        header = {"v": messages.VERSION, "kind": kind, "request": digest, "samples": 10, "steps": 1, "seconds": 0.0}
        parts = {}
        if kind == "update":
            step = np.float32(int(site.rsplit("-", 1)[1]) + 1)
            moved = {n: v + step if v.dtype.kind == "f" else v for n, v in self.start.items()}
            parts = {"model": weights.to_bytes(moved)}
        back = replace(context, sender=site, recipient=COORDINATOR, kind=kind)
        return messages.wrap(
            Message(header, parts),
            back,
            recipient_public=self.coordinator.sealing_public,
            signer=self.keys[site].signing,
        )

    def close(self) -> None:
        """Nothing is open."""


def one_round(sites: int, widths: list[int]) -> dict[str, Any]:
    """Run one round in this process and tell its peak memory."""
    folder = Path(tempfile.mkdtemp(prefix="fedpacs-memory-"))
    names = [f"site-{i:03d}" for i in range(sites)]
    try:
        coordinator = coordinator_keys(folder / "keys")
        keys = {name: node_keys(folder / name) for name in names}
        network = {"name": "small_resnet", "args": {"in_channels": 1, "classes": 2, "widths": widths, "norm": "group"}}
        project = federation.project(
            coordinator, network=network, rounds=1, min_sites=sites, deadline_s=7200.0, algorithm={"name": "fedavg"}
        )
        start = _start(project)
        members = [federation.member(name, keys[name]) for name in names]
        state = RunState(folder / "run")
        began = time.monotonic()
        Run(project, members, coordinator, MakingHub(keys, coordinator, start), state).go()
        seconds = time.monotonic() - began
        found = state.model(1)
        wrong = max(
            float(np.abs(found[n] - start[n] - (sites + 1) / 2).max()) for n in start if start[n].dtype.kind == "f"
        )
        assert wrong < 1e-2, wrong
        state.close()
        size = sum(value.nbytes for value in start.values())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        count = sum(value.size for value in start.values())
        return {"sites": sites, "parameters": count, "model_mb": round(size / 1e6, 1), "peak_mb": round(peak / 1e6, 1),
                "peak_in_models": round(peak / size, 2), "seconds": round(seconds, 1)}  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(project: Any) -> weights.Weights:
    from trainer import networks

    network = project.document.network
    return networks.initial_weights(network.name, network.args, project.document.seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sites", default="2,50")
    parser.add_argument("--widths", default="64,512,2048")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(one_round(given.child, [int(width) for width in given.widths.split(",")])))
        return 0
    rows = []
    for sites in given.sites.split(","):
        argv = [sys.executable, __file__, "--child", sites, "--widths", given.widths]
        rows.append(
            json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
        print(rows[-1], file=sys.stderr, flush=True)
    facts = {"rows": rows, "ratio_peak_most_to_fewest_sites": round(rows[-1]["peak_mb"] / rows[0]["peak_mb"], 3)}
    print(json.dumps(facts) if given.json else "\n".join(map(str, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
