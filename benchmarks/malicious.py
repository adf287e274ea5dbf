"""Robust rules against bad hospitals: three of ten attack, on real chest X-rays; macro AUC of the global model on test patients.

    python benchmarks/malicious.py --json [--seeds 0] [--rules fedavg,median] [--attacks none,label_flip] [--out RESULTS.jsonl]

Ten hospitals with equal class mixes and a scanner look each, three of them bad. Attacks: label_flip (trains on shifted labels),
sign_flip (sends the reverse of its change), scaling (label_flip's change ten times), alie (the mean of the good changes minus
1.5 standard deviations, Baruch et al. 2019) and ipm (minus three times the mean of the good changes, Xie et al. 2020). The
last two know every good update. A model that is destroyed (its loss or weights are no numbers) scores 0.5.
Needs ../shared/data/cxr-pneumonia.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aggregator_client.coordinator.strategies import choose
from aggregator_client.errors import MessageError
from benchmarks import simulation as sim
from benchmarks import sites as data
from benchmarks.algorithms import CHEST, kept_rows
from trainer.errors import TrainerError

SITES, BAD = 10, 3
SETTINGS = replace(CHEST, rounds=10)
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {"weighting": "equal"},
    "median": {},
    "trimmed_mean": {"trim": 0.3},
    "krum": {"bad": 0.3},
    "multi_krum": {"bad": 0.3},
    "geometric_median": {},
    "centred_clipping": {},
    "norm_bound": {"bound": 2.0},
}
ATTACKS = ("none", "label_flip", "sign_flip", "scaling", "alie", "ipm")


def attacked(name: str, current: sim.Weights, updates: list[sim.Weights]) -> list[sim.Weights]:
    """What the sites send; the first BAD of them are bad. Arrays of integers are sent as they are."""
    floats = [n for n, value in current.items() if value.dtype.kind == "f"]
    good = updates[BAD:]
    mean = {n: np.mean([u[n] - current[n] for u in good], axis=0) for n in floats}
    spread = {n: np.std([u[n] - current[n] for u in good], axis=0) for n in floats}

    def bad(own: sim.Weights) -> sim.Weights:
        change = {n: own[n] - current[n] for n in floats}
        if name == "sign_flip":
            change = {n: -c for n, c in change.items()}
        elif name == "scaling":
            change = {n: 10 * c for n, c in change.items()}
        elif name == "alie":
            change = {n: mean[n] - 1.5 * spread[n] for n in floats}
        elif name == "ipm":
            change = {n: -3 * mean[n] for n in floats}
        return {**own, **{n: (current[n] + change[n]).astype(current[n].dtype) for n in floats}}

    return [bad(own) for own in updates[:BAD]] + good


def hospitals(seed: int, attack: str) -> list[sim.Site]:
    """Ten hospitals; under label_flip and scaling the bad ones learn every class as the next one."""
    sites = [sim.Site(*parts) for parts in data.chest(seed, SETTINGS.size, None, True, SITES)]
    if attack not in ("label_flip", "scaling"):
        return sites
    wrong = [replace(site, train=replace(site.train, labels=(site.train.labels + 1) % 3)) for site in sites[:BAD]]
    return wrong + sites[BAD:]


def run(rule: str, attack: str, seed: int) -> dict[str, Any]:
    """One rule under one attack."""
    started, sites = time.monotonic(), hospitals(seed, attack)
    active = attack not in ("none", "label_flip")
    tamper = (lambda number, current, updates: attacked(attack, current, updates)) if active else None
    try:
        done = sim.federate(
            SETTINGS, sites, choose(rule, RULES[rule]), seed, tamper=tamper, trace_every=SETTINGS.rounds + 1
        )
        score = sim.score(SETTINGS, done.models, [site.test for site in sites])
    except (TrainerError, MessageError, ValueError):
        score = 0.5
    return {
        "rule": rule,
        "attack": attack,
        "seed": seed,
        "test": round(score, 4),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--out", type=Path, help="JSON lines file that keeps finished rows")
    given = parser.parse_args()
    if not (data.DATA / "cxr-pneumonia").exists():
        print("malicious: ../shared/data/cxr-pneumonia is absent; put the data there and run again", file=sys.stderr)
        return 4
    torch.set_num_threads(1)
    rows = kept_rows(given.out)
    have = {(one["rule"], one["attack"], one["seed"]) for one in rows}
    for seed in map(int, given.seeds.split(",")):
        for attack in given.attacks.split(","):
            for rule in given.rules.split(","):
                if (rule, attack, seed) in have:
                    continue
                rows.append(run(rule, attack, seed))
                print(f"seed {seed} {attack} {rule}: {rows[-1]['test']:.3f}", file=sys.stderr, flush=True)
                if given.out:
                    with given.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    table: dict[str, dict[str, float]] = {}
    for rule in given.rules.split(","):
        for attack in given.attacks.split(","):
            found = [one["test"] for one in rows if (one["rule"], one["attack"]) == (rule, attack)]
            table.setdefault(rule, {})[attack] = round(float(np.mean(found)), 4)
    if given.json:
        print(json.dumps({"sites": SITES, "bad": BAD, "auc": table}))
        return 0
    print(f"{'':18}" + "".join(f"{attack:>12}" for attack in given.attacks.split(",")))
    for rule, values in table.items():
        print(f"{rule:18}" + "".join(f"{value:12.3f}" for value in values.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
