"""Several processes train as one does: equal weights, one voice, no open port, nothing left behind after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from side import Side, build, spec, write_spec

from trainer import job, weights
from trainer.local.parallel import Team
from trainer.spec import JobSpec

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
GROUP = {"name": "small_resnet", "args": {"classes": 3, "widths": [8, 16], "norm": "group"}}

# Trains every case in one of two processes, or alone when there is no RANK, and leaves the weights in the folder given.
WORKER = """
import dataclasses, sys
from pathlib import Path
import numpy as np, torch
from trainer import networks, weights
from trainer.local.algorithms import choose
from trainer.local.data import Samples, Slices
from trainer.local.parallel import join, leave
from trainer.local.training import train
from trainer.spec import LocalSpec

torch.set_num_threads(1)
folder = Path(sys.argv[1])
team = join(folder / "meeting", torch.device("cpu"))
random = np.random.default_rng(0)
images = random.normal(0, 1, (37, 1, 16, 16)).astype(np.float16)
labels = random.integers(0, 3, 37)
flat = Samples(images, labels)
masks = Slices(np.concatenate([images, (images > 1).astype(np.float16)], 1), np.zeros(0, np.int64), np.arange(37), None)
resnet = ("small_resnet", {"classes": 3, "widths": [8, 16]})
networks.NETWORKS["planes"] = lambda: torch.nn.Conv2d(1, 2, 3, padding=1)
planes = ("planes", {})
local = LocalSpec(epochs=2, batch=12, augment="style", lr=1e-3)
sgd = local.model_copy(update={"optimizer": "sgd", "algorithm": "scaffold"})
cases = {
    "group": (resnet[0], resnet[1] | {"norm": "group"}, flat, local),
    "scaffold": (resnet[0], resnet[1] | {"norm": "group"}, flat, sgd),
    "batch": (*resnet, flat, local.model_copy(update={"accumulate": 1 if team.size > 1 else 2})),
    "masks": (*planes, masks, local.model_copy(update={"accumulate": 1 if team.size > 1 else 2})),
    "mixed": (resnet[0], resnet[1] | {"norm": "group"}, flat, local.model_copy(update={"precision": "mixed"})),
}
for name, (network, args, samples, how) in cases.items():
    model = networks.build(network, args)
    weights.into_module(model, networks.initial_weights(network, args, 0))
    done = train(model, samples, how, classes=3, seed=4, algorithm=choose(how), team=team)
    arrays = weights.from_module(model) | {"loss": np.array([done.loss])} | done.state
    weights.save(folder / f"{name}-{team.size}-{team.rank}.safetensors", arrays)
leave()
"""


def worker(folder: Path, rank: int | None) -> subprocess.Popen[bytes]:
    env = ENV if rank is None else ENV | {"RANK": str(rank), "WORLD_SIZE": "2"}
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], env=env)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    assert [process.wait(120) for process in [worker(folder, 0), worker(folder, 1)]] == [0, 0]
    assert worker(folder, None).wait(120) == 0
    return folder


@pytest.mark.parametrize("case", ["group", "scaffold", "masks", "batch", "mixed"])
def test_two_processes_give_the_weights_of_one(trained: Path, case: str) -> None:
    alone, first, second = (weights.load(trained / f"{case}-{who}.safetensors") for who in ("1-0", "2-0", "2-1"))
    for name, value in first.items():
        if name.endswith("num_batches_tracked"):
            continue
        assert np.array_equal(value, second[name]), name  # whoever writes the result, it is the same
        if "running_" in name:  # two updates by half a batch each, one after the other or averaged
            continue
        step = 2e-2 if case == "mixed" else 2e-4
        assert np.allclose(value, alone[name], atol=step), (name, np.abs(value - alone[name]).max())
    start = weights.load(trained / "group-1-0.safetensors")
    assert case == "group" or any(not np.array_equal(start[n], alone[n]) for n in start.keys() & alone.keys())


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_cover_a_batch_and_none_has_a_single_image(count: int, size: int) -> None:
    shares = [list(range(count))[Team(rank, size).share(count)] for rank in range(size)]
    assert [sample for share in shares for sample in share] == list(range(count))
    assert count == 1 or all(len(share) != 1 for share in shares)


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Side:
    return build(tmp_path_factory.mktemp("side"))


def start(file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer.job", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


def family(pid: int) -> list[int]:
    """A process's descendants."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, ValueError, IndexError):
            continue
    return found + [grandchild for child in found for grandchild in family(child)]


def listening(pids: list[int]) -> Iterator[str]:
    """Addresses, as /proc writes them, on which these processes wait for connections."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].split(":")[0]


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        if not any(s.exists() and s.read_text().rsplit(")", 1)[1].split()[0] != "Z" for s in states):
            return True
        time.sleep(0.05)
    return False


def test_torchrun_trains_as_one_process_does_also_after_a_kill(side: Side, tmp_path: Path) -> None:
    changes = {"network": GROUP, "local": {"epochs": 16, "augment": "style"}}
    facts = spec(side, tmp_path / "team", processes=2, checkpoint_seconds=0, **changes)
    file = write_spec(tmp_path / "spec.json", facts)
    process = start(file)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step", 0) and (tmp_path / "team" / "checkpoint.safetensors").exists():
            break
    others = family(process.pid)
    addresses = set(listening([process.pid, *others]))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(others) >= 3 and gone(others), "torchrun or a worker outlived the job that was killed"
    assert addresses and addresses <= {"0100007F", "00000000000000000000000001000000"}, addresses
    assert not (tmp_path / "team" / "result.json").exists()

    process = start(file)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["event"] for e in events].count("start") == [e["event"] for e in events].count("done") == 1
    assert events[0]["processes"] == 2 and next(e["step"] for e in events if e["event"] == "step") > 1
    assert not (tmp_path / "team" / "processes").exists()
    alone = job.run(JobSpec.model_validate(spec(side, tmp_path / "alone", **changes)))
    together = json.loads((tmp_path / "team" / "result.json").read_text())
    first, second = (weights.load(tmp_path / name / "model.safetensors") for name in ("team", "alone"))
    assert max(float(np.abs(first[n] - second[n]).max()) for n in first) < 1e-3
    assert together["samples"] == alone["samples"] and together["steps"] == alone["steps"]
    assert together["metrics"]["auc"] == pytest.approx(alone["metrics"]["auc"], abs=0.02)


def test_what_ends_one_process_is_told_once_with_its_exit_code(side: Side, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    facts = spec(side, tmp_path / "out", processes=2, weights_in=str(broken))
    process = start(write_spec(tmp_path / "spec.json", facts))
    out, err = process.communicate(timeout=120)
    said = [json.loads(line) for line in out.splitlines() if '"error"' in line]
    assert process.returncode == 4 and len(said) == 1 and "safetensors" in said[0]["message"], (out, err)
    assert "Traceback" not in err and err.startswith("trainer: ")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no two CUDA devices: DDP over NCCL not run")
def test_two_gpus_give_the_weights_of_one(side: Side, tmp_path: Path) -> None:
    facts = spec(side, tmp_path / "two", processes=2, network=GROUP, device="cuda", local={"epochs": 2})
    process = start(write_spec(tmp_path / "spec.json", facts))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    job.run(JobSpec.model_validate(facts | {"processes": 1, "out": tmp_path / "one"}))
    first, second = (weights.load(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert max(float(np.abs(first[n] - second[n]).max()) for n in first) < 1e-3
