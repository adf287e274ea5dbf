"""The console's further pages: studies, one study before and after, quarantine, accounts.

GET  /pages/studies?state=&q=&page=        de-identified studies, by time, searched by UID, pseudonym or modality
GET  /pages/studies/UID[?instance=N]       one study; with an instance, before and after (data-manager, audited)
GET  /pages/studies/UID/N/before|after     its picture (data-manager)
GET  /pages/quarantine                     what is set aside and why (data-manager)
POST /quarantine/release {"numbers", "reason"}   once more through de-identification (data-manager)
POST /quarantine/purge {"numbers", "reason"}     erased (admin)
GET  /pages/accounts                       who may log in (admin); POST /accounts, /accounts/role, /accounts/remove
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from dicom_node.accounts import MIN_PASSWORD, ROLES
from dicom_node.errors import InputError, RefusedError
from dicom_node.quarantine import Quarantine
from dicom_node.scu import Peer, echo
from dicom_node.web.security import Rights
from dicom_node.web.study_page import Comparer, Comparison

PAGE = 50
_UID = r"[0-9.]{1,64}"
StudyUid = Annotated[str, Path(pattern=f"^{_UID}$")]
RIGHTS: Rights = (
    ("GET", f"/pages/studies|/pages/studies/{_UID}", "viewer"),
    ("GET", f"/pages/studies/{_UID}/[0-9]+/(before|after)|/pages/quarantine", "data-manager"),
    ("POST", "/echo|/quarantine/release", "data-manager"),
    ("POST", "/quarantine/purge|/accounts|/accounts/(role|remove)", "admin"),
    ("GET", "/pages/accounts", "admin"),
)


class Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid")
    numbers: list[int] = Field(min_length=1, max_length=1000)
    reason: str = Field(default="", max_length=500)


class EchoRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    peer: str = Field(default="", max_length=300)


class NewAccount(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    role: str = Field(max_length=20)
    password: str = Field(max_length=500)


class AccountRole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    role: str = Field(default="", max_length=20)


def add_pages(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, view, vault, guard and templates."""
    app.state.comparer, app.state.comparing, app.state.compared = None, asyncio.Lock(), {}
    _add_echo(app)
    _add_studies(app)
    _add_quarantine(app)
    _add_accounts(app)


def up(request: Request) -> str:
    """The way from a page to the console's root, relative, so that it holds behind any prefix."""
    return "../" * (request.url.path.count("/") - 1)


def _render(app: FastAPI, request: Request, name: str, **values: Any) -> Response:
    common = {
        "up": up(request),
        "node": app.state.config.node.name,
        "caller": request.state.caller,
        "embedded": request.headers.get("x-fedpacs-via") == "orthanc",
    }
    page: Response = app.state.templates.TemplateResponse(request, name, {**common, **values})
    return page


def _add_echo(app: FastAPI) -> None:
    dicom = app.state.config.dicom

    @app.post("/echo")
    async def verify(body: Annotated[EchoRequest, Body()] = EchoRequest()) -> dict[str, Any]:
        """To a peer it tells whether the peer knows us; to ourselves, whether our port answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(dicom.host, dicom.host)
        peer = Peer.parse(body.peer.strip()) if body.peer.strip() else Peer(dicom.ae_title, host, dicom.port)
        report = await asyncio.to_thread(echo, peer, dicom.ae_title)
        return {"said": f"{report.peer} answered C-ECHO in {report.echo_s * 1000:.0f} ms.", **report.__dict__}


def _add_studies(app: FastAPI) -> None:
    @app.get("/pages/studies", response_class=HTMLResponse)
    async def studies(
        request: Request,
        state: Annotated[str, Query(pattern="^(|eligible|excluded|withdrawn)$")] = "",
        q: Annotated[str, Query(max_length=64)] = "",
        page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    ) -> Response:
        found, total = app.state.view.catalogue.search(state or None, q.strip(), PAGE, (page - 1) * PAGE)
        pages = max(1, -(-total // PAGE))
        values = {"studies": found, "total": total, "state": state, "q": q, "page": page, "pages": pages}
        return _render(app, request, "studies.html", **values)

    @app.get("/pages/studies/{study_uid}", response_class=HTMLResponse)
    async def study(
        request: Request, study_uid: StudyUid, instance: Annotated[int | None, Query(ge=0, le=100_000)] = None
    ) -> Response:
        found = app.state.view.study(study_uid)
        if found is None:
            raise InputError("No de-identified study has this UID: look it up on the page of studies.")
        caller, compared, refusal = request.state.caller, None, ""
        if instance is not None and caller.may("data-manager"):
            try:
                compared = await _compare(app, study_uid, instance, caller.name)
            except RefusedError as error:
                refusal = str(error)
        return _render(app, request, "study.html", study=found, compared=compared, refusal=refusal)

    @app.get("/pages/studies/{study_uid}/{instance}/{side}")
    async def image(
        request: Request,
        study_uid: StudyUid,
        instance: Annotated[int, Path(ge=0, le=100_000)],
        side: Annotated[str, Path(pattern="^(before|after)$")],
    ) -> Response:
        compared = await _compare(app, study_uid, instance, request.state.caller.name)
        png = compared.before if side == "before" else compared.after
        if png is None:
            raise InputError("This instance has no picture that can be shown.")
        return Response(png, media_type="image/png")


async def _compare(app: FastAPI, study_uid: str, instance: int, by: str) -> Comparison:
    """The comparison, made once for a page and its two pictures; identified, so kept in memory and only the latest few."""
    state = app.state
    async with state.comparing:
        key = (study_uid, instance, by)
        if key not in state.compared:
            if state.comparer is None:
                state.comparer = Comparer(state.config, state.vault)
            made = await asyncio.to_thread(state.comparer.compare, study_uid, instance, by)
            state.compared = dict([*state.compared.items()][-3:]) | {key: made}
        compared: Comparison = state.compared[key]
        return compared


def _add_quarantine(app: FastAPI) -> None:
    config = app.state.config

    @app.get("/pages/quarantine", response_class=HTMLResponse)
    async def listed(request: Request) -> Response:
        with Quarantine(config) as quarantine:
            entries = quarantine.entries()
        return _render(app, request, "quarantine.html", entries=entries)

    @app.post("/quarantine/release")
    async def release(request: Request, body: Annotated[Numbers, Body()]) -> dict[str, Any]:
        with Quarantine(config) as quarantine:
            return {"studies": quarantine.release(body.numbers, request.state.caller.name, body.reason)}

    @app.post("/quarantine/purge")
    async def purge(request: Request, body: Annotated[Numbers, Body()]) -> dict[str, Any]:
        with Quarantine(config) as quarantine:
            return {"purged": quarantine.purge(body.numbers, request.state.caller.name, body.reason)}


def _add_accounts(app: FastAPI) -> None:
    accounts = app.state.guard.accounts

    @app.get("/pages/accounts", response_class=HTMLResponse)
    async def listed(request: Request) -> Response:
        values = {"accounts": accounts.all(), "tokens": accounts.tokens(), "roles": ROLES, "least": MIN_PASSWORD}
        return _render(app, request, "accounts.html", **values)

    @app.post("/accounts")
    async def add(request: Request, body: Annotated[NewAccount, Body()]) -> dict[str, Any]:
        accounts.add(body.name, body.role, body.password, request.state.caller.name)
        return {"name": body.name, "role": body.role}

    @app.post("/accounts/role")
    async def change(request: Request, body: Annotated[AccountRole, Body()]) -> dict[str, Any]:
        accounts.change(body.name, request.state.caller.name, role=body.role)
        return {"name": body.name, "role": body.role}

    @app.post("/accounts/remove")
    async def remove(request: Request, body: Annotated[AccountRole, Body()]) -> dict[str, Any]:
        accounts.remove(body.name, request.state.caller.name)
        return {"removed": body.name}
