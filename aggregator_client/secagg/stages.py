"""A node's answer to one stage of secure aggregation: the round's trained model, the approved charter and the protocol's client.

| stage | the request's parts, besides `plan` | the answer's parts |
|---|---|---|
| sum.advert | | advert |
| sum.shares | adverts | header, boxes |
| sum.masked | headers, boxes | statement, vector |
| sum.agree | survivors | agree |
| sum.unmask | agreements | reveal, shares |

The update is read from the folder its training left it in; the change of the model is masked, never the model itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.invitations import Invitation
from aggregator_client.keys import NodeKeys
from aggregator_client.messages import Message
from aggregator_client.project import ProjectDocument
from aggregator_client.sealing import Context
from aggregator_client.secagg.client import Charter, SecureClient
from aggregator_client.secagg.journal import Journal
from aggregator_client.secagg.ring import LIMBS
from aggregator_client.trust import Trust
from dicom_node.config import NodeConfig
from trainer import weights


class Node(Protocol):
    """What is needed of the executor."""

    config: NodeConfig
    invitation: Invitation
    keys: NodeKeys
    trust: Trust


def charter(document: ProjectDocument, digest: str) -> Charter:
    """What a hospital approves with a project of this digest."""
    terms = document.privacy.secure_aggregation
    fewest = terms.group_size or document.min_sites
    again = document.privacy.vote.retries if document.vote_share else 0
    return Charter(digest, terms.keys, fewest, terms.ring, terms.clip, terms.weight_cap, again)


def change(given: weights.Weights, trained: weights.Weights) -> NDArray[np.float32]:
    """What training changed, as one vector (the floating arrays in the order of their names), then room for the weight."""
    before, layout = weights.flatten(given)
    after, same = weights.flatten(trained)
    if [one[:2] for one in layout] != [one[:2] for one in same]:
        raise MessageError("The trained model has other arrays than the one it was trained from: nothing is sent.")
    made = np.zeros(before.size + LIMBS, np.float32)
    np.subtract(after, before, out=made[: before.size])
    return made


def base_of(model: Mapping[str, Any]) -> str:
    """How a plan names the model of a round: hex SHA-256 of its safetensors bytes."""
    return hashlib.sha256(weights.to_bytes(model)).hexdigest()


def answer(node: Node, document: ProjectDocument, context: Context, request: Message, head: dict[str, Any]) -> Message:
    """The stage's answer. Raises FederationError for whatever may not be done."""
    if not document.privacy.summed:
        raise RefusedError("This project does not use secure aggregation: the request is refused.")
    parts = request.parts
    run = str(request.header.get("run", ""))
    folder = _trained(node, context, run)
    given = weights.load(folder / "given.safetensors")
    with closing(Journal(node.config.storage.federation)) as journal:
        client = SecureClient(
            node.invitation.site,
            node.keys.signing,
            node.trust.present.signing,
            charter(document, context.project_digest),
            parts.get("plan", b""),
            journal,
        )
        facts = (client.plan.run, client.plan.round, client.plan.base)
        if facts != (run, context.round, base_of(given)):
            client.give_up()
            raise RefusedError("The plan is for another round or model than this hospital trained: it is not followed.")
        return Message(head, _stage(client, context.kind, parts, document, folder, given))


def _stage(
    client: SecureClient,
    kind: str,
    parts: Mapping[str, bytes],
    document: ProjectDocument,
    folder: Path,
    given: weights.Weights,
) -> Mapping[str, bytes]:
    if kind == "sum.advert":
        return {"advert": client.advert()}
    if kind == "sum.shares":
        return client.shares(parts.get("adverts", b"")).parts
    if kind == "sum.agree":
        return {"agree": client.agree(parts.get("survivors", b""))}
    if kind == "sum.unmask":
        return client.unmask(parts.get("agreements", b"")).parts
    dealt = Message({}, {name: parts[name] for name in ("headers", "boxes") if name in parts})
    update = change(given, weights.load(folder / "out" / "model.safetensors"))
    out = update.view("<u4") if client.plan.bits == 32 else None  # masked where it lies
    statement, vector = client.masked(dealt, update[:-LIMBS], _weight(document, folder), out)
    return {"statement": statement, "vector": vector.tobytes()}


def _weight(document: ProjectDocument, folder: Path) -> int:
    """How much this hospital counts: its samples up to the cap, or the same as every other."""
    cap = document.privacy.secure_aggregation.weight_cap
    if document.algorithm.args.get("weighting") == "equal":
        return cap
    return max(1, min(cap, int(json.loads((folder / "out" / "result.json").read_text())["samples"])))


def _trained(node: Node, context: Context, run: str) -> Path:
    """Where this round's training left its model. Raises RefusedError when there was none."""
    name = f"{context.project_digest[:16]}-{run}-{context.round:04d}-train"
    folder = node.config.storage.federation / "work" / name
    if Path(name).name != name or not (folder / "out" / "result.json").exists():
        raise RefusedError(f"Round {context.round} was not trained here: there is nothing to sum.")
    return folder
