"""The model card of a run: what the model is for, who trained it how, and what it is worth at each site.

Every figure is of the very model that is handed out, on the sites' own held-out patients. Sites differ, so the worst of them and
the spread stand beside the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator_client.coordinator.state import RunState, SiteRound
from aggregator_client.project import ProjectDocument

FORMAT = "fedpacs-card-1"


def fairness(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Mean, worst and best site, spread (best minus worst) and standard deviation of a metric by site; None without any."""
    if not metrics:
        return dict.fromkeys(("mean", "worst", "worst_site", "best", "best_site", "spread", "deviation"))
    worst, best = (pick(sorted(metrics), key=lambda name: metrics[name]) for pick in (min, max))
    mean = sum(metrics.values()) / len(metrics)
    variance = sum((value - mean) ** 2 for value in metrics.values()) / len(metrics)
    return {
        "mean": mean,
        "worst": metrics[worst],
        "worst_site": worst,
        "best": metrics[best],
        "best_site": best,
        "spread": metrics[best] - metrics[worst],
        "deviation": variance**0.5,
    }


def card(document: ProjectDocument, digest: str, state: RunState) -> dict[str, Any]:
    """The card as JSON values."""
    kept = state.kept_model(document.stop.keep)
    cells = _scoring(state, kept)
    by_site = {cell.site: cell.metric for cell in cells if cell.metric is not None}
    personal = {
        cell.site: float(cell.metrics["personal"][document.metric])
        for cell in cells
        if isinstance(cell.metrics.get("personal"), dict) and cell.metrics["personal"].get(document.metric) is not None
    }
    closed = {one.number: one.sha256 for one in state.rounds()}
    return {
        "format": FORMAT,
        "name": document.name,
        "version": document.version,
        "purpose": document.purpose,
        "project": digest,
        "sha256": closed.get(kept, ""),
        "coordinator": document.coordinator.name,
        "network": document.network.model_dump(mode="json"),
        "task": document.task.model_dump(mode="json"),
        "algorithm": document.algorithm.model_dump(mode="json"),
        "privacy": document.privacy.model_dump(mode="json"),
        "differential_privacy": _private(document),
        "transfer": document.transfer.model_dump(mode="json"),
        "rounds": state.last_checkpoint(),
        "kept_round": kept,
        "metric": document.metric,
        "measured_on": "each site's own held-out patients",
        "sites": [{"site": cell.site, "cases": cell.cases, "metric": cell.metric} for cell in cells],
        "fairness": fairness(by_site),
        "personal": {"sites": personal, "fairness": fairness(personal)} if personal else None,
    }


def _private(document: ProjectDocument) -> dict[str, Any] | None:
    """What each site's node kept to: no training patient lost more by the updates; None without noise."""
    terms = document.privacy.dp
    if terms is None:
        return None
    return {
        "unit": terms.unit,
        "epsilon": terms.epsilon,
        "delta": terms.delta,
        "noise_multiplier": terms.noise_multiplier,
        "clip": terms.clip,
        "accountant": "PLD (dp-accounting), RDP where it cannot be computed",
        "neighbours": f"data sets with and without one {terms.unit}",
        "holds": "for the updates of every site, as its own node bounds it; not for figures on held-out patients",
    }


def _scoring(state: RunState, model: int) -> Sequence[SiteRound]:
    """The accepted cells whose metrics are of `model`: the round after it, or the final evaluation."""
    cells = [cell for cell in state.table() if cell.state == "accepted"]
    after = model + 1 if model < state.last_checkpoint() else max((cell.round for cell in cells), default=0)
    return [cell for cell in cells if cell.round == after and after > model]
