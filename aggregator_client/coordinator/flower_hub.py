"""The coordinator's end of the federation: Flower's SuperLink inside our process, driven by our own gather.

One SuperLink application has two listeners. The public one (TLS) lets only Flower's Fleet interface through, which
answers registered node keys alone. Control and Runtime, which in Flower take orders from anybody who reaches them,
listen on loopback and hear only requests that carry a secret made at start. This module and flower_site.py are the only
ones that import flwr: its embedded use is semi-private and may change between versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
import uvicorn
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app

from aggregator_client.coordinator.turned_away import App, Scope, TurnedAway
from aggregator_client.errors import UnreachableError
from aggregator_client.transport import Failure, Handle, SiteInfo, app_bundle, app_bundle_hash

POLL_SECONDS = 0.1
_TASK = "flwr-serverapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_HEADER = "x-fedpacs-loopback"


@dataclass(frozen=True)
class Tls:
    """PEM files: this coordinator's certificate chain and key, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


def only(app: App, allowed: Callable[[Scope], bool]) -> App:
    """`app` for HTTP requests that `allowed` lets through; 404 for every other, before anything reads its body."""

    async def guarded(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or allowed(scope):
            await app(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    return guarded


class _Secret:
    """Adds the loopback secret to a request."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[_HEADER] = self._secret
        return call_next(context)


class _Grid(HttpGrid):
    """Flower's grid over a client of ours."""

    def __init__(self, address: str, client: RuntimeHttpClient, token: str) -> None:
        super().__init__(runtime_api_address=address, insecure=True, token=token)
        self._client = client


class FlowerHub:
    """A running SuperLink and, after `start_run`, one run of it. `folder` keeps its database (node ids, messages)."""

    def __init__(self, folder: Path, tls: Tls, host: str = "0.0.0.0", port: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["FLWR_HOME"] = str(folder)
        os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY", ""), "127.0.0.1")))
        for name in ("flwr", "uvicorn.error", "uvicorn.access", "httpx"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._secret, self._superexec = secrets.token_hex(32), secrets.token_bytes(32)
        self._public, self._loopback = _bind(host, port), _bind("127.0.0.1", 0)
        self.port: int = self._public.getsockname()[1]
        self._address = f"127.0.0.1:{self._loopback.getsockname()[1]}"
        self._turned_away = TurnedAway(FLEET_HTTP_PUBLIC_KEY_HEADER.lower(), TIMESTAMP_HEADER.lower())
        self._serve(create_app(self._settings(folder, tls, host), SuperLinkLifespan), tls)
        self._control = ControlHttpClient.from_server_address(
            self._address, True, None, [RuntimeVersionHttpInterceptor("fedpacs"), _Secret(self._secret)]
        )
        self._grid: _Grid | None = None
        self._stop = threading.Event()
        self._keys: dict[bytes, str] = {}

    # -- the servers --------------------------------------------------------------------------------------------------

    def _settings(self, folder: Path, tls: Tls, host: str) -> SuperLinkLifespanConfig:
        return SuperLinkLifespanConfig(
            control_address=self._address,
            health_server_address=None,
            host=host,
            port=self.port,
            insecure=False,
            certificates=(tls.authority.read_bytes(), tls.certificate.read_bytes(), tls.key.read_bytes()),
            superexec_auth_secret=self._superexec,
            authn_plugin=NoOpControlAuthnPlugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type="grpc-rere",
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=str(tls.authority),
            ssl_certfile=str(tls.certificate),
            ssl_keyfile=str(tls.key),
            database=str(folder / "superlink.db"),
            isolation="process",
            runtime_dependency_install=False,
        )

    def _serve(self, app: Any, tls: Tls) -> None:
        secret = self._secret.encode()
        common: dict[str, Any] = {"log_config": None, "access_log": False, "ws": "none", "timeout_graceful_shutdown": 2}
        # A client gives an idle connection up after 5 s: were that our limit too, a heartbeat could meet the close halfway.
        common["timeout_keep_alive"] = 30
        fleet = uvicorn.Config(
            only(self._turned_away.watching(app), lambda scope: scope["path"].startswith("/v1/fleet/")),
            ssl_certfile=str(tls.certificate),
            ssl_keyfile=str(tls.key),
            lifespan="off",
            server_header=False,
            **common,
        )
        inner = uvicorn.Config(
            only(app, lambda scope: dict(scope["headers"]).get(_HEADER.encode()) == secret), lifespan="on", **common
        )
        self._servers = [uvicorn.Server(inner), uvicorn.Server(fleet)]
        self._thread = threading.Thread(target=self._loop, name="superlink", daemon=True)
        self._thread.start()
        while not all(server.started for server in self._servers):
            if not self._thread.is_alive():
                raise UnreachableError(
                    "The coordinator's server did not start: check its port and the TLS files in its folder."
                )
            time.sleep(0.02)

    def _loop(self) -> None:
        async def both() -> None:
            sockets = [[self._loopback], [self._public]]
            await asyncio.gather(*(s.serve(sockets=k) for s, k in zip(self._servers, sockets, strict=True)))

        asyncio.run(both())

    # -- sites --------------------------------------------------------------------------------------------------------

    def register(self, site: str, public_key: bytes) -> None:
        """Let the holder of this node key (NIST curve, PEM) in as `site`; an earlier key of that site is shut out."""
        public_key = public_key.strip() + b"\n"
        known = {node.public_key: node for node in self._nodes() if not node.unregistered_at}
        for key, node in known.items():
            if node.name == site and key != public_key:
                self._control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
        if public_key not in known:
            self._control.RegisterNode(RegisterNodeRequest(public_key=public_key, name=site))
        self._keys[public_key] = site

    def sites(self) -> list[SiteInfo]:
        return [
            SiteInfo(
                name=self._keys[node.public_key],
                online=node.status == "online",
                last_seen=max(0.0, min(time.time(), node.online_until - 2 * node.heartbeat_interval))
                if node.online_until
                else 0.0,
                activated_at=_seconds(node.last_activated_at),
                trouble=self._turned_away.why(node.public_key),
            )
            for node in self._mine()
        ]

    def _nodes(self) -> list[NodeInfo]:
        with _reaching():
            return list(self._control.ListNodes(ListNodesRequest()).nodes_info)

    def _mine(self) -> list[NodeInfo]:
        return [node for node in self._nodes() if not node.unregistered_at and node.public_key in self._keys]

    # -- one run ------------------------------------------------------------------------------------------------------

    def start_run(self) -> None:
        """Stop what an earlier process left running and open a run of our own."""
        with _reaching():
            for run_id, run in self._control.ListRuns(ListRunsRequest()).run_dict.items():
                if run.status.status != "finished":
                    self._control.StopRun(StopRunRequest(run_id=run_id))
            fab = Fab(hash_str=app_bundle_hash(), content=app_bundle())
            self._control.StartRun(StartRunRequest(fab=fab))
            token = self._acquire()
            client = self._runtime(RuntimeTokenHttpInterceptor(token))
            grid = _Grid(self._address, client, token)
            task = client.PullTaskInput(PullTaskInputRequest())
        # global in Flower, hence one run a process
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = (
            task.task_id,
            task.run.run_id,
            task.context.node_id,
        )
        grid.set_run(run_from_proto(task.run))
        self._grid = grid
        threading.Thread(target=self._beat, args=(client,), name="run-heartbeat", daemon=True).start()

    def _runtime(self, interceptor: Any) -> RuntimeHttpClient:
        common = [RuntimeVersionHttpInterceptor("fedpacs"), _Secret(self._secret), interceptor]
        return RuntimeHttpClient.from_server_address(self._address, True, None, common)

    def _acquire(self) -> str:
        client = self._runtime(
            SuperExecAuthHttpInterceptor(master_secret=self._superexec, protected_methods={_ACQUIRE})
        )
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[_TASK]))
            if answer.token:
                client.close()
                return str(answer.token)
            time.sleep(POLL_SECONDS)
        raise UnreachableError("The run could not be opened at the coordinator's own server: start it again.")

    def _beat(self, client: RuntimeHttpClient) -> None:
        while not self._stop.wait(10):
            with contextlib.suppress(httpx.HTTPError):  # the next beat tries again; two in a row are forgiven
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    def send(self, site: str, payload: bytes) -> Handle:
        node_id = next((n.node_id for n in self._mine() if self._keys[n.public_key] == site), None)
        if self._grid is None or node_id is None:
            raise UnreachableError(f"The site {site} is not registered in this run: invite it first.")
        content = RecordDict({"payload": ArrayRecord({"bytes": to_array(payload)})})
        with _reaching():
            (message_id,) = self._grid.push_messages([Message(content, node_id, "train")])
        if message_id is None:
            raise UnreachableError(f"The message to {site} was not taken by the coordinator's own server.")
        return Handle(site, message_id)

    def collect(self, handles: Iterable[Handle], deadline: float) -> Iterator[tuple[Handle, bytes | Failure]]:
        waiting = {handle.id: handle for handle in handles}
        while waiting and self._grid is not None:
            came = 0
            for id in list(waiting):
                with _reaching():
                    replies = list(self._grid.pull_messages([id]))
                for reply in replies:
                    came += 1
                    yield waiting.pop(id), _unwrap(reply)
                    del reply
            if time.monotonic() >= deadline:
                return
            if not came:
                time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def close(self) -> None:
        self._stop.set()
        if self._grid is not None:
            run_id = self._grid.run.run_id
            with contextlib.suppress(httpx.HTTPError):
                self._control.StopRun(StopRunRequest(run_id=run_id))
            self._grid.close()
            self._grid = None
        self._control.close()
        for server in self._servers:
            server.should_exit = True
        self._thread.join(timeout=5)
        self._public.close()
        self._loopback.close()


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"The coordinator's own server does not answer as it should ({type(error).__name__}): start it again."
        ) from error


def to_array(payload: bytes) -> Array:
    """Bytes as an array: the record Flower moves in pieces of 5 MB, without a cap on the whole."""
    return Array("uint8", (len(payload),), "fedpacs.bytes", payload)


def _unwrap(reply: Message) -> bytes | Failure:
    if reply.has_error():
        return Failure(f"{reply.error.reason or 'no reply'} (code {reply.error.code})", retry=True)
    record = reply.content.get("payload")
    if not isinstance(record, ArrayRecord) or set(record) != {"bytes"}:
        return Failure("the reply holds no payload")
    return bytes(record["bytes"].data)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise UnreachableError(
            f"The coordinator cannot listen on {host}:{port} ({error.strerror}): stop what uses the port or choose another."
        ) from None
    return listener


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
