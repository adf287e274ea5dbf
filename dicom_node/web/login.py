"""The log-in page and its routes, for the node's console and the coordinator's dashboard.

GET  /login                 the page; POST /login name and password
GET  /login/oidc            to the hospital's OpenID Connect provider, and /login/oidc/callback back from it
POST /logout
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates

from dicom_node.accounts import SESSION_SECONDS, Account
from dicom_node.errors import RefusedError, UnreachableError
from dicom_node.web.oidc import PENDING_SECONDS, Oidc
from dicom_node.web.security import Guard, clean_name

_TEMPLATES = Jinja2Templates(Path(__file__).parent / "templates")


def add_sessions(app: FastAPI, guard: Guard, title: str, token_name: str, oidc: Oidc | None = None) -> None:
    """Add the routes. `token_name` is the file whose content logs in before the first account."""
    one_at_a_time = asyncio.Lock()

    def page(request: Request, error: str = "") -> Response:
        up = "../" * (request.url.path.count("/") - 1)
        first = token_name if guard.accounts.empty() else ""
        values = {"title": title, "token_file": first, "error": error, "up": up, "oidc": oidc is not None}
        return _TEMPLATES.TemplateResponse(request, "login.html", values, status_code=403 if error else 200)

    @app.get("/login", response_class=HTMLResponse, include_in_schema=False)
    async def login_page(request: Request) -> Response:
        return page(request)

    @app.post("/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        name, password = form.get("name", [""])[0], form.get("password", [""])[0]
        async with one_at_a_time:  # whoever tries passwords gets two tries a second, and the server goes on working
            try:
                session = guard.log_in(name, password)
            except RefusedError as error:
                await asyncio.sleep(0.5)
                return page(request, str(error))
        return _with_session(RedirectResponse(".", status_code=303), guard, session)

    @app.post("/logout")
    async def logout(request: Request) -> Response:
        """End the session of this browser."""
        guard.accounts.log_out(request.cookies.get(guard.cookie, ""), request.state.caller.name)
        answer = JSONResponse({"logged_out": True})
        answer.delete_cookie(guard.cookie)
        return answer

    if oidc is not None:
        _add_oidc(app, guard, oidc, page)


def _add_oidc(app: FastAPI, guard: Guard, oidc: Oidc, page: Callable[..., Response]) -> None:
    begun = f"{guard.cookie}_oidc"

    @app.get("/login/oidc", include_in_schema=False)
    async def begin(request: Request) -> Response:
        try:
            address, browser = await oidc.begin()
        except (RefusedError, UnreachableError) as error:
            return page(request, str(error))
        answer = RedirectResponse(address, status_code=303)
        # Lax, for the way back is a navigation that another site began
        answer.set_cookie(
            begun, browser, max_age=int(PENDING_SECONDS), httponly=True, samesite="lax", secure=guard.secure
        )
        return answer

    @app.get("/login/oidc/callback", response_class=HTMLResponse, include_in_schema=False)
    async def back(request: Request) -> Response:
        try:
            known = await oidc.finish(request.query_params, request.cookies.get(begun, ""))
        except (RefusedError, UnreachableError) as error:
            guard.accounts.note("login.refused", account="openid")
            return page(request, str(error))
        person = Account(f"{clean_name(known.name)} (OpenID)", known.role)
        guard.accounts.note("login", account=person.name, role=person.role)
        # a page of ours that goes on by itself: a redirect would still count as the other site's, without the Strict cookie
        answer = _TEMPLATES.TemplateResponse(request, "entered.html", {"up": "../../"})
        answer.delete_cookie(begun)
        return _with_session(answer, guard, guard.accounts.open_session(person))


def _with_session(answer: Response, guard: Guard, session: str) -> Response:
    answer.set_cookie(
        guard.cookie, session, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=guard.secure
    )
    return answer
