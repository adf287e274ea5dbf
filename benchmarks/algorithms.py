"""Each federated algorithm against centralised training (CDS) on real images, at equal data and local compute.

    python benchmarks/algorithms.py --json [--task chest] [--scenario dirichlet-0.3] [--seeds 0,1,2] [--algorithms cds,fedavg]
    python benchmarks/algorithms.py --task chest --out RESULTS.jsonl      keeps each finished row; a second start goes on

Tasks: chest (four simulated hospitals: label skew over patients, a scanner look each; held-out patients are dealt evenly; macro
one-vs-rest AUC), hippocampus (four hospitals of 40, 30, 20 and 10 % and a look each; Dice by volume) and retina (three natural
sites and cameras; Dice). Metrics are over all hospitals' test patients, means over seeds. Hyper-parameters were chosen on
validation patients (docs/results.md). Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aggregator_client.compression import TransferSettings
from aggregator_client.coordinator.distilling import train_student
from aggregator_client.coordinator.ensembles import combine
from aggregator_client.coordinator.strategies import choose
from benchmarks import simulation as sim
from benchmarks import sites as data
from trainer import weights
from trainer.local.data import pool
from trainer.spec import LocalSpec, NetworkSpec

BRACKETS = {"fedavg": 95, "fedprox": 95.5, "scaffold": 97, "fedbn": 102, "cyclic": 96, "single": 94, "ensemble": 102,
            "split": 101, "local": 86}  # fmt: skip
SCENARIOS: Mapping[str, tuple[float | None, bool]] = {
    "iid": (None, False),
    "feature-shift": (None, True),
    "dirichlet-1.0": (1.0, True),
    "dirichlet-0.3": (0.3, True),
    "dirichlet-0.1": (0.1, True),
}
CHEST = sim.Settings(
    network="small_resnet",
    args={"in_channels": 1, "classes": 3, "widths": [16, 32, 64], "norm": "batch"},
    size=64,
    rounds=16,
    local=LocalSpec(epochs=2, batch=32, lr=3e-3, weight_decay=1e-4, augment="style", class_weighted=True),
)
HIPPOCAMPUS = sim.Settings(
    network="monai_unet",
    args={"in_channels": 1, "classes": 3, "widths": [16, 32, 64]},
    size=48,
    rounds=10,
    local=LocalSpec(epochs=1, batch=16, lr=3e-3, weight_decay=1e-4, augment="style"),
)
RETINA = sim.Settings(
    network="monai_unet",
    args={"in_channels": 1, "classes": 2, "widths": [16, 32, 64]},
    size=256,
    rounds=16,
    local=LocalSpec(steps=16, batch=2, lr=3e-3, weight_decay=1e-4, augment="light"),
)
SETTINGS = {"chest": CHEST, "hippocampus": HIPPOCAMPUS, "retina": RETINA}
NATURAL = {"hippocampus": "feature-shift", "retina": "natural"}


def hospitals(task: str, scenario: str, seed: int, size: int) -> list[sim.Site]:
    """The hospitals of one seed."""
    if task == "chest":
        alpha, styled = SCENARIOS[scenario]
        return [sim.Site(*parts) for parts in data.chest(seed, size, alpha, styled)]
    make = data.hippocampus if task == "hippocampus" else data.retina
    return [sim.Site(*parts) for parts in make(seed, size)]


@dataclass
class Result:
    """One finished run: pooled test and validation metric, the test metric by site, validation after each round."""

    test: float
    validation: float
    per_site: list[float]
    trace: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


Fit = Callable[[sim.Settings, list[sim.Site], int], Result]


class Shared:
    """What several rows of a seed begin with (the hospitals' own models, FedAvg's run), trained once.

    `owed`: the processor seconds that the row under way did not spend because an earlier one had.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[int, str], tuple[Any, float]] = {}
        self.owed = 0.0

    def __call__(self, sites: list[sim.Site], what: str, make: Callable[[], Any]) -> Any:
        key = (id(sites), what)
        if key in self.kept:
            self.owed += self.kept[key][1]
        else:
            started = time.process_time()
            value = make()
            self.kept[key] = (value, time.process_time() - started)
        return self.kept[key][0]

    def forget(self) -> None:
        self.kept.clear()


SHARED = Shared()


def own_models(settings: sim.Settings, sites: list[sim.Site], seed: int) -> list[sim.Weights]:
    """Each hospital's model of its own data alone."""
    found: list[sim.Weights] = SHARED(sites, "own", lambda: [sim.alone(settings, site.train, seed) for site in sites])
    return found


def judged(settings: sim.Settings, sites: list[sim.Site], models: sim.Models, **facts: Any) -> Result:
    """A run's result from its model, or its models by site."""
    by_site = [models[i] if isinstance(models, list) else models for i in range(len(sites))]
    return Result(
        sim.score(settings, models, [site.test for site in sites]),
        sim.score(settings, models, [site.validation for site in sites]),
        [sim.score(settings, one, [site.test]) for one, site in zip(by_site, sites, strict=True)],
        **facts,
    )


@dataclass(frozen=True)
class Federated:
    """A strategy of the product with its settings. `visits`: rounds are single visits, so there are `sites` times as many."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)
    visits: bool = False
    personal: Mapping[str, Any] | None = None
    transfer: Mapping[str, Any] | None = None

    def __call__(self, settings: sim.Settings, sites: list[sim.Site], seed: int) -> Result:
        settings = settings.but(**self.local) if self.local else settings
        rounds, args = settings.rounds, dict(self.args)
        if self.visits:
            rounds *= len(sites)
            if self.name == "single_transfer":
                args = {"visits": settings.rounds, **args}
        every = len(sites) if self.visits else 1
        transfer = TransferSettings.model_validate(self.transfer) if self.transfer else None
        strategy = choose(self.name, args)

        def run() -> sim.Outcome:
            return sim.federate(settings, sites, strategy, seed, rounds=rounds, trace_every=every, transfer=transfer)

        plain = self.name == "fedavg" and not self.args and not self.local and transfer is None
        done = SHARED(sites, "fedavg", run) if plain else run()
        models = done.models
        if self.personal is not None and isinstance(models, dict):
            tuned = replace(settings, local=settings.local.model_copy(update=dict(self.personal)))
            models = [sim.alone(tuned, site.train, 7000 + seed * 10 + i, models, 1) for i, site in enumerate(sites)]
        return judged(settings, sites, models, trace=done.trace, sent=done.sent)


def cds(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Result:
    """Centralised training on the pooled images: the yardstick."""
    return judged(settings, sites, sim.centralised(settings, sites, seed))


def local_only(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Result:
    """Mean over the hospitals' own models, each scored on the pooled images; by site, each on its own."""
    models = own_models(settings, sites, seed)
    whole = [judged(settings, sites, model) for model in models]
    own = [sim.score(settings, model, [site.test]) for model, site in zip(models, sites, strict=True)]
    return Result(float(np.mean([r.test for r in whole])), float(np.mean([r.validation for r in whole])), own)


@dataclass(frozen=True)
class Ensemble:
    """The hospitals' own models, whose outputs are combined; models stay at home."""

    how: str = "mean"

    def __call__(self, settings: sim.Settings, sites: list[sim.Site], seed: int) -> Result:
        models = own_models(settings, sites, seed)
        own = [sim.score(settings, model, [s.validation]) for model, s in zip(models, sites, strict=True)]
        said = {
            name: self.said(settings, models, own, [getattr(s, name) for s in sites]) for name in ("test", "validation")
        }
        tests = [site.test for site in sites]
        return Result(
            sim.merit(tests, said["test"]),
            sim.merit([site.validation for site in sites], said["validation"]),
            [sim.merit([part], [one]) for part, one in zip(tests, said["test"], strict=True)],
            sent=[sum(one.nbytes for one in said["test"])] * len(sites),
        )

    def said(
        self, settings: sim.Settings, models: list[sim.Weights], own: Sequence[float], parts: list[Any]
    ) -> list[np.ndarray]:
        scores = list(own) if self.how == "weighted" else None
        how = "vote" if self.how == "vote" else "mean"
        return [combine([sim.probabilities(settings, m, part) for m in models], how, scores) for part in parts]


def distilled(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Result:
    """A student of the ensemble: it sees the validation images as reference studies, without their labels."""
    models = own_models(settings, sites, seed)
    reference = pool([site.validation for site in sites])
    said = combine([sim.probabilities(settings, model, reference) for model in models])
    network = NetworkSpec(name=settings.network, args=settings.args)
    images = np.asarray(reference.images, np.float32)
    student = train_student(network, images, said, settings.local, 4 * settings.rounds * settings.local.epochs, seed)
    return judged(settings, sites, student, sent=[said.nbytes] * len(sites))


def split(settings: sim.Settings, sites: list[sim.Site], seed: int) -> Result:
    """U-shaped split learning over sealed messages; as many passes over the data as the others make."""
    from benchmarks.splitting import train_split

    models, trace, sent = train_split(settings, sites, seed)
    return judged(settings, sites, models, trace=trace, sent=sent)


ALGORITHMS: dict[str, Fit] = {
    "cds": cds,
    "local": local_only,
    "fedavg": Federated("fedavg"),
    "fedavg_equal": Federated("fedavg", {"weighting": "equal"}),
    "fedavg_half": Federated("fedavg", {"share": 0.5}),
    "fedprox": Federated("fedprox", {"mu": 0.01}),
    "scaffold": Federated("scaffold", {"weighting": "samples"}),
    "fedbn": Federated("fedbn"),
    "fedbn_statistics": Federated("fedbn", {"keep": "statistics"}),
    "fednova": Federated("fednova"),
    "fedavgm": Federated("fedavgm", {"momentum": 0.5}),
    "fedadam": Federated("fedadam", {"server_lr": 0.03}),
    "fedyogi": Federated("fedyogi", {"server_lr": 0.03}),
    "fedadagrad": Federated("fedadagrad", {"server_lr": 0.03}),
    "qfedavg": Federated("qfedavg", {"lipschitz": 0.01}),
    "agnostic": Federated("agnostic"),
    "median": Federated("median"),
    "trimmed_mean": Federated("trimmed_mean", {"trim": 0.25}),
    "multi_krum": Federated("multi_krum", {"bad": 0.25}),
    "geometric_median": Federated("geometric_median"),
    "centred_clipping": Federated("centred_clipping"),
    "norm_bound": Federated("norm_bound", {"bound": 5.0}),
    "cyclic": Federated("cyclic", visits=True),
    "single": Federated("single_transfer", visits=True),
    "single_plateau": Federated("single_transfer", {"patience": 4}, visits=True),
    "personal_tuned": Federated("fedavg", personal={"epochs": 1, "lr": 3e-4}),
    "personal_head": Federated("fedper"),
    "fedavg_fp16": Federated("fedavg", transfer={"compression": "fp16"}),
    "fedavg_int8": Federated("fedavg", transfer={"compression": "int8"}),
    "fedavg_int4": Federated("fedavg", transfer={"compression": "int4"}),
    "fedavg_topk": Federated("fedavg", transfer={"compression": "topk", "share": 0.1}),
    "fedavg_lowrank": Federated("fedavg", transfer={"compression": "lowrank", "rank": 4}),
    "distilled": distilled,
    "split": split,
    "ensemble": Ensemble(),
    "ensemble_vote": Ensemble("vote"),
    "ensemble_weighted": Ensemble("weighted"),
}


def row(
    task: str, scenario: str, seed: int, name: str, settings: sim.Settings, sites: list[sim.Site]
) -> dict[str, Any]:
    """One algorithm on one seed; `seconds` of the processor, whatever else the machine does meanwhile."""
    started, SHARED.owed = time.process_time(), 0.0
    result = ALGORITHMS[name](settings, sites, seed)
    seconds = round(time.process_time() - started + SHARED.owed, 2)
    return {"task": task, "scenario": scenario, "seed": seed, "algorithm": name, "seconds": seconds, **vars(result)}


def rounds_to_reach(trace: Sequence[float], goal: float) -> int | None:
    """The first round (from 1) whose validation metric reaches `goal`."""
    return next((number for number, value in enumerate(trace, 1) if value >= goal), None)


def summary(rows: Sequence[Mapping[str, Any]], share: float = 0.95) -> dict[str, Any]:
    """Means over seeds of one task and scenario, and the ratios to CDS in per cent."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(rows, key=lambda r: int(r["seed"])):
        by_name.setdefault(str(one["algorithm"]), []).append(one)
    base = by_name.get("cds", [])
    goal = {int(one["seed"]): share * float(one["validation"]) for one in base}
    pooled = {int(one["seed"]): float(one["test"]) for one in base}
    out = {}
    for name, found in by_name.items():
        mean = float(np.mean([one["test"] for one in found]))
        same = float(np.mean([pooled.get(int(one["seed"]), np.nan) for one in found]))  # CDS of the very same seeds
        sites = np.array([one["per_site"] for one in found])
        reached = [rounds_to_reach(one["trace"], goal.get(int(one["seed"]), np.inf)) for one in found]
        out[name] = {
            "test": round(mean, 4),
            "seeds": [round(float(one["test"]), 4) for one in found],
            "validation": round(float(np.mean([one["validation"] for one in found])), 4),
            "percent_of_cds": round(100 * mean / same, 1),
            "bracket_percent": BRACKETS.get(name),
            "per_site": np.round(sites.mean(0), 4).tolist(),
            "worst_site": round(float(sites.min(1).mean()), 4),
            "spread": round(float(np.ptp(sites, axis=1).mean()), 4),
            "bias_last_minus_first": round(float((sites[:, -1] - sites[:, 0]).mean()), 4),
            "rounds_to_95_percent": reached,
            "mb_sent_per_site": round(float(np.mean([np.mean(one["sent"] or [0]) for one in found])) / 1e6, 3),
            "seconds": round(float(np.median([one["seconds"] for one in found])), 1),
        }
    return out


def kept_rows(out: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []


def measure(task: str, scenario: str, names: list[str], seeds: list[int], out: Path | None) -> list[dict[str, Any]]:
    """Every algorithm on every seed; what `out` already holds is not done again."""
    settings = SETTINGS[task]
    kept = [one for one in kept_rows(out) if (one["task"], one["scenario"]) == (task, scenario)]
    have = {(one["seed"], one["algorithm"]) for one in kept}
    for seed in seeds:
        wanted = [name for name in names if (seed, name) not in have]
        SHARED.forget()
        sites = hospitals(task, scenario, seed, settings.size) if wanted else []
        for name in wanted:
            kept.append(row(task, scenario, seed, name, settings, sites))
            print(f"{task} {scenario} seed {seed} {name}: test {kept[-1]['test']:.3f}", file=sys.stderr, flush=True)
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(kept[-1]) + "\n")
    return [one for one in kept if one["seed"] in seeds and one["algorithm"] in names]


def megabytes(settings: sim.Settings) -> float:
    """One copy of the model, in MB."""
    return len(weights.to_bytes(settings.start(0))) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--task", choices=sorted(SETTINGS), default="chest")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="dirichlet-0.3", help="of the chest X-rays")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines file that keeps finished rows")
    given = parser.parse_args()
    if not data.DATA.exists():
        print("algorithms: ../shared/data is absent; put the data there and run again", file=sys.stderr)
        return 4
    torch.set_num_threads(given.threads)
    names = given.algorithms.split(",")
    if unknown := [name for name in names if name not in ALGORITHMS]:
        print(f"algorithms: {unknown[0]!r} is unknown; choose from {', '.join(ALGORITHMS)}", file=sys.stderr)
        return 2
    scenario = NATURAL.get(given.task, given.scenario)
    rows = measure(given.task, scenario, names, [int(seed) for seed in given.seeds.split(",")], given.out)
    found = summary(rows)
    if given.json:
        facts = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
        base = found.get("cds", {}).get("test", float("nan"))
        ratios = {f"ratio_{name}_cds": round(one["test"] / base, 4) for name, one in found.items() if name != "cds"}
        print(json.dumps({"task": given.task, "scenario": scenario, "algorithms": found, **ratios, **facts}))
        return 0
    for name, one in found.items():
        print(f"{name:18} {one['test']:.3f}  {one['percent_of_cds']:6.1f} % of CDS  {one['mb_sent_per_site']:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
