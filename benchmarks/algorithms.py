"""Each federated algorithm against centralised training (CDS) on real chest X-rays, at equal data and local compute.

Four simulated hospitals: label skew by Dirichlet(0.3) over patients, a scanner look each; held-out patients are dealt to
all hospitals evenly. Macro one-vs-rest AUC over the pooled test images, mean over seeds, and its ratio to CDS. Hyper-
parameters were chosen on validation patients (docs/results.md). Needs ../shared/data/cxr-pneumonia.

    python benchmarks/algorithms.py --json [--seeds 0,1,2] [--algorithms cds,local,fedavg,...]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import simulation as sim
from benchmarks import sites as data
from trainer import weights
from trainer.spec import LocalSpec

BRACKETS = {
    "fedavg": 95,
    "fedprox": 95.5,
    "scaffold": 97,
    "fedbn": 102,
    "cyclic": 96,
    "single": 94,
    "ensemble": 102,
    "local": 86,
}
SETTINGS = sim.Settings(
    network="small_resnet",
    args={"in_channels": 1, "classes": 3, "widths": [16, 32, 64], "norm": "batch"},
    size=64,
    rounds=16,
    local=LocalSpec(epochs=2, batch=32, lr=3e-3, weight_decay=1e-4, augment="style", class_weighted=True),
)


def hospitals(seed: int, size: int, count: int = 4, alpha: float = 0.3) -> list[sim.Site]:
    """The simulated hospitals of one seed."""
    patients = data.load()
    train, validation, test = data.split(patients, seed)
    dealt = zip(
        data.dirichlet(patients, train, count, alpha, seed),
        data.evenly(patients, validation, count, seed),
        data.evenly(patients, test, count, seed),
        data.STYLES,
        strict=False,
    )
    return [
        sim.Site(*(data.prepare(patients, rows, style, size, seed) for rows in (a, b, c))) for a, b, c, style in dealt
    ]


def with_local(settings: sim.Settings, **changes: Any) -> sim.Settings:
    """The settings with some local ones changed."""
    return sim.Settings(**(vars(settings) | {"local": settings.local.model_copy(update=changes)}))


def local_only(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Callable[[list[Any]], float]:
    """Mean over the hospitals' own models, each scored on the pooled images."""
    models = [sim.alone(settings, site.train, seed) for site in sites]
    return lambda parts: float(np.mean([sim.score(settings, model, parts) for model in models]))


def ensemble(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Callable[[list[Any]], float]:
    """The hospitals' own models voting with their mean probability."""
    models = [sim.alone(settings, site.train, seed) for site in sites]
    return lambda parts: sim.ensemble_score(settings, models, parts)


def _scored(make: Callable[..., Any], **changes: Any) -> Callable[..., Callable[[list[Any]], float]]:
    def fit(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Callable[[list[Any]], float]:
        settings = with_local(settings, **changes) if changes else settings
        model = make(settings, sites, seed)
        return lambda parts: sim.score(settings, model, parts)

    return fit


ALGORITHMS: dict[str, Callable[..., Callable[[list[Any]], float]]] = {
    "cds": _scored(sim.centralised),
    "local": local_only,
    "fedavg": _scored(sim.fedavg),
    "fedprox": _scored(sim.fedavg, algorithm="fedprox", mu=0.01),
    "scaffold": _scored(sim.scaffold, algorithm="scaffold", optimizer="sgd", lr=0.1),
    "fedbn": _scored(sim.fedbn),
    "cyclic": _scored(sim.cyclic),
    "single": _scored(sim.single),
    "ensemble": ensemble,
}


def megabytes(settings: sim.Settings, name: str) -> float:
    """What one hospital sends in the whole run, in MB."""
    model = settings.build()
    size = len(weights.to_bytes(weights.from_module(model))) / 1e6
    sent = {"cds": 0.0, "local": 0.0, "single": 1.0, "ensemble": 1.0, "scaffold": 2.0 * settings.rounds}
    return round(size * sent.get(name, settings.rounds), 3)


def measure(names: list[str], seeds: list[int], settings: sim.Settings) -> dict[str, dict[str, Any]]:
    """Test and validation AUC of every algorithm and seed, and seconds."""
    out: dict[str, dict[str, Any]] = {name: {"test": [], "validation": [], "seconds": []} for name in names}
    for seed in seeds:
        sites = hospitals(seed, settings.size)
        for name in names:
            started = time.monotonic()
            score = ALGORITHMS[name](settings, sites, seed)
            out[name]["seconds"].append(round(time.monotonic() - started, 2))
            out[name]["test"].append(round(score([site.test for site in sites]), 4))
            out[name]["validation"].append(round(score([site.validation for site in sites]), 4))
            print(f"seed {seed} {name}: test {out[name]['test'][-1]:.3f}", file=sys.stderr, flush=True)
    return out


def summary(raw: dict[str, dict[str, Any]], settings: sim.Settings) -> dict[str, Any]:
    """Means over seeds, and the ratios to CDS in per cent."""
    cds = float(np.mean(raw["cds"]["test"])) if "cds" in raw else float("nan")
    rows = {}
    for name, figures in raw.items():
        mean = float(np.mean(figures["test"]))
        rows[name] = {
            "auc": round(mean, 4),
            "percent_of_cds": round(100 * mean / cds, 1),
            "bracket_percent": BRACKETS.get(name),
            "mb_sent_per_site": megabytes(settings, name),
            **figures,
        }
    facts = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    ratios = {f"ratio_{name}_cds": round(row["auc"] / cds, 4) for name, row in rows.items() if name != "cds"}
    return {"task": "chest X-ray, three-class macro AUC", "algorithms": rows, **ratios, **facts}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if not (data.DATA / "cxr-pneumonia").exists():
        print("algorithms: ../shared/data/cxr-pneumonia is absent; put the data there and run again", file=sys.stderr)
        return 4
    torch.set_num_threads(given.threads)
    names = given.algorithms.split(",")
    if unknown := [name for name in names if name not in ALGORITHMS]:
        print(f"algorithms: {unknown[0]!r} is unknown; choose from {', '.join(ALGORITHMS)}", file=sys.stderr)
        return 2
    seeds = [int(seed) for seed in given.seeds.split(",")]
    result = summary(measure(names, seeds, SETTINGS), SETTINGS)
    if given.json:
        print(json.dumps(result))
        return 0
    for name, row in result["algorithms"].items():
        print(f"{name:10} {row['auc']:.3f}  {row['percent_of_cds']:6.1f} % of CDS  {row['mb_sent_per_site']:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
