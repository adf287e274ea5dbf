"""The application of one node: REST interface (dicom_node.web.rest) and console (dicom_node.web.pages and its siblings).

    GET  /health                         {"status": "ok"}; the only route without a token
    GET  /openapi.json                   the REST interface, described (OpenAPI 3.1)
    GET  /events                         server-sent: "changed" when something that a page shows has changed
    GET|POST /login, /login/oidc, POST /logout

Errors are {"error": one sentence}. Everything is read on the event loop, from SQLite, in milliseconds; what asks Orthanc, a peer
or another process runs in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from dicom_node import optout
from dicom_node.accounts import Accounts
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, InputError, NodeError, RefusedError, UnreachableError
from dicom_node.vault import Vault
from dicom_node.web import pages, project_pages, rest, work_pages
from dicom_node.web.api import PROBLEMS, add_problems
from dicom_node.web.events import Changes
from dicom_node.web.login import add_sessions
from dicom_node.web.oidc import Oidc
from dicom_node.web.page import render
from dicom_node.web.security import COOKIE, STATIC, Guard, GuardMiddleware, Rights
from dicom_node.web.verifier import Verifier
from dicom_node.web.view import NodeView
from dicom_node.web.words import teach

_TEMPLATES = Path(__file__).parent / "templates"
_STATUS = {InputError: 400, RefusedError: 409, UnreachableError: 502}

RIGHTS: Rights = (
    *rest.RIGHTS,
    *pages.RIGHTS,
    *project_pages.RIGHTS,
    *work_pages.RIGHTS,
    ("GET", "/openapi.json|/events", "viewer", "status"),
    ("POST", "/logout", "viewer"),
)


def create_app(config: NodeConfig) -> FastAPI:
    """The application of one node. Raises ConfigError when the token or a secret cannot be read."""
    token, audit = read_token(config), AuditLog(config.storage.audit)
    accounts = Accounts(config.storage.accounts, audit.append)
    web = config.web
    guard = Guard(
        token,
        {web.host, *web.names},
        accounts,
        RIGHTS,
        # cookies know no ports: two nodes on one machine must not log each other's people out
        cookie=f"{COOKIE}_{web.port}",
        proxy=web.proxy,
        secure=web.tls_certificate is not None,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.view, app.state.vault = NodeView(config), Vault.open(config)
        app.state.optouts = optout.OptOuts(config.storage.catalogue, app.state.vault)
        yield
        for part in (app.state.view, app.state.optouts, app.state.vault, accounts, audit):
            part.close()

    app = FastAPI(
        title="fedpacs node", version="1", docs_url=None, redoc_url=None, lifespan=lifespan, responses=PROBLEMS
    )
    app.state.config, app.state.guard, app.state.audit = config, guard, audit
    app.state.templates = teach(Jinja2Templates(_TEMPLATES))
    app.state.verifier = Verifier(config.storage.audit)
    app.mount("/static", StaticFiles(directory=STATIC))
    add_problems(app)
    _add_errors(app)
    _add_events(app)
    oidc = Oidc(web.oidc, config.root) if web.oidc.issuer else None
    add_sessions(app, guard, f"fedpacs node {config.node.name}", web.token_file.name, oidc)
    for part in (rest, pages, project_pages, work_pages):
        part.add_routes(app)
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
    async def node_error(request: Request, error: NodeError) -> Response:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        if request.url.path.startswith("/pages/") and request.method == "GET":
            return render(app, request, "problem.html", status, problem=str(error))
        return JSONResponse({"error": str(error)}, status_code=status)


def _add_events(app: FastAPI) -> None:
    async def fingerprint() -> str:
        return str(app.state.view.fingerprint())

    changes = Changes(fingerprint)

    @app.get("/events", include_in_schema=False)
    async def events(request: Request) -> Response:
        return changes.stream(request)
