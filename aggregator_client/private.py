"""Differential privacy of a project at a hospital: its terms, what a round would spend, and the budget that stops it.

The node sets rate and number of steps from its own patients, writes the spending into its catalogue and its audit log, and only
then trains. Both budgets are for the worst patient: the project's over all its rounds and runs, and the hospital's
([privacy] in node.toml) over all projects with noise.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from aggregator_client.contract import cohort_of
from aggregator_client.errors import RefusedError
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.records.budget import Figures, History, PrivacyBudget, Step, Training
from trainer.spec import PrivateSteps

if TYPE_CHECKING:
    from aggregator_client.project import ProjectDraft
    from trainer.privacy.accountant import Loss

UNFIT = (
    "scaffold", "fedbn", "fedper", "qfedavg", "agnostic", "ensemble", "split", "decentralised",
)  # fmt: skip
"""Algorithms that send or keep more than the noisy weights."""


_NORM = {"monai_dynunet": "instance", "monai_segresnet": "group", "monai_vit": "layer"}
"""What networks normalise by where a project does not say; the others by batch. The trainer looks at the network itself."""


class PrivateTerms(BaseModel):
    """Local DP-SGD. epsilon and delta: what a patient may lose in this project, over all rounds; each node sees to it.

    unit: whose presence is hidden, a "patient" with all records, or a "record" where no patient has two. noise_multiplier: the
    noise's standard deviation in units of `clip`, the norm that a unit's gradient is cut to. per_unit: the most records of a
    patient in one step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    unit: Literal["record", "patient"] = "patient"
    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(default=1e-5, gt=0, le=1e-3)
    noise_multiplier: float = Field(ge=0.1, le=1000)
    clip: float = Field(default=1.0, gt=0, le=1e4)
    per_unit: int = Field(default=8, ge=1, le=1024)


def fault(draft: ProjectDraft) -> str:
    """Why a project cannot keep its privacy.dp, naming the key; "" when it can."""
    if draft.algorithm.name in UNFIT:
        return f"algorithm.name must not be {draft.algorithm.name} with privacy.dp: it sends or keeps more than noisy weights"
    if draft.local.class_weighted:
        return "local.class_weighted must be false with privacy.dp: the counts of classes would reach the update without noise"
    if draft.personal.epochs:
        return "personal.epochs must be 0 with privacy.dp: figures of models trained without noise would leave"
    if draft.task.dimensions == 3:
        return "task.dimensions must be 2 with privacy.dp: patches of a volume are not counted by patient"
    if draft.network.args.get("norm", _NORM.get(draft.network.name, "batch")) == "batch":
        return 'network.args.norm must be "group" with privacy.dp: BatchNorm mixes the images of a batch'
    return ""


@dataclass(frozen=True)
class Plan:
    """One round's noisy training at this hospital, with the patients and studies it may use."""

    steps: PrivateSteps
    patients: frozenset[str]
    studies: frozenset[str]


def plan(config: NodeConfig, draft: ProjectDraft) -> Plan:
    """What a round would do with the training patients as they are now. Raises RefusedError when the terms cannot hold."""
    terms = draft.privacy.dp
    assert terms is not None
    entries = cohort_of(config, draft).split(draft.split.salt)["train"]
    patients = frozenset(entry.study.patient for entry in entries)
    studies = frozenset(entry.study.study_uid for entry in entries)
    if not patients:
        raise RefusedError("No patient here is in the project's training part: the round is not trained.")
    if terms.delta * len(patients) >= 1:
        raise RefusedError(
            "The project's privacy.dp.delta is too large for this hospital: it must be below 1 / patients."
        )
    if draft.task.name == "segmentation" and len(studies) > len(patients):
        raise RefusedError(
            "Some patients here have several studies, which a segmentation with privacy.dp does not count together:"
            " narrow the cohort to one study a patient."
        )
    count, local = len(patients), draft.local
    rate = _rounded_up(min(1.0, local.batch / count))
    steps = PrivateSteps(
        unit=terms.unit,
        noise_multiplier=terms.noise_multiplier,
        clip=terms.clip,
        rate=rate,
        steps=local.steps or math.ceil(count / local.batch) * local.epochs,
        expected_units=rate * count,
        per_unit=terms.per_unit,
    )
    return Plan(steps, patients, studies)


def _rounded_up(rate: float) -> float:
    """To three digits, so that a few patients more or less give the same mechanism; the training samples with that rate."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return min(1.0, round(math.ceil(rate / unit - 1e-9) * unit, 12))


def forecast(config: NodeConfig, draft: ProjectDraft) -> float:
    """The epsilon of a patient who is in all rounds of one run, with the patients as they are now."""
    from trainer.privacy.accountant import Spend, privacy_loss

    terms, steps = draft.privacy.dp, plan(config, draft).steps
    assert terms is not None
    whole = Spend(steps.noise_multiplier, steps.rate, steps.steps * draft.rounds)
    return privacy_loss([whole], terms.delta).epsilon


def charge(
    config: NodeConfig,
    audit: AuditLog,
    draft: ProjectDraft,
    made: Plan,
    *,
    project: str,
    run: str,
    number: int,
    request: str,
) -> int:
    """Record what the round spends of each patient, then allow it; returns the training's number in the budget.

    Raises RefusedError, with what is left, when a patient's budget in the project or at this hospital would be passed.
    """
    training = Training(
        project, run, number, request, made.steps.unit, made.steps.noise_multiplier, made.steps.rate, made.steps.steps
    )
    facts = {"project": project, "round": number, "run": run, "patients": len(made.patients), "unit": training.unit}
    with closing(PrivacyBudget(config.storage.catalogue)) as budget:
        try:
            which, figures = budget.spend(training, made.patients, lambda past: _judge(config, draft, made.steps, past))
        except RefusedError as refusal:
            audit.append("round.over_budget", **facts, reason=str(refusal))
            raise
    if figures is not None:
        audit.append(
            "round.budget",
            **facts,
            training=which,
            noise_multiplier=training.noise_multiplier,
            rate=training.rate,
            steps=training.steps,
            epsilon=round(figures.epsilon, 6),
            delta=figures.delta,
            site_epsilon=round(figures.site_epsilon, 6),
            site_delta=figures.site_delta,
            accountant=figures.accountant,
        )
    return which


def ended(config: NodeConfig, number: int) -> None:
    """The training's result may leave: from now on the same request is another training."""
    with closing(PrivacyBudget(config.storage.catalogue)) as budget:
        budget.ended(number)


def require_charged(made: Plan, used: list[str]) -> None:
    """Raises RefusedError when a training used a study that came after its spending was recorded."""
    if not set(used) <= made.studies:
        raise RefusedError("The cohort changed while the round was being trained: its result is not sent; ask again.")


def _judge(config: NodeConfig, draft: ProjectDraft, steps: PrivateSteps, histories: set[History]) -> Figures:
    terms, site = draft.privacy.dp, config.privacy
    assert terms is not None
    here = _after({mine for mine, _ in histories}, steps, terms.delta, terms.epsilon, "in this project")
    over = "at this hospital, over all projects"
    total = _after({whole for _, whole in histories}, steps, site.delta, site.epsilon, over)
    return Figures(here.epsilon, terms.delta, total.epsilon, site.delta, here.accountant)


def _after(pasts: set[tuple[Step, ...]], steps: PrivateSteps, delta: float, bound: float, where: str) -> Loss:
    """The worst patient's loss after `steps`. Raises RefusedError above `bound`."""
    from trainer.privacy.accountant import Spend, privacy_loss

    now = Spend(steps.noise_multiplier, steps.rate, steps.steps)
    spent = {past: [Spend(*step) for step in past] for past in pasts}
    worst = max((privacy_loss([*past, now], delta) for past in spent.values()), key=lambda loss: loss.epsilon)
    if worst.epsilon > bound:
        before = max(privacy_loss(past, delta).epsilon for past in spent.values())
        raise RefusedError(
            f"This round would bring a patient's privacy loss {where} to epsilon {worst.epsilon:.2f}; {bound:g} is allowed,"
            f" {before:.2f} is spent and {max(0.0, bound - before):.2f} is left: the round is not trained."
        )
    return worst
