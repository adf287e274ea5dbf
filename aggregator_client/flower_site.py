"""A site's end of the federation: Flower's SuperNode protocol over TLS, with the node's own key.

A stock SuperNode would fetch the app bundle of each run and start what it names. This one speaks the same protocol but
never asks for a bundle: it compares the run's bundle hash with the one that holds no code and hands the message to the
installed package. Messages are on disk before they are confirmed, so a site killed at any moment goes on with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from aggregator_client.errors import SignatureError, UnreachableError
from aggregator_client.transport import Delivery, app_bundle_hash

HEARTBEAT_SECONDS = 15.0
Answer = TypeVar("Answer")
log = logging.getLogger("fedpacs.federation")


class FlowerLink:
    """The link of one site. `folder` keeps its node id and the messages it has not answered yet.

    address: "host:port" of the coordinator's one open port; authority: PEM of the authority its certificate must be
    signed by; key: PEM or OpenSSH private key on a NIST curve, whose public part the coordinator registered.
    """

    def __init__(self, address: str, authority: bytes, key: ec.EllipticCurvePrivateKey, folder: Path) -> None:
        for name in ("flwr", "httpx"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._folder, self._inbox = folder, folder / "inbox"
        self._inbox.mkdir(parents=True, exist_ok=True)
        self._address = address
        public = key.public_key()
        self._public = public_key_to_bytes(public)
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, public)],
            verify=trusting(authority),
        )
        self._node: Node | None = None
        self._stop = threading.Event()
        self._beater: threading.Thread | None = None
        self._runs: dict[int, str] = {}

    # -- being there --------------------------------------------------------------------------------------------------

    def _connect(self) -> Node:
        """This site's node, activated; a life that ended without good-bye is ended first."""
        if self._node is None:
            request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
            try:
                answer = self._client.ActivateNode(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED or not self._node_file.exists():
                    raise
                node_id = int(self._node_file.read_text())
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
                answer = self._client.ActivateNode(request)
            self._node = Node(node_id=answer.node_id)
            write_whole(self._node_file, str(answer.node_id).encode())
            if self._beater is None:
                self._beater = threading.Thread(target=self._beat, name="node-heartbeat", daemon=True)
                self._beater.start()
        return self._node

    @property
    def _node_file(self) -> Path:
        return self._folder / "node_id"

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS / 3):
            node = self._node
            if node is None:
                continue
            try:
                request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_SECONDS)
                if not self._client.SendNodeHeartbeat(request).success:
                    self._node = None  # the coordinator has given us up: the next call activates again
            except httpx.HTTPStatusError:
                self._node = None
            except httpx.HTTPError:
                continue

    # -- messages -----------------------------------------------------------------------------------------------------

    def next(self, timeout: float) -> Delivery | None:
        for path in sorted(self._inbox.glob("*.message"), key=lambda p: p.stat().st_mtime_ns):
            return Delivery(path.stem, path.read_bytes())
        with self._reaching():
            answer = self._pull(self._connect())
            if not answer.messages_list:
                self._stop.wait(timeout)
                return None
            return self._take(answer.messages_list[0], answer.message_object_trees[0])

    def _pull(self, node: Node) -> PullMessagesResponse:
        """What the coordinator has for us. It counts a message as delivered when it is asked for, not when it arrives."""
        try:
            return self._client.PullMessages(PullMessagesRequest(node=node))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise  # it was not asked
        except httpx.TransportError:
            self._node = (
                None  # an answer may be lost; signing in again makes the coordinator send what we have not answered
            )
            raise

    def _take(self, proto: MessageProto, tree: Any) -> Delivery | None:
        """Fetch a message's pieces, put it on disk and only then confirm it."""
        head = message_from_proto(proto)
        run_id, node = head.metadata.run_id, self._connect()
        ids = [piece.object_id for piece in iterate_object_tree(tree)]
        try:
            if self._bundle(run_id) != app_bundle_hash():
                log.error("a run with another app bundle than the installed package's was refused")
                return None
            pull = make_pull_object_fn_protobuf(self._retried(self._client.PullObject), node, run_id)
            pieces = pull_objects(ids, pull)
            payload = _payload(inflate_object_from_contents(head.metadata.message_id, pieces))
        except (ObjectPullError, ValueError, httpx.TransportError):
            log.warning("a message did not arrive whole; signing in again makes the coordinator send it again")
            self._leave()
            return None
        if payload is None:
            log.error("a message without a payload was refused")
            return None
        id = hashlib.sha256(head.metadata.message_id.encode()).hexdigest()[:32]
        proto.metadata.message_id = head.metadata.message_id
        write_whole(self._inbox / f"{id}.head", proto.SerializeToString())
        write_whole(self._inbox / f"{id}.message", payload)
        make_confirm_message_received_fn_protobuf(self._retried(self._client.ConfirmMessageReceived), node, run_id)(
            head.metadata.message_id
        )
        return Delivery(id, payload)

    def _bundle(self, run_id: int) -> str:
        if run_id not in self._runs:
            run = self._client.GetRun(GetRunRequest(node=self._connect(), run_id=run_id)).run
            self._runs[run_id] = run.fab_hash
        return self._runs[run_id]

    def reply(self, delivery: Delivery, payload: bytes) -> None:
        proto = MessageProto.FromString((self._inbox / f"{delivery.id}.head").read_bytes())
        content = RecordDict(
            {"payload": ArrayRecord({"bytes": Array("uint8", (len(payload),), "fedpacs.bytes", payload)})}
        )
        message = Message(content, reply_to=message_from_proto(proto))
        with self._reaching():
            try:
                self._push(message)
            except httpx.HTTPStatusError as error:
                if error.response.status_code in (401, 502, 503, 504):
                    raise
                log.warning("the coordinator no longer waits for this reply (HTTP %s)", error.response.status_code)
        for suffix in ("message", "head"):
            (self._inbox / f"{delivery.id}.{suffix}").unlink(missing_ok=True)

    def _push(self, message: Message) -> None:
        node = self._connect()
        message.metadata.__dict__["_message_id"] = message.object_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[get_object_tree(message)],
                clientapp_runtime_list=[0.0],
            )
            answer = self._client.PushMessages(request)
            push = make_push_object_fn_protobuf(
                self._retried(self._client.PushObject), node, message.metadata.run_id, answer.session_id
            )
            push_objects(get_all_nested_objects(message), push, object_ids_to_push=set(answer.objects_to_push))

    # -- errors -------------------------------------------------------------------------------------------------------

    def _retried(self, call: Callable[[Any], Answer], tries: int = 5) -> Callable[[Any], Answer]:
        """The same call, made again after a broken connection; a piece of a large message is at most 5 MB."""

        def again(request: Any) -> Answer:
            for number in range(tries):
                try:
                    return call(request)
                except httpx.TransportError:
                    if number == tries - 1 or self._stop.wait(min(8.0, 0.25 * 2**number)):
                        raise
            raise AssertionError("unreachable")

        return again

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            self._node = None
            raise UnreachableError(_why(self._address, error.response.status_code)) from None
        except httpx.TransportError as error:
            if isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise SignatureError(
                    f"The coordinator at {self._address} shows a certificate that is not the invitation's:"
                    " ask the coordinator for a new invitation and compare its fingerprint by telephone."
                ) from None
            raise UnreachableError(
                f"The coordinator at {self._address} does not answer ({type(error).__name__}): the node keeps trying."
            ) from None

    def _leave(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            with contextlib.suppress(httpx.HTTPError):  # the coordinator finds out by itself, only later
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))

    def close(self) -> None:
        self._stop.set()
        self._leave()
        self._client.close()


def _why(address: str, status: int) -> str:
    if status == httpx.codes.UNAUTHORIZED:
        return (
            f"The coordinator at {address} does not accept this node's key or clock: check that the invitation is in"
            " force and that the clock is right."
        )
    if status == httpx.codes.PRECONDITION_FAILED:
        return (
            f"The coordinator at {address} does not let this node in yet (unknown key, or still signed in elsewhere)."
        )
    return f"The coordinator at {address} answered with HTTP {status}: the node keeps trying."


def _payload(message: object) -> bytes | None:
    if not isinstance(message, Message) or not message.has_content():
        return None
    record = message.content.get("payload")
    if not isinstance(record, ArrayRecord) or set(record) != {"bytes"}:
        return None
    return bytes(record["bytes"].data)


def trusting(authority: bytes) -> ssl.SSLContext:
    """A client context that trusts this authority (PEM) and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


def load_node_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """The node's key from PEM or OpenSSH text. Raises SignatureError when it is no key on a NIST curve."""
    load = load_ssh_private_key if b"OPENSSH" in data[:64] else load_pem_private_key
    key = load(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SignatureError("The node's federation key is not an elliptic-curve key: make a new one and register it.")
    return key


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent, whatever happens to the process or the machine."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
