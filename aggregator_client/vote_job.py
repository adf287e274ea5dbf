"""A hospital's ballot on a candidate model: measured on its own held-out patients against the model the round began with.

The candidate's figures stay here: what leaves is a vote and one of four reasons (aggregator_client.votes).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.messages import Message
from aggregator_client.secagg.journal import Journal
from aggregator_client.secagg.stages import base_of
from aggregator_client.training_log import TrainingLog
from aggregator_client.votes import REASONS, ballot, judged
from trainer import weights

if TYPE_CHECKING:
    from aggregator_client.local_job import LocalJob


def vote(job: LocalJob, work: Path, head: dict[str, Any]) -> Message:
    """The answer with the signed ballot, recorded in the audit log. Raises RefusedError for a round that was not trained here."""
    document, context = job.document, job.context
    if not document.vote_share:
        raise RefusedError("This project has no vote on its models: the request is refused.")
    trained = work.with_name(f"{work.name.removesuffix('-vote')}-train")
    if not (trained / "out" / "result.json").exists():
        raise RefusedError(
            f"Round {context.round} was not trained here: there is no model to compare the candidate with."
        )
    given = weights.load(trained / "given.safetensors")
    reason = _reason(job, work, trained, given)
    base, candidate = base_of(given), hashlib.sha256(job.request.parts["model"]).hexdigest()
    statement = ballot(
        job.node.keys.signing, job.node.site, reason, project=context.project_digest, run=job.run_id, round=context.round,
        base=base, candidate=candidate, voters=_voters(job),
    )  # fmt: skip
    if document.privacy.summed:
        with closing(Journal(job.node.config.storage.federation)) as journal:
            journal.voted(context.project_digest, job.run_id, context.round, base)
    job.node.audit.append(
        "round.voted", project=context.project_digest, round=context.round, candidate=candidate, vote=REASONS[reason],
        reason=reason,
    )  # fmt: skip
    return Message({**head, "run": job.run_id, "kind": "ballot"}, {"vote": statement})


def _voters(job: LocalJob) -> list[str]:
    """Who is asked, as every ballot repeats it. Raises RefusedError when these are fewer or others than were approved."""
    voters, terms = sorted(map(str, job.request.header.get("roster", []))), job.document.privacy
    known = not terms.summed or set(voters) <= set(terms.secure_aggregation.sites)
    if (
        not known
        or job.node.site not in voters
        or len(set(voters)) != len(voters)
        or len(voters) < job.document.min_sites
    ):
        raise RefusedError("The vote is among other or fewer hospitals than this one approved: it does not take part.")
    return voters


def _reason(job: LocalJob, work: Path, trained: Path, given: weights.Weights) -> str:
    candidate = weights.from_bytes(job.request.parts.get("model", b""))
    if {n: (v.dtype, v.shape) for n, v in candidate.items()} != {n: (v.dtype, v.shape) for n, v in given.items()}:
        raise MessageError("The candidate has other arrays than the model that was trained here: it is not voted on.")
    before = json.loads((trained / "out" / "result.json").read_text()).get("metrics")
    if any(value.dtype.kind == "f" and not np.isfinite(value).all() for value in candidate.values()):
        return "not finite"
    if not before:
        return "no held-out patients"
    log = TrainingLog(job.node.config, job.document, job.context)
    try:
        after = job.result(work, job.spec(work), log).get("metrics")
    finally:
        log.ended()
    return judged(before, after, job.document.metric, job.document.privacy.vote.tolerance)
