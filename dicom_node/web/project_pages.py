"""The console's pages about consent: projects with their sheet and this hospital's cohort, and opt-outs.

GET  /pages/projects            what coordinators ask for, and what was decided
GET  /pages/projects/DIGEST     one project in plain words, whether this hospital's data fit, its decisions
GET  /pages/optouts             patients who do not take part (data-manager)
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.responses import HTMLResponse, Response

from dicom_node.errors import InputError
from dicom_node.web import projects
from dicom_node.web.page import render
from dicom_node.web.security import Rights

_DIGEST = "[0-9a-f]{64}"
_FRESH_SECONDS = 20.0
RIGHTS: Rights = (
    ("GET", f"/pages/projects|/pages/projects/{_DIGEST}", "viewer"),
    ("GET", "/pages/optouts", "data-manager"),
)
DECISIONS = {
    "offered": ("approve", "reject"),
    "approved": ("suspend", "withdraw"),
    "suspended": ("approve", "withdraw"),
    "rejected": ("approve",),
    "withdrawn": ("approve",),
}


def add_routes(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, view, optouts and templates."""
    app.state.sheets, app.state.words = {}, {}
    _add_projects(app)

    @app.get("/pages/optouts", response_class=HTMLResponse, include_in_schema=False)
    async def optouts(request: Request) -> Response:
        listed = [
            {"token": one.token[:16], "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.at)), "by": one.by}
            for one in app.state.optouts.list()
        ]
        return render(app, request, "optouts.html", optouts=listed[::-1])


def _add_projects(app: FastAPI) -> None:
    @app.get("/pages/projects", response_class=HTMLResponse, include_in_schema=False)
    async def listed(request: Request) -> Response:
        return render(app, request, "projects.html", projects=app.state.view.projects())

    @app.get("/pages/projects/{digest}", response_class=HTMLResponse, include_in_schema=False)
    async def project(request: Request, digest: Annotated[str, Path(pattern=f"^{_DIGEST}$")]) -> Response:
        found = next((one for one in app.state.view.projects() if one["digest"] == digest), None)
        if found is None:
            raise InputError("No project with this digest is known here: see the page of projects.")
        sheet = await _sheet(app, digest)
        history = [
            {"at": record.at, **record.facts, "what": record.kind.removeprefix("project.")}
            for state in ("offered", "approved", "rejected", "suspended", "withdrawn")
            for record in app.state.view.audit.records(f"project.{state}")
            if record.facts.get("project") == digest
        ]
        values = {"project": found, "sheet": sheet, "sections": projects.sections(sheet.get("plain_words", ""))}
        values["decisions"] = DECISIONS.get(found["state"], ())
        values["history"] = sorted(history, key=lambda one: float(one["at"]))
        return render(app, request, "project.html", **values)


async def _sheet(app: FastAPI, digest: str) -> dict[str, Any]:
    """The project's words and the cohort check, by the command that knows both; kept for some seconds, as pages refresh."""
    sheets: dict[str, tuple[float, dict[str, Any]]] = app.state.sheets
    at, known = sheets.get(digest, (0.0, {}))
    if time.monotonic() - at > _FRESH_SECONDS or not known:
        known = await asyncio.to_thread(projects.sheet, app.state.config, digest)
        sheets[digest] = (time.monotonic(), known)
    return known


async def with_words(app: FastAPI, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The projects with their plain words; a document never changes under its digest, so each is asked for once."""
    words: dict[str, str] = app.state.words
    for project in listed:
        digest = project["digest"]
        if digest not in words:
            sheet = await asyncio.to_thread(projects.sheet, app.state.config, digest)
            words[digest] = str(sheet.get("plain_words", ""))
        project["words"] = words[digest]
    return listed
