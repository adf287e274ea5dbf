"""A site's answers about reference studies, and what it receives of the ensemble: only approved studies are answered.

Masks and scores of a hospital's own patients can identify them. So a site answers for nothing but files whose SHA-256 stands in
the project document that this hospital approved: the coordinator cannot ask about any other file, and the site's own studies
are never looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aggregator_client.errors import MessageError, RefusedError
from aggregator_client.messages import Message
from aggregator_client.node import Node
from aggregator_client.project import ProjectDocument
from aggregator_client.sealing import Context
from dicom_node.supervise import start_child
from trainer import weights
from trainer.modelcard import WEIGHTS, ModelCard, write_card


def answer(
    node: Node, document: ProjectDocument, context: Context, request: Message, kept: Path, work: Path, deadline: float
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What this site's own model says about the reference studies in the request: header facts and parts.

    `kept` holds own.safetensors. Raises RefusedError for a file that is not in the approved project, and without a model.
    """
    started = time.monotonic()
    for name, data in request.parts.items():
        digest = hashlib.sha256(data).hexdigest()
        if digest != name or digest not in document.reference.digests:
            raise RefusedError(
                "A file in the request is none of the reference studies this hospital approved: nothing is said about it."
            )
    if not request.parts or not (kept / "own.safetensors").exists():
        raise RefusedError(f"{node.site} has no model of its own in this run, or was asked about no study.")
    model, studies, out = work / "model", work / "reference", work / "outputs"
    for folder in (model, studies, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    digest = weights.save(model / WEIGHTS, weights.load(kept / "own.safetensors"))
    write_card(model, ModelCard(name=document.name[:60], network=document.network, task=document.task, sha256=digest))
    for name, data in request.parts.items():
        (studies / f"{name}.dcm").write_bytes(data)
    _predict(node, model, studies, out, deadline)
    parts = {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.is_file()}
    node.audit.append(
        "reference.answered",
        project=context.project_digest,
        round=context.round,
        studies=len(request.parts),
        outputs=len(parts),
    )
    return {"samples": len(request.parts), "seconds": round(time.monotonic() - started, 3)}, parts


def _predict(node: Node, model: Path, studies: Path, out: Path, deadline: float) -> None:
    argv = [sys.executable, "-m", "aggregator_client.reference_job", *map(str, (model, studies, out))]
    process = start_child([*argv, node.config.federation.device], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said, errors = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        raise RefusedError(f"{node.site} could not answer within the {deadline:g} s of a round.") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["without a word"]
        raise RefusedError(f"{node.site} could not answer about the reference studies ({lines[-1][:300]}).")
    set_aside = json.loads(said.splitlines()[-1])["set_aside"]
    if set_aside:
        raise RefusedError(
            f"{node.site} could not read {len(set_aside)} of the reference studies: {next(iter(set_aside.values()))}"
        )


def receive(node: Node, document: ProjectDocument, context: Context, request: Message) -> dict[str, Any]:
    """Keep what the coordinator made of all sites' outputs in federation/results; returns header facts.

    Files are written whole or not at all, under names of our own making. Raises MessageError for a name that is no plain one.
    """
    home = node.config.storage.federation / "results" / context.project_digest[:16]
    home.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, data in sorted(request.parts.items()):
        plain = name.replace(".", "").replace("-", "").replace("_", "")
        if not plain.isalnum() or name.startswith(".") or len(name) > 120:
            raise MessageError("A result of the ensemble has a name that is none: it is not kept.")
        part = home / f"{name}.part"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(home / name)
        digests[name] = hashlib.sha256(data).hexdigest()
    node.audit.append(
        "ensemble.received",
        project=context.project_digest,
        round=context.round,
        files=digests,
        name=document.name,
    )
    return {"samples": len(digests), "seconds": 0.0, "received": digests}
