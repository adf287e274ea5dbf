"""The yardsticks the federation is held against, and one judge for all models. Only a simulation can compute them.

    python -m aggregator_client.demo.yardsticks PLAN.json local   one model per hospital, from its own images alone
    python -m aggregator_client.demo.yardsticks PLAN.json cds     one model from the pooled images (centralised)
    python -m aggregator_client.demo.yardsticks PLAN.json judge   AUC of every model on everybody's held-out patients

Both yardsticks use the project's own network, settings and trainer, and pass over each image as often as the federation
does (rounds × local epochs). The judge gives all models the same images through the same code.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from trainer import networks, weights
from trainer.cohort import load_cohort
from trainer.errors import TrainerError
from trainer.evaluation.classification import macro_auc, predict
from trainer.job import run
from trainer.local.data import Samples
from trainer.spec import JobSpec


class SiteData(BaseModel):
    """The de-identified side of one hospital."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    catalogue: Path
    dataset: Path


class Plan(BaseModel):
    """What to train and judge. `job` holds the JobSpec keys that the project fixes (network, task, cohort, local …).

    `federated` names the global model after 0, 1, 2 … rounds, as safetensors files in that order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sites: list[SiteData]
    job: dict[str, Any]
    rounds: int
    federated: list[Path]
    out: Path

    def spec(self, site: SiteData, name: str, **more: Any) -> JobSpec:
        """The site's JobSpec with its files below out/name."""
        folder = self.out / name
        fixed = {"catalogue": site.catalogue, "dataset": site.dataset, "cache": self.out / "cache", "out": folder}
        return JobSpec.model_validate({**self.job, "threads": 1, "device": "cpu", **fixed, **more})

    def settings(self, sites: int = 1) -> dict[str, Any]:
        """The local settings stretched to the whole federation's work: rounds × epochs, or rounds × steps a site."""
        local = dict(self.job.get("local", {}))
        local["epochs"] = self.rounds * int(local.get("epochs", 1))
        local["schedule"] = "cosine"  # one run, with the curve the coordinator lowers the federation's rate by
        if local.get("steps"):
            local["steps"] = self.rounds * int(local["steps"]) * sites
        return local

    def model(self, name: str) -> Path:
        return self.out / name / "model.safetensors"


def train_local(plan: Plan) -> dict[str, Any]:
    """One model per hospital; {site: result}."""
    return {
        site.name: run(plan.spec(site, f"local-{number}", kind="train", evaluate_on="test", local=plan.settings()))
        for number, site in enumerate(plan.sites)
    }


def train_cds(plan: Plan) -> dict[str, Any]:
    """One model from everybody's training images; {"cds": result}."""
    others = [{"catalogue": site.catalogue, "dataset": site.dataset} for site in plan.sites[1:]]
    settings = plan.settings(len(plan.sites))
    spec = plan.spec(plan.sites[0], "cds", kind="train", evaluate_on="test", local=settings, pooled=others)
    return {"cds": run(spec)}


def judge(plan: Plan) -> dict[str, Any]:
    """Every model's macro one-vs-rest AUC on each hospital's held-out patients and on their union."""
    held_out = {site.name: _held_out(plan, site) for site in plan.sites}
    patients = sum(len(np.unique(part.groups)) for part in held_out.values() if part.groups is not None)
    return {
        "patients": patients,
        "images": sum(len(part) for part in held_out.values()),
        "local": {
            site.name: score(plan, plan.model(f"local-{number}"), held_out) for number, site in enumerate(plan.sites)
        },
        "cds": score(plan, plan.model("cds"), held_out),
        "federated": [score(plan, path, held_out) for path in plan.federated],
    }


def score(plan: Plan, path: Path, held_out: dict[str, Samples]) -> dict[str, Any]:
    """{"auc": on the union, "per_site": {site: AUC on its own}} of the model in `path`."""
    spec = plan.spec(plan.sites[0], "judge")
    model = networks.build(spec.network.name, spec.network.args)
    weights.into_module(model, weights.load(path))
    probabilities = {name: predict(model, samples) for name, samples in held_out.items()}
    per_site = {name: _auc(samples.labels, probabilities[name], name) for name, samples in held_out.items()}
    labels = np.concatenate([samples.labels for samples in held_out.values()])
    return {"auc": _auc(labels, np.concatenate(list(probabilities.values())), "all hospitals"), "per_site": per_site}


def _held_out(plan: Plan, site: SiteData) -> Samples:
    return load_cohort(plan.spec(site, "judge", evaluate_on="test")).samples["test"]


def _auc(labels: np.ndarray, probabilities: np.ndarray, where: str) -> float:
    value = macro_auc(labels, probabilities)
    if value is None:
        raise TrainerError(f"the held-out patients of {where} show one finding only, so there is no AUC to compare")
    return value


def main(arguments: list[str]) -> int:
    work = {"local": train_local, "cds": train_cds, "judge": judge}
    if len(arguments) != 2 or arguments[1] not in work:
        print("usage: python -m aggregator_client.demo.yardsticks PLAN.json local|cds|judge", file=sys.stderr)
        return 2
    plan = Plan.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        found = work[arguments[1]](plan)
    except TrainerError as error:
        print(f"yardsticks: {error}", file=sys.stderr)
        return error.exit_code
    found["seconds"] = round(time.monotonic() - started, 2)
    (plan.out / f"{arguments[1]}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
