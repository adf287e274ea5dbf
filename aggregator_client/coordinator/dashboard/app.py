"""The dashboard's routes (FastAPI, server-rendered): what the coordinator sees and steers.

    GET  /                     runs, projects ready to start, hospitals
    GET  /runs/DIGEST          site × round, curves, fairness, protection; GET /runs/DIGEST/facts the same as JSON
    GET  /events               server-sent: "changed" when any run moved on
    GET  /runs/DIGEST/evidence the evidence bundle (zip)
    POST /runs/DIGEST/start|stop|resume
    POST /members/invite {"name"} · /members/remove {"name"}; GET /members/NAME/invitation the file to send
    POST /login, /logout       accounts and roles as on the node's console

No hospital's data but its figures is here: what a site sends is metrics and sealed updates.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, ConfigDict, Field

from aggregator_client.coordinator import evidence, overview
from aggregator_client.coordinator.dashboard import control, curves
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import FederationError
from aggregator_client.project import SignedProject
from aggregator_client.sheet import plain_words
from dicom_node.accounts import Accounts
from dicom_node.audit import AuditLog
from dicom_node.errors import NodeError
from dicom_node.web.login import add_sessions
from dicom_node.web.security import STATIC, Guard, GuardMiddleware, Rights

LOOK_SECONDS = 1.0
_DIGEST = "[0-9a-f]{64}"
Digest = Annotated[str, Path(pattern=f"^{_DIGEST}$")]
RIGHTS: Rights = (
    ("GET", f"/|/events|/runs/{_DIGEST}(/facts)?", "viewer"),
    ("POST", "/logout", "viewer"),
    ("GET", f"/runs/{_DIGEST}/evidence", "data-manager"),
    ("POST", f"/runs/{_DIGEST}/(start|stop|resume)", "data-manager"),
    ("POST", "/members/(invite|remove)", "admin"),
    ("GET", "/members/[^/]+/invitation", "admin"),
)


class Hospital(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=64)


def token_file(config: CoordinatorConfig) -> FilePath:
    """Where the token stands that opens the dashboard before the first account exists; made on first use."""
    file = config.storage.keys / "dashboard.token"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_urlsafe(32) + "\n")
    return file


def accounts_file(config: CoordinatorConfig) -> FilePath:
    return config.storage.keys / "accounts.db"


def create_app(config: CoordinatorConfig, port: int, host: str = "127.0.0.1") -> FastAPI:
    """The application of one coordinator's folder."""
    audit = AuditLog(config.root / "audit.db")
    accounts = Accounts(accounts_file(config), audit.append)
    token = token_file(config)
    guard = Guard(token.read_text().strip(), {host}, accounts, RIGHTS, cookie=f"fedpacs_coordinator_{port}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        accounts.close()
        audit.close()

    app = FastAPI(title="fedpacs coordinator", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.config, app.state.audit, app.state.guard = config, audit, guard
    app.state.templates = Jinja2Templates(FilePath(__file__).parent / "templates")
    app.mount("/static", StaticFiles(directory=STATIC))
    add_sessions(app, guard, f"fedpacs coordinator {config.name}", token.name)
    _add_errors(app)
    _add_pages(app)
    _add_control(app)
    _add_members(app)
    app.add_middleware(GuardMiddleware, guard=guard)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(FederationError)
    @app.exception_handler(NodeError)
    async def told(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=409)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, status_code=422)


def _render(app: FastAPI, request: Request, name: str, **values: Any) -> Response:
    config = app.state.config
    common = {
        "up": "../" * (request.url.path.count("/") - 1),
        "coordinator": config.name,
        "caller": request.state.caller,
    }
    page: Response = app.state.templates.TemplateResponse(request, name, {**common, "ago": _ago, "mb": _mb, **values})
    return page


def _add_pages(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    @app.get("/", response_class=HTMLResponse)
    async def home(request: Request) -> Response:
        runs = [await asyncio.to_thread(overview.overview, folder) for folder in overview.find_runs(config)]
        values = {"runs": runs[::-1], "startable": control.startable(config), "members": _members(config)}
        return _render(app, request, "coordinator.html", url=config.url, **values)

    @app.get("/runs/{digest}", response_class=HTMLResponse)
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
        }
        return _render(app, request, "run.html", **values)

    @app.get("/runs/{digest}/facts")
    async def run_facts(digest: Digest) -> dict[str, Any]:
        return await asyncio.to_thread(overview.overview, overview.one_run(config, digest))

    @app.get("/events")
    async def events(request: Request) -> Response:
        async def changes() -> AsyncIterator[str]:
            seen = ""
            while not await request.is_disconnected():
                now = await asyncio.to_thread(_fingerprint, config)
                yield ": still here\n\n" if now == seen else f"event: changed\ndata: {now}\n\n"
                seen = now
                await asyncio.sleep(LOOK_SECONDS)

        return StreamingResponse(changes(), media_type="text/event-stream")


def _add_control(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    @app.post("/runs/{digest}/{action}")
    async def steer(
        request: Request, digest: Digest, action: Annotated[str, Path(pattern="^(start|stop|resume)$")]
    ) -> dict[str, Any]:
        app.state.audit.append(f"run.{action}", project=digest, by=request.state.caller.name)
        await asyncio.to_thread(
            {"start": control.start, "stop": control.stop, "resume": control.resume}[action], config, digest
        )
        return {"project": digest, "done": action}

    @app.get("/runs/{digest}/evidence")
    async def bundle(request: Request, digest: Digest) -> Response:
        with tempfile.TemporaryDirectory() as folder:
            file = FilePath(folder) / "evidence.zip"
            await asyncio.to_thread(evidence.export, config, overview.one_run(config, digest), file)
            data = file.read_bytes()
        app.state.audit.append("evidence.exported", project=digest, by=request.state.caller.name)
        name = f'attachment; filename="evidence-{digest[:12]}.zip"'
        return Response(data, media_type="application/zip", headers={"Content-Disposition": name})


def _add_members(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    @app.post("/members/invite")
    async def invite(request: Request, body: Annotated[Hospital, Body()]) -> dict[str, Any]:
        invitation = await asyncio.to_thread(config.invite, body.name.strip())
        app.state.audit.append("member.invited", site=invitation.site, by=request.state.caller.name)
        return {"site": invitation.site, "fingerprint": invitation.fingerprint}

    @app.post("/members/remove")
    async def remove(request: Request, body: Annotated[Hospital, Body()]) -> dict[str, Any]:
        config.members.remove(body.name)
        app.state.audit.append("member.removed", site=body.name, by=request.state.caller.name)
        return {"removed": body.name}

    @app.get("/members/{name}/invitation")
    async def invitation(name: Annotated[str, Path(max_length=64)]) -> Response:
        if name not in config.members.invited():
            raise FederationError(f"{name!r} was not invited: invite it first.")
        with tempfile.TemporaryDirectory() as folder:
            file = FilePath(folder) / "invitation.json"
            config.invite(name).write(file)
            data = file.read_bytes()
        header = {"Content-Disposition": 'attachment; filename="invitation.json"'}
        return Response(data, media_type="application/json", headers=header)


def _members(config: CoordinatorConfig) -> list[dict[str, Any]]:
    enrolled = {member.name: member for member in config.members.list()}
    return [
        {
            "name": name,
            "enrolled": name in enrolled,
            "fingerprint": enrolled[name].fingerprint if name in enrolled else "",
        }
        for name in sorted(set(config.members.invited()) | enrolled.keys())
    ]


def _fingerprint(config: CoordinatorConfig) -> str:
    """Changes when anything that the pages show of the runs changes."""
    runs = [overview.overview(folder) for folder in overview.find_runs(config)]
    for run in runs:
        for row in run.get("history", []):
            row.pop("seconds", None)  # an open round's seconds run on
    return hashlib.sha256(json.dumps(runs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _ago(at: float) -> str:
    seconds = time.time() - at
    if not at:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
