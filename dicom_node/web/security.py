"""Who may ask what of a console: token, session or proxy, a role for every route, same origin for changes, known host names.

bearer token     keys/api.token (the node's own: scripts, the plugin, Prometheus) or one made with `fedpacs node account
                 token`, which has a role and may be confined to scopes. The node's own alone may name a user on whose behalf
                 it asks (X-Fedpacs-User), with a role (X-Fedpacs-Role), because Orthanc has checked that user's password.
session cookie   from /login with name and password, or from an OpenID Connect provider; HttpOnly, SameSite=Strict, kept on the
                 server, ends after 30 idle minutes or 12 hours.
proxy headers    user and role, believed only from the configured addresses of a reverse proxy that authenticates people.
changes          from a session or a proxy need the header X-Fedpacs: 1 and the page's own origin (CSRF).
role             viewer, data-manager, admin: what a route needs stands in one table; a route that is not in it needs an admin.
host names       only loopback's and the configured ones, so that a name rebound by DNS cannot reach us.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.accounts import Account, Accounts
from dicom_node.config import ProxySettings

COOKIE = "fedpacs_session"
STATIC = Path(__file__).parent / "static"  # style, script and icon, open to everybody
BODY_LIMIT = 64 * 1024
OPEN_PATHS = re.compile(r"/health|/login(/oidc(/callback)?)?|/static/[a-z]+\.(css|js|svg)")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser calls even our own log-in form's origin "null"
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    ),
}


class Right(NamedTuple):
    """What a route needs: `role` at least, and of a token that has scopes `scope`; a page is for people and has none."""

    method: str
    path: str
    role: str
    scope: str = ""


Rights = Sequence[tuple[str, str, str] | tuple[str, str, str, str]]
ADMIN_ONLY = Right("", "", "admin")


def clean_name(name: str) -> str:
    """A person's name fit for the audit log and for a header."""
    return re.sub(r"[^\w .@-]", "_", name).strip()[:64]


class ProxyLogin:
    """Believes a reverse proxy's headers when the connection comes from one of its addresses, and from nowhere else."""

    def __init__(self, settings: ProxySettings, accounts: Accounts) -> None:
        self._accounts = accounts
        self._networks = [ip_network(one, strict=False) for one in settings.addresses]
        self._user, self._role = settings.user_header, settings.role_header

    def caller(self, headers: Headers, client: str) -> Account | None:
        """ "proxy:NAME"; a role that is none of ours is a viewer's."""
        try:
            known = any(ip_address(client) in network for network in self._networks)
        except ValueError:  # a unix socket has no address
            return None
        user = clean_name(headers.get(self._user, ""))
        if not known or not user:
            return None
        return Account(f"proxy:{user}", self._accounts.known_role(headers.get(self._role, "")))


class Guard:
    """Decides on one request. `rights` are tried in order; what matches none of them needs an admin."""

    def __init__(
        self,
        token: str,
        hosts: set[str],
        accounts: Accounts,
        rights: Rights = (),
        cookie: str = COOKIE,
        proxy: ProxySettings | None = None,
        secure: bool = False,
    ) -> None:
        """`secure`: the console is reached over TLS, so its cookies travel over nothing else."""
        self._token, self.accounts, self.cookie, self.secure = token.encode(), accounts, cookie, secure
        self._hosts = {"127.0.0.1", "localhost", "::1"} | hosts
        self._proxy = ProxyLogin(proxy or ProxySettings(), accounts)
        self._rights = [(re.compile(one.path), one) for one in (Right(*given) for given in rights)]

    def refuse_host(self, headers: Headers) -> bool:
        return (urlsplit("//" + headers.get("host", "")).hostname or "") not in self._hosts

    def is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.strip().encode(), self._token)

    def caller(self, headers: Headers, cookies: dict[str, str], client: str = "") -> Account | None:
        """Who asks, as the audit log names them: "api", "token:NAME", "console:NAME", "proxy:NAME" or "orthanc:NAME"."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self.is_token(token):
                user, role = clean_name(headers.get("x-fedpacs-user", "")), headers.get("x-fedpacs-role", "admin")
                if not user:
                    return Account("api", "admin")
                return Account(f"orthanc:{user}", self.accounts.known_role(role))
            script = self.accounts.token(token.strip())
            return script and Account(f"token:{script.name}", script.role, script.scopes)
        person = self.accounts.session(cookies.get(self.cookie, ""))
        if person is not None:
            return Account(f"console:{person.name}", person.role)
        return self._proxy.caller(headers, client)

    def right(self, method: str, path: str) -> Right:
        """What a request of this kind needs."""
        for pattern, right in self._rights:
            if right.method == method and pattern.fullmatch(path):
                return right
        return ADMIN_ONLY

    def log_in(self, name: str, password: str) -> str:
        """A session's token. Before the first account is made, the node's own token is everybody's password.

        Raises RefusedError.
        """
        if self.accounts.empty() and self.is_token(password) and (known := clean_name(name)):
            self.accounts.note("login", account=known, role="admin", token=True)
            return self.accounts.open_session(Account(known, "admin"))
        return self.accounts.log_in(name.strip(), password)

    def refuse_change(self, headers: Headers) -> str | None:
        """Why a state-changing request is refused, or None. A bearer token is never sent by a browser on its own."""
        if headers.get("authorization", "").lower().startswith("bearer "):
            return None
        if headers.get("x-fedpacs") != "1":
            return "a change needs the header X-Fedpacs: 1 or the bearer token"
        return self.refuse_foreign(headers)

    def refuse_foreign(self, headers: Headers) -> str | None:
        """Why a request that another site made a browser send is refused, or None."""
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
        client = request.client.host if request.client else ""
        request.state.caller = self.guard.caller(request.headers, request.cookies, client)
        if OPEN_PATHS.fullmatch(request.url.path):
            foreign = self.guard.refuse_foreign(request.headers) if request.method not in ("GET", "HEAD") else None
            return _error(403, foreign) if foreign else None
        if request.state.caller is None:
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse("../" * (request.url.path.count("/") - 1) + "login", status_code=303)
            return _error(401, "give the token of keys/api.token as Authorization: Bearer TOKEN")
        method = "GET" if request.method == "HEAD" else request.method
        needed = self.guard.right(method, request.url.path)
        if not request.state.caller.may(needed.role):
            return _error(403, f"this needs the role {needed.role}; you are {request.state.caller.role}")
        if not request.state.caller.within(needed.scope):
            return _error(
                403, f"this token is not for it: it lacks the scope {needed.scope or '(pages are for people)'}"
            )
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
