"""Who may ask what of the REST interface: token or session, same origin for changes, known host names, strict headers.

bearer token     keys/api.token; scripts, the plugin and Prometheus. The plugin alone may name a user on whose behalf
                 it asks (X-Fedpacs-User), because Orthanc has checked that user's password.
session cookie   from /login with the token and a name; HttpOnly, SameSite=Strict, signed, 12 hours. A change also
                 needs the header X-Fedpacs: 1 and the page's own origin (CSRF).
host names       only loopback's and the configured one, so that a name rebound by DNS cannot reach us.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "fedpacs_session"
SESSION_SECONDS = 12 * 3600
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


@dataclass(frozen=True)
class Caller:
    """Who asks, as the audit log names them: "api", "console:NAME" or "orthanc:NAME"."""

    name: str


def clean_name(name: str) -> str:
    """A person's name fit for the audit log and for a header."""
    return re.sub(r"[^\w .@-]", "_", name).strip()[:64]


class Guard:
    """Decides on one request; holds the token and nothing else."""

    def __init__(
        self, token: str, hosts: set[str], clock: Callable[[], float] = time.time, cookie: str = COOKIE
    ) -> None:
        self._token, self._clock, self.cookie = token.encode(), clock, cookie
        self._hosts = {"127.0.0.1", "localhost", "::1"} | hosts

    def refuse_host(self, headers: Headers) -> bool:
        return (urlsplit("//" + headers.get("host", "")).hostname or "") not in self._hosts

    def is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.strip().encode(), self._token)

    def caller(self, headers: Headers, cookies: dict[str, str]) -> Caller | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if not self.is_token(token):
                return None
            user = clean_name(headers.get("x-fedpacs-user", ""))
            return Caller(f"orthanc:{user}" if user else "api")
        name = self.session_name(cookies.get(self.cookie, ""))
        return Caller(f"console:{name}") if name else None

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

    def session(self, name: str) -> str:
        """A cookie value that says who logged in and until when."""
        payload = f"{int(self._clock()) + SESSION_SECONDS}:{clean_name(name)}".encode()
        return f"{base64.urlsafe_b64encode(payload).decode()}.{self._sign(payload)}"

    def session_name(self, cookie: str) -> str:
        """The name in a cookie of ours that has not expired, else ""."""
        encoded, _, signature = cookie.partition(".")
        try:
            payload = base64.urlsafe_b64decode(encoded)
            until, _, name = payload.decode().partition(":")
            valid = hmac.compare_digest(signature.encode(), self._sign(payload).encode())
            return name if valid and int(until) > self._clock() else ""
        except ValueError:
            return ""

    def _sign(self, payload: bytes) -> str:
        return hmac.new(self._token, b"fedpacs console session\0" + payload, hashlib.sha256).hexdigest()


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
                return RedirectResponse("login", status_code=303)
            return _error(401, "give the token of keys/api.token as Authorization: Bearer TOKEN")
        if request.method not in ("GET", "HEAD"):
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
