"""Log-in through an OpenID Connect provider (OpenID Connect Core 1.0): authorization code with PKCE, signed ID token.

The provider's addresses come from its discovery document. An ID token counts only when its signature, issuer, audience, nonce and
times hold; its claims then give a name and, by the configured values, a role. Whoever has no configured value is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from dicom_node.accounts import ROLES, Account
from dicom_node.config import OidcSettings
from dicom_node.errors import ConfigError, RefusedError, UnreachableError

CALLBACK = "/login/oidc/callback"
PENDING_SECONDS = 600.0
_MOST_PENDING = 1000
_ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
_LEEWAY = 60
_SECONDS = 10.0


@dataclass(frozen=True)
class _Pending:
    """A log-in on its way; `browser` binds it to the browser that began it."""

    browser: str
    nonce: str
    verifier: str
    until: float


class Oidc:
    """One provider. `clean` makes a name fit for the audit log; for one event loop."""

    def __init__(self, settings: OidcSettings, root: Path, roles: Sequence[str] = ROLES) -> None:
        """`roles` are the console's, least first. Raises ConfigError for another one, and for a secret that cannot be read."""
        others = sorted(set(settings.roles) - set(roles))
        if others:
            raise ConfigError(f"oidc.roles names {others[0]!r}, which is no role here: use {', '.join(roles)}.")
        self._settings, self._pending = settings, dict[str, _Pending]()
        self._roles = tuple(roles)
        self._secret = _secret(settings, root)
        self._redirect = settings.public_url.rstrip("/") + CALLBACK
        self._metadata: dict[str, Any] = {}

    async def begin(self) -> tuple[str, str]:
        """(address to send the browser to, secret to leave with it as a cookie). Raises UnreachableError."""
        found = await self._discover()
        now = time.monotonic()
        self._pending = {state: one for state, one in self._pending.items() if one.until > now}
        if len(self._pending) >= _MOST_PENDING:
            raise RefusedError("Too many log-ins are under way: try again in a few minutes.")
        one = _Pending(
            secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48), now + PENDING_SECONDS
        )
        state = secrets.token_urlsafe(24)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(one.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code", "scope": "openid profile", "client_id": self._settings.client_id,
            "redirect_uri": self._redirect, "state": state, "nonce": one.nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        self._pending[state] = one
        return str(httpx.URL(str(found["authorization_endpoint"])).copy_merge_params(query)), one.browser

    async def finish(self, query: Mapping[str, str], browser: str) -> Account:
        """Who logged in. Raises RefusedError, UnreachableError."""
        one = self._pending.pop(query.get("state", ""), None)
        if one is None or one.until < time.monotonic() or not hmac.compare_digest(one.browser, browser):
            raise RefusedError("This log-in was not begun in this browser, or too long ago: begin again.")
        if "code" not in query:
            raise RefusedError("The hospital's log-in was not completed: begin again.")
        return self._account(await self._claims(query["code"], one))

    async def _claims(self, code: str, one: _Pending) -> Mapping[str, Any]:
        found = await self._discover()
        asked = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect,
            "client_id": self._settings.client_id, "code_verifier": one.verifier,
        }  # fmt: skip
        proof = httpx.BasicAuth(self._settings.client_id, self._secret) if self._secret else httpx.USE_CLIENT_DEFAULT
        try:
            async with httpx.AsyncClient(timeout=_SECONDS) as client:
                token = await client.post(str(found["token_endpoint"]), data=asked, auth=proof)
                if token.status_code in (400, 401):
                    raise RefusedError("The provider did not accept the log-in: begin again.")
                keys = KeySet.import_key_set((await client.get(str(found["jwks_uri"]))).raise_for_status().json())
            claims = jwt.decode(str(token.raise_for_status().json()["id_token"]), keys, algorithms=_ALGORITHMS).claims
        except httpx.HTTPError as error:
            raise _away(self._settings.issuer, error) from None
        except (JoseError, KeyError, ValueError, TypeError):
            raise RefusedError("The provider's answer is no ID token signed by it: nobody is logged in.") from None
        _require(claims, self._settings, one.nonce)
        return claims

    def _account(self, claims: Mapping[str, Any]) -> Account:
        said = claims.get(self._settings.roles_claim, [])
        values = {said} if isinstance(said, str) else set(map(str, said)) if isinstance(said, list) else set()
        roles = [role for role in self._roles if values & set(self._settings.roles.get(role, ()))]  # type: ignore[call-overload]
        name = str(claims.get(self._settings.name_claim) or claims.get("sub", ""))
        if not roles or not name:
            raise RefusedError("Your account has no role here: ask for one of the groups that the console knows.")
        return Account(name, roles[-1])

    async def _discover(self) -> dict[str, Any]:
        """The provider's metadata, asked for once. Raises UnreachableError, RefusedError."""
        if not self._metadata:
            issuer = self._settings.issuer.rstrip("/")
            try:
                async with httpx.AsyncClient(timeout=_SECONDS) as client:
                    answer = await client.get(f"{issuer}/.well-known/openid-configuration")
                    found = answer.raise_for_status().json()
            except (httpx.HTTPError, ValueError) as error:
                raise _away(issuer, error) from None
            needed = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            if found.get("issuer") != self._settings.issuer or not all(isinstance(found.get(n), str) for n in needed):
                raise RefusedError(f"The discovery document of {issuer} is of another issuer or lacks addresses.")
            self._metadata = found
        return self._metadata


def _require(claims: Mapping[str, Any], settings: OidcSettings, nonce: str) -> None:
    """OpenID Connect Core 3.1.3.7. Raises RefusedError."""
    now, audience = time.time(), claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    expires, issued = claims.get("exp"), claims.get("iat")
    holds = (
        claims.get("iss") == settings.issuer
        and settings.client_id in audiences
        and (len(audiences) == 1 or claims.get("azp") == settings.client_id)
        and hmac.compare_digest(str(claims.get("nonce", "")), nonce)
        and isinstance(expires, int | float) and expires > now - _LEEWAY
        and isinstance(issued, int | float) and issued < now + _LEEWAY
    )  # fmt: skip
    if not holds:
        raise RefusedError("The provider's ID token is for somebody else, or too old: begin again.")


def _secret(settings: OidcSettings, root: Path) -> str | None:
    if settings.client_secret_file is None:
        return None
    file = root / settings.client_secret_file
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"The client secret {file} of [web.oidc] cannot be read: name a text file that holds it."
        ) from None


def _away(issuer: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"The provider {issuer} does not answer as one ({type(error).__name__}): log in with a password."
    )
