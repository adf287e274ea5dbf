"""Who may use a relay: each request is signed by a member, with the time, so that strangers can neither fill nor read it.

A relay needs no trust, but its disk is somebody's. Headers of a request:

    x-fedpacs-member: <base64url of the member's Ed25519 public key>
    x-fedpacs-time: <unix seconds>
    x-fedpacs-signature: <hex Ed25519 over method, path, time and the SHA-256 of the body>
"""

from __future__ import annotations

import base64
import time
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_client.decentral.chain import verifies

WINDOW_SECONDS = 300
_SIGN = b"fedpacs relay v1\x00"


def sign(key: Ed25519PrivateKey, method: str, path: str, digest: str, now: float | None = None) -> dict[str, str]:
    """The headers of a request with this body digest (hex SHA-256)."""
    at = str(int(time.time() if now is None else now))
    mark = key.sign(_said(method, path, at, digest)).hex()
    member = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode()
    return {"x-fedpacs-member": member, "x-fedpacs-time": at, "x-fedpacs-signature": mark}


def refusal(headers: Mapping[str, str], members: Collection[bytes], method: str, path: str, digest: str) -> str | None:
    """Why a request is not let in; None when it is."""
    try:
        member = base64.urlsafe_b64decode(headers.get("x-fedpacs-member", ""))
        at = int(headers.get("x-fedpacs-time", ""))
    except ValueError:
        return "the request carries no member's signature"
    if member not in members:
        return "the request is signed by no member of the project"
    if abs(time.time() - at) > WINDOW_SECONDS:
        return "the clocks of relay and member differ by more than five minutes: set them"
    if not verifies(member, headers.get("x-fedpacs-signature", ""), _said(method, path, str(at), digest)):
        return "the request's signature does not hold"
    return None


def _said(method: str, path: str, at: str, digest: str) -> bytes:
    return _SIGN + "\n".join((method, path, at, digest)).encode()
