"""The console's pages: home, studies, one study before and after, quarantine, accounts.

GET  /?study=ORTHANC-ID                    home; one study of Orthanc beside it
GET  /pages/studies?state=&q=&page=        de-identified studies, by time, searched by UID, pseudonym or modality
GET  /pages/studies/UID[?instance=N]       one study; with an instance, before and after (data-manager, audited)
GET  /pages/studies/UID/N/before|after     its picture, or a head's surface: /surface (data-manager)
GET  /pages/quarantine                     what is set aside and why (data-manager)
GET  /pages/accounts                       who may log in (admin)
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, Response

from dicom_node.accounts import MIN_PASSWORD, ROLES
from dicom_node.errors import InputError, RefusedError
from dicom_node.quarantine import Quarantine
from dicom_node.web import project_pages
from dicom_node.web.page import embedded, render
from dicom_node.web.rest import orthanc_state
from dicom_node.web.security import Rights
from dicom_node.web.study_page import Comparer, Comparison
from dicom_node.web.view import NodeView

PAGE = 50
_UID = r"[0-9.]{1,64}"
StudyUid = Annotated[str, Path(pattern=f"^{_UID}$")]
RIGHTS: Rights = (
    ("GET", f"/|/pages/studies|/pages/studies/{_UID}", "viewer"),
    ("GET", f"/pages/studies/{_UID}/[0-9]+/(before|after|surface)|/pages/quarantine", "data-manager"),
    ("GET", "/pages/accounts", "admin"),
)


def add_routes(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, view, vault, guard and templates."""
    app.state.comparer, app.state.comparing, app.state.compared = None, asyncio.Lock(), {}
    _add_home(app)
    _add_studies(app)
    _add_one_study(app)
    _add_others(app)


def _add_home(app: FastAPI) -> None:
    config = app.state.config

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def home(
        request: Request, study: Annotated[str, Query(pattern="^([0-9a-f]{8}(-[0-9a-f]{8}){4})?$")] = ""
    ) -> Response:
        view: NodeView = app.state.view
        shown = await orthanc_state(app, study) if study and config.orthanc.sources else None
        listed = view.projects()
        values: dict[str, Any] = {"status": view.status(), "study": shown, "projects": listed}
        values["left"] = view.egress_total()
        if embedded(request):  # there is only this one page in Orthanc
            values |= {"projects": await project_pages.with_words(app, listed), "egress": view.egress(50)}
            values["checked"] = await app.state.verifier.verdict()
        return render(app, request, "home.html", **values)


def _add_studies(app: FastAPI) -> None:
    @app.get("/pages/studies", response_class=HTMLResponse, include_in_schema=False)
    async def studies(
        request: Request,
        state: Annotated[str, Query(pattern="^(|eligible|excluded|withdrawn)$")] = "",
        q: Annotated[str, Query(max_length=64)] = "",
        page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    ) -> Response:
        found, total = app.state.view.catalogue.search(state or None, q.strip(), PAGE, (page - 1) * PAGE)
        pages = max(1, -(-total // PAGE))
        values = {"studies": found, "total": total, "state": state, "q": q, "page": page, "pages": pages}
        return render(app, request, "studies.html", **values)


def _add_one_study(app: FastAPI) -> None:
    @app.get("/pages/studies/{study_uid}", response_class=HTMLResponse, include_in_schema=False)
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
        return render(app, request, "study.html", study=found, compared=compared, refusal=refusal)

    @app.get("/pages/studies/{study_uid}/{instance}/{side}", include_in_schema=False)
    async def image(
        request: Request,
        study_uid: StudyUid,
        instance: Annotated[int, Path(ge=0, le=100_000)],
        side: Annotated[str, Path(pattern="^(before|after|surface)$")],
    ) -> Response:
        compared = await _compare(app, study_uid, instance, request.state.caller.name)
        if side == "surface":
            async with app.state.comparing:
                drawn = await asyncio.to_thread(
                    app.state.comparer.surface, study_uid, instance, request.state.caller.name
                )
            return Response(drawn, media_type="image/png")
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


def _add_others(app: FastAPI) -> None:
    accounts = app.state.guard.accounts

    @app.get("/pages/quarantine", response_class=HTMLResponse, include_in_schema=False)
    async def quarantined(request: Request) -> Response:
        with Quarantine(app.state.config) as quarantine:
            entries = quarantine.entries()
        return render(app, request, "quarantine.html", entries=entries)

    @app.get("/pages/accounts", response_class=HTMLResponse, include_in_schema=False)
    async def listed(request: Request) -> Response:
        values = {"accounts": accounts.all(), "tokens": accounts.tokens(), "roles": ROLES, "least": MIN_PASSWORD}
        return render(app, request, "accounts.html", **values)
