"""One job in several processes of this machine: torchrun, set up so that nothing listens to the network.

torchrun's usual rendezvous opens a port on every address and unpickles what it receives there. Here processes meet in a file
of the job's out folder and talk over the loopback interface. When this process ends, however it ends, so do torchrun and its
workers.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import SpecError
from trainer.spec import JobSpec

if TYPE_CHECKING:
    import torch

_FOLDER = "processes"
_PR_SET_PDEATHSIG = 1


def in_team() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def meeting(out: Path) -> Path:
    """The file in which a job's processes find each other."""
    return out / _FOLDER / f"meeting-{os.environ.get('TORCHELASTIC_RUN_ID', 'job')}"


def own_gpu() -> torch.device:
    """The GPU of this process: its number among those torchrun started. Errors: SpecError when there are fewer GPUs."""
    import torch

    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise SpecError(
            f"the job wants a GPU for each of its processes and this one is the {number + 1}th of {there}; lower processes"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def torchrun(file: Path, spec: JobSpec) -> int:
    """Run `python -m trainer.job file` in spec.processes processes and pass on what the first says. Returns the exit code."""
    folder = spec.out / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(spec.processes)]
    argv += ["--rdzv-backend", "c10d", "--rdzv-endpoint", str((folder / "rendezvous").resolve())]
    argv += ["--rdzv-conf", "store_type=file,is_host=1", "--rdzv-id", "job", "-m", "trainer.job", str(file)]
    ours = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (folder / "log").open("wb") as log:
        sys.stdout.flush()
        code = subprocess.run(
            argv, env=os.environ | ours, stderr=log, check=False, preexec_fn=_die_with_parent
        ).returncode
    if code == 0:
        shutil.rmtree(folder)
        return 0
    told = _words(folder)
    sentence, code = told or (f"a process of the training ended by itself; see {folder.name}/log beside its result", 1)
    print(json.dumps({"event": "error", "message": sentence, "exit_code": code}), flush=True)
    print(f"trainer: {sentence}", file=sys.stderr)
    return code


def leave_word(out: Path, sentence: str, code: int) -> None:
    """Say why this process ends, for `torchrun` to tell."""
    file = out / _FOLDER / f"ended-{os.environ.get('RANK', '0')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"message": sentence, "exit_code": code}), encoding="utf-8")
    part.replace(file)


def _words(folder: Path) -> tuple[str, int] | None:
    """What the first process that left a word said; the others may have been ended because of it."""
    files = sorted(folder.glob("ended-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return None
    facts = json.loads(files[0].read_text(encoding="utf-8"))
    return str(facts["message"]), int(facts["exit_code"])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def die_with_torchrun() -> None:
    """torchrun gives each worker a session of its own, so no signal to a group reaches it; the kernel's does."""
    if in_team():
        _die_with_parent()
