"""Who may ask what of a console: token or session, a role for every route, same origin for changes, known host names.

bearer token     keys/api.token (the node's own: scripts, the plugin, Prometheus) or one made with `fedpacs node account
                 token`, which has a role. The node's own alone may name a user on whose behalf it asks (X-Fedpacs-User), with
                 a role (X-Fedpacs-Role), because Orthanc has checked that user's password.
session cookie   from /login with name and password; HttpOnly, SameSite=Strict, kept on the server, ends after 30 idle minutes
                 or 12 hours. A change also needs the header X-Fedpacs: 1 and the page's own origin (CSRF).
role             viewer, data-manager, admin: what a route needs stands in one table; a route that is not in it needs an admin.
host names       only loopback's and the configured one, so that a name rebound by DNS cannot reach us.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.accounts import ROLES, Account, Accounts

COOKIE = "fedpacs_session"
STATIC = Path(__file__).parent / "static"  # style, script and icon, open to everybody
BODY_LIMIT = 64 * 1024
OPEN_PATHS = re.compile(r"/health|/login|/static/[a-z]+\.(css|js|svg)")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    ),
}


Rights = Sequence[tuple[str, str, str]]  # method, pattern of the path, least role


def clean_name(name: str) -> str:
    """A person's name fit for the audit log and for a header."""
    return re.sub(r"[^\w .@-]", "_", name).strip()[:64]


class Guard:
    """Decides on one request. `rights` are tried in order; what matches none of them needs an admin."""

    def __init__(
        self, token: str, hosts: set[str], accounts: Accounts, rights: Rights = (), cookie: str = COOKIE
    ) -> None:
        self._token, self.accounts, self.cookie = token.encode(), accounts, cookie
        self._hosts = {"127.0.0.1", "localhost", "::1"} | hosts
        self._rights = [(method, re.compile(path), role) for method, path, role in rights]

    def refuse_host(self, headers: Headers) -> bool:
        return (urlsplit("//" + headers.get("host", "")).hostname or "") not in self._hosts

    def is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.strip().encode(), self._token)

    def caller(self, headers: Headers, cookies: dict[str, str]) -> Account | None:
        """Who asks, as the audit log names them: "api", "token:NAME", "console:NAME" or "orthanc:NAME"."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self.is_token(token):
                user, role = clean_name(headers.get("x-fedpacs-user", "")), headers.get("x-fedpacs-role", "admin")
                return (
                    Account(f"orthanc:{user}", role if role in ROLES else "viewer") if user else Account("api", "admin")
                )
            script = self.accounts.token(token.strip())
            return script and Account(f"token:{script.name}", script.role)
        person = self.accounts.session(cookies.get(self.cookie, ""))
        return person and Account(f"console:{person.name}", person.role)

    def least_role(self, method: str, path: str) -> str:
        """What a request of this kind needs."""
        for verb, pattern, role in self._rights:
            if verb == method and pattern.fullmatch(path):
                return role
        return "admin"

    def log_in(self, name: str, password: str) -> str:
        """A session's token. Before the first account is made, the node's own token is everybody's password.

        Raises RefusedError.
        """
        if self.accounts.empty() and self.is_token(password) and (known := clean_name(name)):
            return self.accounts.open_session(Account(known, "admin"))
        return self.accounts.log_in(name.strip(), password)

    def refuse_change(self, headers: Headers) -> str | None:
        """Why a state-changing request is refused, or None. A bearer token is never sent by a browser on its own."""
        if headers.get("authorization", "").lower().startswith("bearer "):
            return None
        if headers.get("x-fedpacs") != "1":
            return "a change needs the header X-Fedpacs: 1 or the bearer token"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "a change from another site is refused"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            return "a change from another origin is refused"
        return None


class GuardMiddleware:
    """Applies the guard to every request and the headers to every answer; sets request.state.caller."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._check(Request(scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _check(self, request: Request) -> Response | None:
        if self.guard.refuse_host(request.headers):
            return _error(421, "this node answers to its own names only")
        if _too_large(request.headers):
            return _error(413, f"the request is larger than {BODY_LIMIT} bytes, or does not say how large it is")
        request.state.caller = self.guard.caller(request.headers, request.cookies)
        if OPEN_PATHS.fullmatch(request.url.path):
            return None
        if request.state.caller is None:
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse("../" * (request.url.path.count("/") - 1) + "login", status_code=303)
            return _error(401, "give the token of keys/api.token as Authorization: Bearer TOKEN")
        method = "GET" if request.method == "HEAD" else request.method
        needed = self.guard.least_role(method, request.url.path)
        if not request.state.caller.may(needed):
            return _error(403, f"this needs the role {needed}; you are {request.state.caller.role}")
        if method != "GET":
            reason = self.guard.refuse_change(request.headers)
            if reason:
                return _error(403, reason)
        return None


def _too_large(headers: Headers) -> bool:
    length = headers.get("content-length")
    if length is None:
        return "transfer-encoding" in headers  # a body of unknown length
    return not length.isdigit() or int(length) > BODY_LIMIT


def _error(status: int, sentence: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": sentence}, status_code=status, headers=headers)
