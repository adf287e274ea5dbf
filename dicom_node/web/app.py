"""The routes of the node's REST interface and console (FastAPI).

    GET  /health                         {"status": "ok"}; the only route without a token
    POST /login, /logout                 sessions of the console; the role each route needs stands in RIGHTS
    /pages/...                           studies, quarantine, accounts: dicom_node.web.pages
    GET  /                               the console; ?study=ORTHANC-ID adds one study
    GET  /status                         pipeline, senders, disk, oldest waiting study, processes, last error
    GET  /studies?state=&limit=&offset=  de-identified studies with labels and rounds
    GET  /projects                       projects and decisions
    POST /projects/DIGEST/approve|reject {"reason"}          audited with the caller's name
    GET  /egress                         what left the hospital, newest first
    GET  /optout                         how many; POST /optout {"patient_id", "reason"}, POST /optout/remove
    POST /pause {"reason"} · /resume
    POST /orthanc/offer                  a hint of the plugin: {"studies": [ids], "everything": bool}
    GET  /orthanc/studies/ID             state of one study of Orthanc; POST .../exclude|include
    GET  /metrics                        Prometheus

Errors are {"error": one sentence}. Everything is read on the event loop, from SQLite, in milliseconds; what asks Orthanc
runs in a thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, ConfigDict, Field

from dicom_node import optout
from dicom_node.accounts import Accounts
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, InputError, NodeError, RefusedError, UnreachableError
from dicom_node.orthanc_reader.connect import wake_file
from dicom_node.pause import pause, resume
from dicom_node.vault import Vault
from dicom_node.web import orthanc_study, pages, projects
from dicom_node.web.login import add_sessions
from dicom_node.web.metrics import exposition
from dicom_node.web.security import COOKIE, STATIC, Guard, GuardMiddleware, Rights
from dicom_node.web.view import NodeView

_HERE = FilePath(__file__).parent
_STATUS = {InputError: 400, RefusedError: 409, UnreachableError: 502}

_STUDY = r"/orthanc/studies/[^/]+"
RIGHTS: Rights = (
    *pages.RIGHTS,
    ("GET", rf"/|/status|/studies|/projects|/egress|/metrics|{_STUDY}", "viewer"),
    ("POST", "/logout", "viewer"),
    ("GET", "/optout", "data-manager"),
    ("POST", rf"/optout(/remove)?|/orthanc/offer|{_STUDY}/(exclude|include)", "data-manager"),
)

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
OrthancId = Annotated[str, Path(pattern="^[0-9a-f]{8}(-[0-9a-f]{8}){4}$")]


class Reason(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=500)


class Decision(Reason):
    role: str = Field(default="", max_length=100)


class OptOutRequest(Reason):
    patient_id: str = Field(min_length=1, max_length=64)


class Offer(BaseModel):
    """`studies` are Orthanc's ids."""

    model_config = ConfigDict(extra="forbid")
    studies: list[Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{8}){4}$")]] = Field(default=[], max_length=1000)
    everything: bool = False


def create_app(config: NodeConfig) -> FastAPI:
    """The application of one node. Raises ConfigError when the token file cannot be read."""
    # cookies know no ports: two nodes on one machine must not log each other's people out
    token, audit = read_token(config), AuditLog(config.storage.audit)
    accounts = Accounts(config.storage.accounts, audit.append)
    guard = Guard(token, {config.web.host}, accounts, RIGHTS, cookie=f"{COOKIE}_{config.web.port}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.view, app.state.vault = NodeView(config), Vault.open(config)
        app.state.optouts = optout.OptOuts(config.storage.catalogue, app.state.vault)
        yield
        for part in (app.state.view, app.state.optouts, app.state.vault, accounts, audit):
            part.close()

    app = FastAPI(title="fedpacs node", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.config, app.state.guard, app.state.words = config, guard, {}
    app.state.templates = Jinja2Templates(_HERE / "templates")
    app.mount("/static", StaticFiles(directory=STATIC))
    _add_errors(app)
    _add_pages(app)
    add_sessions(app, guard, f"fedpacs node {config.node.name}", config.web.token_file.name)
    _add_reading(app)
    _add_changes(app)
    _add_orthanc(app)
    pages.add_pages(app)
    app.add_middleware(GuardMiddleware, guard=guard)
    return app


def read_token(config: NodeConfig) -> str:
    """The bearer token. Raises ConfigError when there is none worth the name."""
    file = config.web.token_file
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if len(token) < 20:
        raise ConfigError(
            f"{config.path}: [web] token_file {file} does not hold a token of at least 20 characters;"
            " make one with `openssl rand -base64 32`, readable by the node alone"
        )
    return token


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(NodeError)
    async def node_error(request: Request, error: NodeError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return JSONResponse({"error": str(error)}, status_code=status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # where and what, never the value: it may be a Patient ID
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{place}: {first['msg']}"}, status_code=422)


def _add_pages(app: FastAPI) -> None:
    templates: Jinja2Templates = app.state.templates
    config: NodeConfig = app.state.config

    @app.get("/", response_class=HTMLResponse)
    async def home(
        request: Request, study: Annotated[str, Query(pattern="^([0-9a-f]{8}(-[0-9a-f]{8}){4})?$")] = ""
    ) -> Response:
        view: NodeView = app.state.view
        shown = None
        if study and config.orthanc.sources:
            shown = await _orthanc_state(app, study)
        values = {
            "up": "",
            "node": config.node.name,
            "status": view.status(),
            "projects": await _with_words(app, view.projects()),
            "egress": view.egress(50),
            "audit": view.audit_head(),
            "caller": request.state.caller,
            "embedded": request.headers.get("x-fedpacs-via") == "orthanc",
            "study": shown,
        }
        return templates.TemplateResponse(request, "home.html", values)


def _add_reading(app: FastAPI) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "node": app.state.config.node.name}

    @app.get("/status")
    async def status() -> dict[str, Any]:
        facts: dict[str, Any] = app.state.view.status()
        return facts

    @app.get("/studies")
    async def studies(
        state: Annotated[str | None, Query(pattern="^(eligible|excluded|withdrawn)$")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        return {"studies": app.state.view.studies(state, limit, offset)}

    @app.get("/projects")
    async def list_projects() -> dict[str, Any]:
        return {"projects": app.state.view.projects()}

    @app.get("/egress")
    async def egress(limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> dict[str, Any]:
        return {"egress": app.state.view.egress(limit)}

    @app.get("/metrics")
    async def metrics() -> Response:
        view: NodeView = app.state.view
        total = sum(int(r.facts.get("bytes", 0)) for r in view.audit.records("egress"))
        text = exposition(view.status(), total, view.audit_head()["records"])
        return Response(text, media_type="text/plain; version=0.0.4")


def _add_changes(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    @app.post("/projects/{digest}/{decision}")
    async def decide(
        request: Request,
        digest: Digest,
        decision: Annotated[str, Path(pattern="^(approve|reject)$")],
        body: Annotated[Decision, Body()] = Decision(),
    ) -> dict[str, Any]:
        by = request.state.caller.name
        await asyncio.to_thread(projects.decide, config, digest, decision, by, body.role, body.reason)
        record = app.state.view.projects_table.get(digest)
        return {"digest": digest, "state": record.state, "by": record.decided_by}

    @app.get("/optout")
    async def optouts() -> dict[str, Any]:
        return {"optouts": len(app.state.optouts.list())}

    @app.post("/optout")
    async def opt_out(request: Request, body: OptOutRequest) -> dict[str, Any]:
        return {"withdrawn": optout.opt_out(config, body.patient_id, request.state.caller.name)}

    @app.post("/optout/remove")
    async def opt_in(request: Request, body: OptOutRequest) -> dict[str, Any]:
        return {"readmitted": optout.opt_in(config, body.patient_id, request.state.caller.name)}

    @app.post("/pause")
    async def pause_node(request: Request, body: Annotated[Reason, Body()] = Reason()) -> dict[str, Any]:
        return {"paused": True, "changed": pause(config, request.state.caller.name, body.reason)}

    @app.post("/resume")
    async def resume_node(request: Request, body: Annotated[Reason, Body()] = Reason()) -> dict[str, Any]:
        return {"paused": False, "changed": resume(config, request.state.caller.name)}


def _add_orthanc(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    @app.post("/orthanc/offer")
    async def offer(body: Annotated[Offer, Body()] = Offer()) -> dict[str, Any]:
        """Only a hint: the reader is woken, and what it should take it finds in Orthanc's own log."""
        if not config.orthanc.sources:
            raise RefusedError(f"{config.path}: [orthanc] url is not set, so this node follows no Orthanc; set it.")
        _touch(wake_file(config.storage.run))
        return {"noted": len(body.studies)}

    @app.get("/orthanc/studies/{orthanc_id}")
    async def study(orthanc_id: OrthancId) -> dict[str, Any]:
        return asdict(await _orthanc_state(app, orthanc_id))

    @app.post("/orthanc/studies/{orthanc_id}/{action}")
    async def change(
        request: Request,
        orthanc_id: OrthancId,
        action: Annotated[str, Path(pattern="^(exclude|include)$")],
        body: Annotated[Reason, Body()] = Reason(),
    ) -> dict[str, Any]:
        by = request.state.caller.name
        act = {"exclude": orthanc_study.exclude, "include": orthanc_study.include}[action]
        return {"studies": await asyncio.to_thread(act, config, orthanc_id, by)}


async def _with_words(app: FastAPI, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The projects with their plain words; a document never changes under its digest, so each is asked for once."""
    words: dict[str, str] = app.state.words
    for project in listed:
        digest = project["digest"]
        if digest not in words:
            words[digest] = await asyncio.to_thread(projects.plain_words, app.state.config, digest)
        project["words"] = words[digest]
    return listed


async def _orthanc_state(app: FastAPI, orthanc_id: str) -> orthanc_study.StudyState:
    state = app.state
    study = await asyncio.to_thread(orthanc_study.fetch, state.config, orthanc_id)
    return orthanc_study.state(state.view, state.vault, state.optouts, orthanc_id, study)


def _touch(path: FilePath) -> None:
    path.touch()
    os.utime(path)
