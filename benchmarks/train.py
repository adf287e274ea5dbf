"""Our local training loop against a plain torch loop on the same network and data, and the share of time spent waiting.

Both run the same number of AdamW steps with the same batch, in turn, one thread on the CPU (or --device cuda). The plain loop
has its float32 tensors in RAM and no augmentation; ours reads the memory-mapped float16 cache format.

Noisy steps (differential privacy) are compared with plain ones on the same networks with GroupNorm.

    python benchmarks/train.py --json [--device cpu|cuda] [--only-dp]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer import networks
from trainer.local.data import Samples, Slices, epoch_order
from trainer.local.loss import loss_of
from trainer.local.training import make_optimizer, train
from trainer.privacy.training import train_privately
from trainer.spec import LocalSpec, PrivateSteps

CASES: dict[str, dict[str, Any]] = {
    "small_resnet": {"args": {"classes": 3}, "batch": 32, "count": 320, "size": 64},
    "monai_unet": {"args": {"classes": 3, "widths": [16, 32, 64]}, "batch": 16, "count": 96, "size": 64},
}


def make_samples(folder: Path, name: str, count: int, size: int) -> Samples:
    """Random images in a memory-mapped file as the cache holds them; a mask channel for segmenters."""
    channels = 2 if "unet" in name else 1
    random = np.random.default_rng(0)
    path = folder / f"{name}.f16"
    data = random.normal(0, 1, (count, channels, size, size)).astype(np.float16)
    if channels == 2:
        data[:, 1] = random.integers(0, 3, (count, size, size))
    data.tofile(path)
    mapped = np.memmap(path, np.float16, "r", shape=data.shape)
    if channels == 2:
        return Slices(mapped, np.zeros(0, np.int64), np.arange(count), None)
    return Samples(mapped, random.integers(0, 3, count))


def plain(name: str, samples: Samples, local: LocalSpec, args: dict[str, Any], device: str) -> float:
    """Steps a second of the loop anyone would write."""
    model = networks.build(name, args).to(device).train()
    optimizer = make_optimizer(model, local)
    images, labels = samples.batch(np.arange(len(samples)))
    images, labels = images.to(device), labels.to(device)
    steps = 0
    started = time.perf_counter()
    for _ in range(local.epochs):
        for rows in epoch_order(len(samples), local.batch, torch.Generator().manual_seed(0)):
            logits = model(images[rows])
            loss = (
                functional.cross_entropy(logits, labels[rows])
                if labels.ndim == 1
                else loss_of(logits, labels[rows], None, 0)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return steps / (time.perf_counter() - started)


def ours(name: str, samples: Samples, local: LocalSpec, args: dict[str, Any], device: str) -> tuple[float, float]:
    """Steps a second and the share of time spent getting batches (reading and augmenting)."""
    model = networks.build(name, args)
    done = train(model, samples, local, classes=3, seed=0, device=device)
    return done.steps / done.seconds, done.waiting


def noisy(name: str, samples: Samples, local: LocalSpec, args: dict[str, Any], device: str) -> float:
    """Steps a second with differential privacy: as many images a step on average, each a unit of its own."""
    own = replace(samples, groups=np.arange(len(samples)))
    steps = local.epochs * len(samples) // local.batch
    private = PrivateSteps(
        unit="record",
        noise_multiplier=1.0,
        clip=1.0,
        rate=local.batch / len(samples),
        steps=steps,
        expected_units=local.batch,
    )
    done = train_privately(networks.build(name, args), own, local, private, seed=0, device=device)
    return done.steps / done.seconds


def measure_noisy(device: str, repeat: int) -> dict[str, Any]:
    """How many plain steps a noisy step takes, on GroupNorm networks: median of the ratios of `repeat` pairs."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            samples, args = (
                make_samples(Path(folder), name, case["count"], case["size"]),
                case["args"] | {"norm": "group"},
            )
            local = LocalSpec(epochs=2, batch=case["batch"], augment="none")
            ratios = [
                plain(name, samples, local, args, device) / noisy(name, samples, local, args, device)
                for _ in range(repeat)
            ]
            out[f"dp_step_over_plain_{name}"] = round(statistics.median(ratios), 3)
    return out


def measure(device: str, repeat: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            samples = make_samples(Path(folder), name, case["count"], case["size"])
            best: dict[str, float] = {}
            waiting: dict[str, float] = {}
            for _ in range(repeat):
                local = LocalSpec(epochs=2, batch=case["batch"], augment="none")
                best["plain"] = max(best.get("plain", 0.0), plain(name, samples, local, case["args"], device))
                for strength in ("none", "light", "style"):
                    changed = local.model_copy(update={"augment": strength})
                    speed, share = ours(name, samples, changed, case["args"], device)
                    if speed > best.get(strength, 0.0):
                        best[strength], waiting[strength] = speed, share
            out[f"ratio_plain_{name}"] = round(best["none"] / best["plain"], 3)
            out[f"steps_per_second_{name}"] = {k: round(v, 2) for k, v in best.items()}
            out[f"waiting_share_{name}"] = {k: round(v, 4) for k, v in waiting.items()}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only-dp", action="store_true", help="only the steps with differential privacy")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("train: this machine has no CUDA device; run with --device cpu", file=sys.stderr)
        return 3
    torch.set_num_threads(1)
    facts = {"device": given.device, "machine": platform.machine(), "python": platform.python_version()}
    figures = {} if given.only_dp else measure(given.device, given.repeat)
    result = figures | measure_noisy(given.device, given.repeat) | facts | {"torch": torch.__version__}
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
