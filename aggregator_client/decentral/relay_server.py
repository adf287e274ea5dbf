"""A relay over HTTPS that any hospital can run: `fedpacs federation relay`.

It keeps bytes for the members of one project and reads none of them. Its certificate is its own; members know it by its
digest, which stands in the project, so no authority is needed.

    PUT  /v1/<project>/<round>/<topic>            → 201                          (door.py says how requests are signed)
    GET  /v1/<project>/<round>/<topic>            → ["<sha256>", ...]
    GET  /v1/<project>/<round>/<topic>/<sha256>   → the bytes
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from aggregator_client.decentral import door
from aggregator_client.decentral.relay import FolderRelay, place

_PLACE = re.compile(r"[0-9a-f]{32}/[0-9]{6}/[0-9a-f]{32}")
_NAME = re.compile(r"[0-9a-f]{64}")
NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Limits:
    """largest: bytes of one message; free: bytes of the disk that a relay leaves alone."""

    largest: int = 4 << 30
    free: int = 2 << 30


def certificate_digest(pem: bytes) -> str:
    """Hex SHA-256 of the first certificate (DER), as it stands in a relay's address."""
    return x509.load_pem_x509_certificate(pem).fingerprint(SHA256()).hex()


class RelayServer:
    """The web application. `members`: raw Ed25519 keys that may use it for the project with that digest."""

    def __init__(self, folder: Path, project: str, members: Collection[bytes], limits: Limits | None = None) -> None:
        self._relay, self._members, self._limits = FolderRelay(folder), frozenset(members), limits or Limits()
        self._project = place(f"{project}/0/x").split("/")[0]
        folder.mkdir(parents=True, exist_ok=True)
        self.app = Starlette(
            routes=[
                Route("/v1/{place:path}", self._put, methods=["PUT"]),
                Route("/v1/{place:path}", self._get, methods=["GET"]),
            ]
        )

    async def _put(self, request: Request) -> Response:
        address, given = str(request.path_params["place"]), request.headers.get("x-fedpacs-digest", "")
        refused = self._refused(request, given) or self._misplaced(address)
        if refused is not None:
            return refused
        if shutil.disk_usage(self._relay.folder).free < self._limits.free:
            return _no(507, "the relay's disk is nearly full: its operator must make room")
        data = bytearray()
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > self._limits.largest:
                    return _no(413, "the message is larger than this relay takes")
        except ClientDisconnect:
            return _no(400, "the message was cut short")
        if hashlib.sha256(data).hexdigest() != given:
            return _no(400, "the message is not the one that was signed")
        name = await run_in_threadpool(self._relay.keep, address, bytes(data))
        return JSONResponse({"name": name}, 201)

    async def _get(self, request: Request) -> Response:
        address = str(request.path_params["place"])
        if (refused := self._refused(request, NOTHING)) is not None:
            return refused
        folder, _, name = address.rpartition("/")
        if _NAME.fullmatch(name) and self._misplaced(folder) is None:
            file = self._relay.folder / folder / name
            return FileResponse(file) if file.exists() else _no(404, "there is no such message")
        return self._misplaced(address) or JSONResponse(await run_in_threadpool(self._relay.names, address))

    def _refused(self, request: Request, digest: str) -> Response | None:
        why = door.refusal(request.headers, self._members, request.method, request.url.path, digest)
        return None if why is None else _no(403, why)

    def _misplaced(self, address: str) -> Response | None:
        known = _PLACE.fullmatch(address) and address.startswith(self._project + "/")
        return None if known else _no(404, "this relay serves another project, or the address is none")


def _no(status: int, why: str) -> Response:
    return Response(json.dumps({"reason": why}), status, media_type="application/json")
