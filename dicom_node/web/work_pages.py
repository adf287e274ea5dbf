"""The console's pages about work and what came of it: training, example predictions, what left the hospital.

GET  /pages/training                       the job under way, curves, subgroups, drift, graphics cards
GET  /pages/training/examples/DIGEST/N     one example prediction's picture (data-manager)
POST /training/examples/DIGEST             draw new ones with the model as trained here last (data-manager, audited)
GET  /pages/left?page=                     every outgoing message, and the verdict of the audit chain
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, Response

from dicom_node import examples
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, NodeError, RefusedError
from dicom_node.records.budget import PrivacyBudget
from dicom_node.status import write_last_error
from dicom_node.web import chart, work
from dicom_node.web.page import render
from dicom_node.web.security import Rights
from dicom_node.web.view import NodeView

PAGE = 100
_DIGEST = "[0-9a-f]{64}"
Digest = Annotated[str, Path(pattern=f"^{_DIGEST}$")]
RIGHTS: Rights = (
    ("GET", "/pages/training|/pages/left", "viewer"),
    ("GET", f"/pages/training/examples/{_DIGEST}/[0-9]+", "data-manager"),
    ("POST", f"/training/examples/{_DIGEST}", "data-manager", "training"),
)


def add_routes(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, view, audit, verifier and templates."""
    app.state.drawing = {}
    _add_training(app)
    _add_examples(app)

    @app.get("/pages/left", response_class=HTMLResponse, include_in_schema=False)
    async def left(request: Request, page: Annotated[int, Query(ge=1, le=100_000)] = 1) -> Response:
        view, total = app.state.view, app.state.view.egress_total()
        values = {"egress": _charged(view, view.egress(PAGE, (page - 1) * PAGE)), "total": total, "page": page}
        with closing(PrivacyBudget(app.state.config.storage.catalogue)) as budget:
            values["budgets"], values["worst"] = budget.projects(), budget.site_epsilon()
        values["pages"] = max(1, -(-total["messages"] // PAGE))
        values["names"] = {one["digest"]: one["name"] for one in view.projects()}
        checked = await app.state.verifier.verdict()
        values["checked"] = checked
        values["checked_at"] = datetime.fromtimestamp(checked.at, UTC).strftime("%H:%M:%S UTC") if checked else ""
        return render(app, request, "left.html", **values)


def _charged(view: NodeView, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, each with what its round had spent of the worst patient's privacy by then, where noise was added."""
    rounds = {
        (r.facts["project"], r.facts["round"]): r.facts for r in reversed(view.audit.newest("round.budget", 5000))
    }
    for one in messages:
        facts = rounds.get((one["project"], one["round"]))
        if facts is not None:
            one["spent"] = f"{one['spent']}, ε {facts['epsilon']:.3g} so far (δ {facts['delta']:.0e})"
    return messages


def _add_training(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    @app.get("/pages/training", response_class=HTMLResponse, include_in_schema=False)
    async def training(request: Request) -> Response:
        view, state = app.state.view, work.now(config)
        shown = [_project(app, one, state["job"]) for one in view.projects()]
        values: dict[str, Any] = {"training": state, "gpus": view.cards.latest(), "load": work.load()}
        values["projects"] = [one for one in shown if one["rounds"] or one["live"]]
        values["offered"] = len(shown)
        return render(app, request, "training.html", **values)


def _project(app: FastAPI, project: dict[str, Any], job: dict[str, Any] | None) -> dict[str, Any]:
    """What the page shows of one project."""
    config, digest = app.state.config, project["digest"]
    done = work.rounds(config, digest)
    live = job if job and job.get("project") == digest else None
    scored = [one for one in done if one.get("subgroups")]
    return {
        **project,
        "rounds": done,
        "live": live,
        "left_s": work.project_left(done, int(live["rounds"])) if live else None,
        "drift": work.drift(config).get(digest[:16], ""),
        "subgroups": scored[-1]["subgroups"] if scored else {},
        "subgroups_round": scored[-1]["round"] if scored else None,
        "metric_chart": chart.rounds([one for one in done if one.get("metrics")]),
        "loss_chart": chart.losses([one for one in done if one.get("kind") == "train"]),
        "live_chart": chart.steps(live["curve"]) if live else "",
        "examples": examples.known(config, digest),
        "drawing": app.state.drawing.get(digest),
        "model": examples.model_folder(config, digest).exists(),
    }


def _add_examples(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    async def draw(digest: str) -> None:
        try:
            await asyncio.to_thread(examples.draw, config, digest)
            write_last_error(config.storage.run, "examples", "")
        except NodeError as error:
            write_last_error(config.storage.run, "examples", str(error))
        finally:
            del app.state.drawing[digest]

    @app.post("/training/examples/{digest}", tags=["training"])
    async def start(request: Request, digest: Digest) -> dict[str, Any]:
        """Predict a few held-out studies with the model as trained here last, and draw the result over their images."""
        if app.state.drawing:
            raise RefusedError("Examples are being drawn already: wait for them.")
        examples.require_model(config, digest)
        app.state.audit.append("examples.drawn", project=digest, by=request.state.caller.name)
        app.state.drawing[digest] = asyncio.create_task(draw(digest))
        return {"said": "Predicting a few held-out studies; they appear below within a minute or so."}

    @app.get("/pages/training/examples/{digest}/{number}", include_in_schema=False)
    async def picture(digest: Digest, number: Annotated[int, Path(ge=0, le=99)]) -> Response:
        file = examples.folder(config, digest) / f"{number}.png"
        if not file.exists():
            raise InputError("There is no such example: draw new ones on the training page.")
        return Response(file.read_bytes(), media_type="image/png")
