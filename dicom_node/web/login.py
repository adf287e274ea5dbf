"""The log-in page and its routes, for the node's console and the coordinator's dashboard."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates

from dicom_node.accounts import SESSION_SECONDS
from dicom_node.errors import RefusedError
from dicom_node.web.security import Guard

_TEMPLATES = Jinja2Templates(Path(__file__).parent / "templates")


def add_sessions(app: FastAPI, guard: Guard, title: str, token_name: str) -> None:
    """Add GET and POST /login and POST /logout. `token_name` is the file whose content logs in before the first account."""
    one_at_a_time = asyncio.Lock()

    def page(request: Request, error: str = "") -> Response:
        values = {"title": title, "token_file": token_name if guard.accounts.empty() else "", "error": error}
        return _TEMPLATES.TemplateResponse(request, "login.html", values, status_code=403 if error else 200)

    @app.get("/login", response_class=HTMLResponse)
    async def login_page(request: Request) -> Response:
        return page(request)

    @app.post("/login")
    async def login(request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        name, password = form.get("name", [""])[0], form.get("password", [""])[0]
        async with one_at_a_time:  # whoever tries passwords gets two tries a second, and the server goes on working
            try:
                session = guard.log_in(name, password)
            except RefusedError as error:
                await asyncio.sleep(0.5)
                return page(request, str(error))
        answer = RedirectResponse(".", status_code=303)
        answer.set_cookie(guard.cookie, session, max_age=SESSION_SECONDS, httponly=True, samesite="strict")
        return answer

    @app.post("/logout")
    async def logout(request: Request) -> Response:
        guard.accounts.log_out(request.cookies.get(guard.cookie, ""))
        answer = JSONResponse({"logged_out": True})
        answer.delete_cookie(guard.cookie)
        return answer
