"""A project's attack trial at a hospital: run on its own training images, recorded, and asked for before an update leaves.

The picture (originals beside reconstructions) shows patients: it lies in federation/attacks, for its owner's eyes alone, and
nothing sends it. The record in the audit log holds figures only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aggregator_client.errors import RefusedError
from aggregator_client.project import ProjectDocument
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from trainer.spec import JobSpec

KIND = "attack.run"
TARGETS, STEPS = 16, 200
"""An attack with fewer images (where the site has them) or shorter searches is recorded and does not satisfy a bound."""


def run(
    config: NodeConfig,
    document: ProjectDocument,
    targets: int,
    steps: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Attack the first step from the project's initial model; returns the figures, and "picture", after they are recorded.

    Errors: RefusedError for a project that is no classification of images, CohortError with too few patients.
    """
    if document.task.name != "classification" or document.algorithm.name == "split":
        raise RefusedError(
            "The attack kit knows classification of images by whole models: this project cannot be tried with it."
        )
    from trainer import networks, weights
    from trainer.attacks.inversion import Search
    from trainer.attacks.picture import draw
    from trainer.attacks.trial import Attack, Noise
    from trainer.cohort import load_cohort

    model = networks.build(document.network.name, document.network.args)
    start = networks.initial_weights(document.network.name, document.network.args, document.seed)
    weights.into_module(model, start)
    folder = config.storage.federation / "attacks" / document.digest()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    terms = document.privacy.dp
    attack = Attack(
        batch=document.local.batch,
        noise=None if terms is None else Noise(terms.clip, terms.noise_multiplier),
        smoothing=document.local.label_smoothing,
        targets=targets,
        search=Search(steps=steps),
    )
    trial = attack.run(model, load_cohort(_spec(config, document, folder)).samples["train"], progress)
    facts = {"project": document.digest(), "version": version("fedpacs"), "steps": steps, **trial.facts()}
    picture = draw(trial, folder / "picture.png")
    with closing(AuditLog(config.storage.audit)) as audit:
        audit.append(KIND, **facts)
    return {**facts, "picture": str(picture)}


def fault(config: NodeConfig, audit: AuditLog, digest: str) -> str:
    """Why the hospital's [privacy] attack_bound keeps a project's update back, in one sentence; "" when it does not."""
    bound = config.privacy.attack_bound
    if bound is None:
        return ""
    mine = [
        one
        for one in audit.records(KIND)
        if one.facts["project"] == digest and one.facts["version"] == version("fedpacs")
    ]
    if not mine:
        return "no attack on this project with the installed version of fedpacs is on record"
    last = mine[-1].facts
    if not last["calibrated"]:
        return "the last attack failed on bare gradients too, so it says nothing of the defence"
    if last["steps"] < STEPS or last["plain"]["targets"] < min(TARGETS, last["plain"]["candidates"]):
        return (
            f"the last attack was too small to count: at least {TARGETS} images (--targets) and {STEPS} steps (--steps)"
        )
    if last["leaves"]["share"] > bound:
        return f"the last attack told {last['leaves']['share']:.0%} of the images apart and {bound:.0%} is allowed"
    return ""


def require_resisted(config: NodeConfig, audit: AuditLog, digest: str) -> None:
    """Raises RefusedError while `fault` finds one. The coordinator reads the sentence: it holds no figure of this hospital."""
    if fault(config, audit, digest):
        raise RefusedError(
            "This hospital sends no update before an attack on it has stayed under the hospital's bound; its staff see more"
            " with `fedpacs audit attack`."
        )


def _spec(config: NodeConfig, document: ProjectDocument, folder: Path) -> JobSpec:
    storage = config.storage
    return JobSpec(
        kind="train",
        catalogue=storage.catalogue,
        dataset=storage.dataset,
        cache=storage.federation / "cache",
        network=document.network,
        task=document.task,
        cohort=document.cohort_rule.model_dump(mode="json"),
        contract=document.contract.of_study,
        split_salt=document.split.salt,
        local=document.local,
        seed=document.seed,
        out=folder,
    )
