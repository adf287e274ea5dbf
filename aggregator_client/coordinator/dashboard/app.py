"""The dashboard's application: what the coordinator sees and steers (FastAPI, server-rendered).

    GET  /openapi.json   its REST interface, described; GET /health without a token
    GET  /events         server-sent: "changed" when any run or hospital moved on
    POST /login, /logout accounts, roles, OpenID Connect and proxies as on the node's console

The pages and runs are in `runs`, hospitals in `members`. No hospital's data but its figures is here: what a site sends is
metrics and sealed updates.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from aggregator_client.coordinator import overview
from aggregator_client.coordinator.dashboard import members, runs
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import FederationError
from dicom_node.accounts import DASHBOARD_ROLES, Accounts
from dicom_node.audit import AuditLog
from dicom_node.errors import InputError, NodeError
from dicom_node.web.api import PROBLEMS, add_problems
from dicom_node.web.events import Changes
from dicom_node.web.login import add_sessions
from dicom_node.web.oidc import Oidc
from dicom_node.web.security import STATIC, Guard, GuardMiddleware, Rights
from dicom_node.web.words import teach

RIGHTS: Rights = (
    *runs.RIGHTS,
    *members.RIGHTS,
    ("GET", "/openapi.json|/events", "viewer", "runs"),
    ("POST", "/logout", "viewer"),
)


def token_file(config: CoordinatorConfig) -> Path:
    """Where the token stands that opens the dashboard before the first account exists; made on first use."""
    file = config.storage.keys / "dashboard.token"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_urlsafe(32) + "\n")
    return file


def accounts_file(config: CoordinatorConfig) -> Path:
    return config.storage.keys / "accounts.db"


def open_accounts(config: CoordinatorConfig, audit: AuditLog) -> Accounts:
    """Who may log in to the dashboard. Raises StorageError."""
    return Accounts(accounts_file(config), audit.append, roles=DASHBOARD_ROLES)


def create_app(config: CoordinatorConfig, port: int, host: str = "127.0.0.1") -> FastAPI:
    """The application of one coordinator's folder."""
    audit = AuditLog(config.root / "audit.db")
    accounts = open_accounts(config, audit)
    token, settings = token_file(config), config.dashboard
    guard = Guard(
        token.read_text().strip(),
        {host, *settings.names},
        accounts,
        RIGHTS,
        cookie=f"fedpacs_coordinator_{port}",
        proxy=settings.proxy,
        secure=settings.tls_certificate is not None,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        accounts.close()
        audit.close()

    app = FastAPI(
        title="fedpacs coordinator", version="1", docs_url=None, redoc_url=None, lifespan=lifespan, responses=PROBLEMS
    )
    app.state.config, app.state.audit, app.state.guard = config, audit, guard
    app.state.templates = teach(Jinja2Templates(Path(__file__).parent / "templates"))
    app.mount("/static", StaticFiles(directory=STATIC))
    oidc = Oidc(settings.oidc, config.root, DASHBOARD_ROLES) if settings.oidc.issuer else None
    add_sessions(app, guard, f"fedpacs coordinator {config.name}", token.name, oidc)
    add_problems(app)
    _add_errors(app)
    _add_basics(app)
    runs.add_routes(app)
    members.add_routes(app)
    app.add_middleware(GuardMiddleware, guard=guard)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(FederationError)
    @app.exception_handler(NodeError)
    async def told(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400 if isinstance(error, InputError) else 409)


def _add_basics(app: FastAPI) -> None:
    config: CoordinatorConfig = app.state.config

    async def fingerprint() -> str:
        return await asyncio.to_thread(_fingerprint, config)

    changes = Changes(fingerprint)
    app.state.fingerprint = fingerprint

    @app.get("/health", tags=["runs"])
    async def health() -> dict[str, Any]:
        """Whether the dashboard answers; needs no token."""
        return {"status": "ok", "coordinator": config.name}

    @app.get("/events", include_in_schema=False)
    async def events(request: Request) -> Response:
        return changes.stream(request)


def _fingerprint(config: CoordinatorConfig) -> str:
    """Changes when anything that the pages show changes."""
    found = [overview.overview(folder) for folder in overview.find_runs(config)]
    for run in found:
        for row in run.get("history", []):
            row.pop("seconds", None)  # an open round's seconds run on
    facts = [found, members.listed(config)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
