"""Jobs take turns at a node's GPUs: one a card, in the order they came, inside the hours; a killed job frees its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from aggregator_client import gpu_queue, hours
from aggregator_client.gpu_queue import GpuQueue
from aggregator_client.inference import Inference
from aggregator_client.trainer_process import TrainerProcess
from dicom_node.config import load_config
from dicom_node.setup import write_default_config

HOLD = """
import sys, time
from pathlib import Path
from aggregator_client.gpu_queue import GpuQueue
with GpuQueue(Path(sys.argv[1]), ("0", "1")).turn(int(sys.argv[2]), lambda: None) as env:
    print(env["CUDA_VISIBLE_DEVICES"], flush=True)
    time.sleep(600)
"""


class GaveUp(Exception):
    pass


def give_up() -> None:
    raise GaveUp


def holder(folder: Path, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(count)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.seen = process.stdout.readline().strip()  # type: ignore[attr-defined]
    return process


def until(truth: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_one_job_a_card_and_a_killed_one_frees_its_own(tmp_path: Path) -> None:
    queue = GpuQueue(tmp_path, ("0", "1"))
    first, second = holder(tmp_path, 1), holder(tmp_path, 1)
    try:
        assert {first.seen, second.seen} == {"0", "1"}
        with pytest.raises(GaveUp), queue.turn(1, give_up):
            pass
        assert not list(tmp_path.glob("*.ticket")), "whoever gives up leaves the queue"
        second.send_signal(signal.SIGKILL)
        second.wait(30)
        with queue.turn(1, lambda: None) as env:
            assert env == {"CUDA_VISIBLE_DEVICES": second.seen}
            with pytest.raises(GaveUp), queue.turn(1, give_up):
                pass
        with queue.turn(1, lambda: None) as env:
            assert env == {"CUDA_VISIBLE_DEVICES": second.seen}
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_a_job_for_all_cards_is_not_overtaken_by_smaller_ones(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def job(name: str, count: int) -> None:
        with GpuQueue(tmp_path, ("0", "1")).turn(count, waiting.set) as env:
            order.append(f"{name} {env['CUDA_VISIBLE_DEVICES']}")

    with GpuQueue(tmp_path, ("0", "1")).turn(1, lambda: None):
        large = threading.Thread(target=job, args=("large", 2))
        large.start()
        assert waiting.wait(30)
        small = threading.Thread(target=job, args=("small", 1))
        small.start()
        until(lambda: len(list(tmp_path.glob("*.ticket"))) == 2)
        time.sleep(3 * gpu_queue.POLL_SECONDS)
        assert order == []  # a card is free all the while
    large.join(30)
    small.join(30)
    assert order[0] in ("large 0,1", "large 1,0") and order[1].startswith("small ")


def test_a_ticket_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000001-1.ticket").touch()
    with GpuQueue(tmp_path, ("0",)).turn(1, give_up) as env:
        assert env == {"CUDA_VISIBLE_DEVICES": "0"}
    assert not list(tmp_path.glob("*.ticket"))


def test_without_a_card_nobody_waits(tmp_path: Path) -> None:
    queue = GpuQueue(tmp_path / "gpus", ())
    with queue.turn(1, give_up) as env, queue.turn(1, give_up):
        assert env == {} and not (tmp_path / "gpus").exists()
    assert queue.at_once(0) == queue.at_once(4) == 1
    assert [GpuQueue(tmp_path, ("0", "1", "2")).at_once(n) for n in (0, 1, 2, 8)] == [3, 1, 2, 3]


@pytest.mark.parametrize(
    ("visible", "cards"), [("", ()), ("-1", ()), ("3", ("3",)), ("0, GPU-5a", ("0", "GPU-5a")), (None, ("0", "1"))]
)
def test_cards_are_those_this_process_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, cards: tuple[str, ...]
) -> None:
    told = tmp_path / "nvidia-smi"
    told.write_text("#!/bin/sh\necho 'GPU 0: Card (UUID: GPU-a)'\necho 'GPU 1: Card (UUID: GPU-b)'\n")
    told.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu_queue.cards.cache_clear()
    assert gpu_queue.cards() == cards
    gpu_queue.cards.cache_clear()


def test_a_job_gets_its_cards_by_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trainer, log = TrainerProcess(tmp_path / "log"), tmp_path / "log"
    try:
        assert trainer.run(tmp_path / "none.json", 60, lambda line: None) == 3
        assert "Traceback" not in log.read_text()
        assert trainer.run(tmp_path / "none.json", 60, lambda line: None, {"FEDPACS_TRACE": "1"}) == 3
        assert "Traceback" in log.read_text()
    finally:
        trainer.close()


def test_hours_that_end_while_a_study_waits_leave_it_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_default_config(tmp_path))
    monkeypatch.setattr(gpu_queue, "cards", lambda: ("0",))
    with closing(Inference(config)) as inference, gpu_queue.of_node(config).turn(1, lambda: None):
        monkeypatch.setattr(inference, "waiting", lambda: iter([(None, None)]))
        monkeypatch.setattr(inference, "_predict", lambda *_: pytest.fail("it began after hours"))
        monkeypatch.setattr(hours, "allowed", after(3))
        assert inference.step() == 0 and inference._seen == ()


def after(times: int) -> Callable[[object], bool]:
    """True for the first `times` calls."""
    left = [times]

    def allowed(config: object) -> bool:
        left[0] -= 1
        return left[0] >= 0

    return allowed
