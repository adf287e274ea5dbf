"""Hospitals on the dashboard: who was invited, who is enrolled with which keys; inviting and removing.

GET  /members                      as JSON
POST /members/invite {"name"}      GET /members/NAME/invitation the file to send
POST /members/remove {"name"}
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from aggregator_client.coordinator.dashboard.page import render
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import RefusedError
from dicom_node.web.security import Rights

RIGHTS: Rights = (
    ("GET", "/pages/hospitals", "viewer"),
    ("GET", "/members", "viewer", "members"),
    ("POST", "/members/(invite|remove)", "admin", "members"),
    ("GET", "/members/[^/]+/invitation", "admin", "members"),
)


class Hospital(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=64, description="Its name in the federation.")


def add_routes(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, audit and templates."""
    config: CoordinatorConfig = app.state.config

    @app.get("/pages/hospitals", response_class=HTMLResponse, include_in_schema=False)
    async def page(request: Request) -> Response:
        return await render(app, request, "hospitals.html", members=listed(config), url=config.url)

    @app.get("/members", tags=["members"])
    async def members() -> dict[str, Any]:
        """Hospitals invited and enrolled, with their fingerprints."""
        return {"members": listed(config)}

    @app.post("/members/invite", tags=["members"])
    async def invite(request: Request, body: Annotated[Hospital, Body()]) -> dict[str, Any]:
        """Invite a hospital; asking again gives the same invitation."""
        invitation = await asyncio.to_thread(config.invite, body.name.strip())
        app.state.audit.append("member.invited", site=invitation.site, by=request.state.caller.name)
        return {"site": invitation.site, "fingerprint": invitation.fingerprint}

    @app.post("/members/remove", tags=["members"])
    async def remove(request: Request, body: Annotated[Hospital, Body()]) -> dict[str, Any]:
        """Take a hospital out, from the next start of a run."""
        await asyncio.to_thread(config.members.remove, body.name)
        app.state.audit.append("member.removed", site=body.name, by=request.state.caller.name)
        return {"removed": body.name}

    @app.get("/members/{name}/invitation", tags=["members"])
    async def invitation(request: Request, name: Annotated[str, Path(max_length=64)]) -> Response:
        """The file to send to that hospital alone: whoever holds it can enrol under its name."""
        if name not in config.members.invited():
            raise RefusedError(f"{name!r} was not invited: invite it first.")
        with tempfile.TemporaryDirectory() as folder:
            file = FilePath(folder) / "invitation.json"
            config.invite(name).write(file)
            data = file.read_bytes()
        app.state.audit.append("invitation.taken", site=name, by=request.state.caller.name)
        header = {"Content-Disposition": 'attachment; filename="invitation.json"'}
        return Response(data, media_type="application/json", headers=header)


def listed(config: CoordinatorConfig) -> list[dict[str, Any]]:
    """Every hospital: {"name", "enrolled", "fingerprint"}."""
    enrolled = {member.name: member for member in config.members.list()}
    return [
        {
            "name": name,
            "enrolled": name in enrolled,
            "fingerprint": enrolled[name].fingerprint if name in enrolled else "",
        }
        for name in sorted(set(config.members.invited()) | enrolled.keys())
    ]
