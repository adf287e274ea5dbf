"""Runs on the dashboard: each hospital and round, curves, comparison, the privacy ledger, steering, and the evidence.

GET  /                              runs, and projects ready to start
GET  /runs/DIGEST                   one run; GET /runs, /runs/DIGEST/facts as JSON
GET  /pages/compare?run=A&run=B     several runs beside each other
GET  /pages/privacy                 what each hospital gave, and under which protection; GET /privacy as JSON
GET  /runs/DIGEST/evidence          the evidence bundle (zip)
POST /runs/DIGEST/start|pause|resume|stop
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, Response

from aggregator_client.coordinator import evidence, overview
from aggregator_client.coordinator.dashboard import control, curves
from aggregator_client.coordinator.dashboard.page import render
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.project import SignedProject
from aggregator_client.sheet import plain_words
from dicom_node.web.security import Rights

_DIGEST = "[0-9a-f]{64}"
Digest = Annotated[str, Path(pattern=f"^{_DIGEST}$", description="The project's SHA-256.")]
RIGHTS: Rights = (
    ("GET", f"/|/runs/{_DIGEST}|/pages/compare|/pages/privacy", "viewer"),
    ("GET", f"/runs|/runs/{_DIGEST}/facts|/privacy", "viewer", "runs"),
    ("GET", f"/runs/{_DIGEST}/evidence", "coordinator", "runs"),
    ("POST", f"/runs/{_DIGEST}/(start|pause|stop|resume)", "coordinator", "runs"),
)
_ACTIONS = {"start": control.start, "pause": control.pause, "resume": control.resume, "stop": control.stop}


def add_routes(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, audit and templates."""
    _add_pages(app)
    _add_facts(app)
    _add_control(app)


def _add_pages(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def home(request: Request) -> Response:
        runs = await asyncio.to_thread(_all, config)
        return await render(
            app, request, "coordinator.html", runs=runs[::-1], startable=control.startable(config), url=config.url
        )

    @app.get("/runs/{digest}", response_class=HTMLResponse, include_in_schema=False)
    async def run(request: Request, digest: Digest) -> Response:
        folder = overview.one_run(config, digest)
        facts = await asyncio.to_thread(overview.overview, folder)
        table = await asyncio.to_thread(overview.table, folder)
        signed = SignedProject.read(folder / "project.json")
        values = {
            "run": facts,
            "table": table,
            "words": plain_words(signed.document, signed.digest),
            "curves": curves.draw(table),
            "scored": next((row for row in reversed(facts["history"]) if row["mean_metric"] is not None), None),
        }
        return await render(app, request, "run.html", **values)

    @app.get("/pages/compare", response_class=HTMLResponse, include_in_schema=False)
    async def compare(request: Request, run: Annotated[list[str], Query(max_length=64)] = []) -> Response:  # noqa: B006
        runs = await asyncio.to_thread(_all, config)
        chosen = [one for one in runs if one["digest"] in run] if run else runs[-2:]
        values = {"runs": runs[::-1], "chosen": chosen, "curves": curves.compare(chosen)}
        return await render(app, request, "compare.html", **values)

    @app.get("/pages/privacy", response_class=HTMLResponse, include_in_schema=False)
    async def privacy(request: Request) -> Response:
        return await render(app, request, "privacy.html", ledger=await asyncio.to_thread(_ledger, config))


def _add_facts(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    @app.get("/runs", tags=["runs"])
    async def runs() -> dict[str, Any]:
        """Every run, as `fedpacs coordinator status --json` tells it."""
        return {"coordinator": config.name, "url": config.url, "runs": await asyncio.to_thread(_all, config)}

    @app.get("/runs/{digest}/facts", tags=["runs"])
    async def run_facts(digest: Digest) -> dict[str, Any]:
        """One run: its rounds, and every hospital's figures."""
        return await asyncio.to_thread(overview.overview, overview.one_run(config, digest))

    @app.get("/privacy", tags=["runs"])
    async def privacy() -> dict[str, Any]:
        """What each hospital gave to each run, and under which protection."""
        return {"ledger": await asyncio.to_thread(_ledger, config)}


def _add_control(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    @app.post("/runs/{digest}/{action}", tags=["runs"])
    async def steer(
        request: Request, digest: Digest, action: Literal["start", "pause", "resume", "stop"]
    ) -> dict[str, Any]:
        """Start a signed project; pause after the round under way; resume; or stop at once, keeping what is there."""
        app.state.audit.append(f"run.{action}", project=digest, by=request.state.caller.name)
        await asyncio.to_thread(_ACTIONS[action], config, digest)
        return {"project": digest, "done": action}

    @app.get("/runs/{digest}/evidence", tags=["runs"])
    async def bundle(request: Request, digest: Digest) -> Response:
        """Model, project, participants, figures and signatures, verifiable by anybody."""
        with tempfile.TemporaryDirectory() as folder:
            file = FilePath(folder) / "evidence.zip"
            await asyncio.to_thread(evidence.export, config, overview.one_run(config, digest), file)
            data = file.read_bytes()
        app.state.audit.append("evidence.exported", project=digest, by=request.state.caller.name)
        name = f'attachment; filename="evidence-{digest[:12]}.zip"'
        return Response(data, media_type="application/zip", headers={"Content-Disposition": name})


def _all(config: CoordinatorConfig) -> list[dict[str, Any]]:
    return [overview.overview(folder) for folder in overview.find_runs(config)]


def _ledger(config: CoordinatorConfig) -> list[dict[str, Any]]:
    """Per run and hospital: answers that counted, their bytes, the protection, whether the coordinator could read single ones.

    noise: the bound that each hospital's own node keeps to under differential privacy; what it spent of it, the node knows.
    """
    rows = []
    for folder in overview.find_runs(config):
        document = SignedProject.read(folder / "project.json").document
        noise = document.privacy.dp
        table = overview.table(folder)
        for site in sorted({cell["site"] for cell in table}):
            counted = [cell for cell in table if cell["site"] == site and cell["state"] == "accepted"]
            rows.append(
                {
                    "project": document.name,
                    "digest": folder.name,
                    "site": site,
                    "answers": len(counted),
                    "rounds": document.rounds,
                    "bytes": sum(cell["bytes_in"] for cell in counted),
                    "protection": document.privacy.mode.replace("_", " "),
                    "readable": not document.privacy.summed,
                    "noise": None
                    if noise is None
                    else {"epsilon": noise.epsilon, "delta": noise.delta, "unit": noise.unit},
                }
            )
    return rows[::-1]
