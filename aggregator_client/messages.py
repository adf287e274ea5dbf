"""The messages of a round: a JSON header and named parts (safetensors bytes), sealed to one reader and signed by one writer.

    plaintext  "FPM1" | header length u32 | header JSON | part 0 | part 1 | ...     header["parts"] = [[name, bytes], ...]
    on the way "FPE1" | context length u32 | context JSON | sealed box (aggregator_client.sealing)
               "FPE2" | context length u32 | context JSON | introductions length u32 | their JSON | sealed box

The second form is for a sender who replaced its keys: the statements that introduce them (aggregator_client.rotation).
The context (project, round, sender, recipient, kind) stands in clear, since a reader needs it to open the box; the seal and
the signature are bound to it, so a changed context opens nothing. There is no pickle, and no name in a message is ever
imported or run.

| kind | from | header | parts |
|---|---|---|---|
| train | coordinator | run, round, rounds, deadline_s, evaluate_on | model (unless they stay home), the algorithm's, votes |
| evaluate | coordinator | the same | model |
| predict | coordinator | the same | reference studies, each named by its SHA-256 |
| vote | coordinator | the same | model: the candidate |
| deliver | coordinator | the same | what all sites' outputs became |
| sum.advert, sum.shares, ... | coordinator | the same | plan, and the stage's (aggregator_client.secagg.stages) |
| sum.advert.answer, ... | site | request | the stage's |
| split.forward, split.features, ... | coordinator | the same, attempt, step | arrays |
| split.forward.answer, ... | site | request, loss or samples | arrays |
| update | site | request, samples, loss, seconds, metrics (of the model it was given) | model, and what the algorithm adds |
| metrics | site | request, samples, loss, seconds, metrics | |
| ballot | site | request | vote (aggregator_client.votes) |
| outputs | site | request, samples, seconds | DICOM-SEG files or predictions.jsonl |
| received | site | request, samples, received {name: SHA-256} | |
| refused | site | request, reason | |
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_client.errors import MessageError, SignatureError
from aggregator_client.sealing import Context, open_, seal

VERSION = 1
COORDINATOR = "coordinator"
SUMMING = ("sum.advert", "sum.shares", "sum.masked", "sum.agree", "sum.unmask")
"""The stages of secure aggregation, which follow on a round's training."""
SPLITTING = ("split.forward", "split.features", "split.backward", "split.collect")
"""The steps of split learning, which take the place of a round's training."""
REQUESTS = ("train", "evaluate", "predict", "deliver", "vote", *SUMMING, *SPLITTING)
ANSWERS = {"train": "update", "evaluate": "metrics", "predict": "outputs", "deliver": "received", "vote": "ballot"} | {
    stage: f"{stage}.answer" for stage in (*SUMMING, *SPLITTING)
}
REPLIES = (*ANSWERS.values(), "refused")
MAX_HEADER = 1 << 20
_PLAIN, _OUTER, _INTRODUCED = b"FPM1", b"FPE1", b"FPE2"
_LENGTH = struct.Struct(">I")


def roster_hash(sites: Sequence[str]) -> str:
    """Hex SHA-256 of who is asked in a round: what a context binds a request and its answers to."""
    return hashlib.sha256(b"fedpacs asked v1\x00" + json.dumps(sorted(sites)).encode()).hexdigest()


def schema_hash(model: bytes | None) -> str:
    """Hex SHA-256 of the names, types and shapes of a model's arrays (safetensors bytes); "" without a model.

    Raises MessageError when the bytes are no safetensors file.
    """
    if model is None:
        return ""
    try:
        size = int.from_bytes(model[:8], "little")
        header = json.loads(bytes(model[8 : 8 + min(size, 1 << 26)]))
        arrays = sorted((name, one["dtype"], one["shape"]) for name, one in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MessageError("The model in the message is no safetensors file: send it again.") from None
    return hashlib.sha256(b"fedpacs schema v1\x00" + json.dumps(arrays).encode()).hexdigest()


@dataclass(frozen=True)
class Message:
    """A header (JSON values only) and parts by name."""

    header: Mapping[str, Any]
    parts: Mapping[str, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The plaintext; equal messages give equal bytes."""
        sizes = [[name, len(data)] for name, data in sorted(self.parts.items())]
        header = _json({**self.header, "parts": sizes})
        return b"".join((_PLAIN, _LENGTH.pack(len(header)), header, *(data for _, data in sorted(self.parts.items()))))

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Raises MessageError when the bytes are not one whole message."""
        header, rest = _split(data, _PLAIN)
        sizes = header.pop("parts", None)
        parts: dict[str, bytes] = {}
        at = 0
        try:
            for name, size in sizes:
                if not isinstance(name, str) or type(size) is not int or size < 0 or name in parts:
                    raise ValueError(name)
                parts[name] = bytes(rest[at : at + size])
                at += size
        except (TypeError, ValueError):
            raise MessageError("The message's list of parts is damaged: it has to be sent again.") from None
        if at != len(rest):
            raise MessageError(f"The message holds {len(rest)} bytes where its header says {at}: send it again.")
        return cls(header, parts)

    def digest(self) -> str:
        """Hex SHA-256 of the plaintext: how a reply names the request it answers."""
        return hashlib.sha256(self.encode()).hexdigest()


def wrap(
    message: Message,
    context: Context,
    *,
    recipient_public: bytes,
    signer: Ed25519PrivateKey,
    introductions: Sequence[bytes] = (),
) -> bytes:
    """The bytes that travel. `introductions`: the signer's, when its keys were replaced (keys.CoordinatorKeys)."""
    clear = _json(asdict(context))
    box = seal(message.encode(), recipient_public=recipient_public, signer=signer, context=context)
    if not introductions:
        return b"".join((_OUTER, _LENGTH.pack(len(clear)), clear, box))
    told = _json({"successions": [json.loads(one) for one in introductions]})
    return b"".join((_INTRODUCED, _LENGTH.pack(len(clear)), clear, _LENGTH.pack(len(told)), told, box))


def peek(data: bytes) -> tuple[Context, bytes]:
    """The context a message claims and its sealed box; nothing of it is proven yet. Raises MessageError."""
    clear, _, box = _outer(data)
    try:
        context = Context(**clear)
    except TypeError:
        raise MessageError("The message names no project, round, sender and recipient: send it again.") from None
    whole = all(isinstance(value, str) for name, value in asdict(context).items() if name != "round")
    if not whole or type(context.round) is not int:
        raise MessageError("The message's context holds a value of the wrong kind: send it again.")
    return context, bytes(box)


def introductions(data: bytes) -> list[Any]:
    """What a message brings to introduce its sender's keys, unproven (rotation.read proves it). Raises MessageError."""
    found = _outer(data)[1].get("successions", [])
    if not isinstance(found, list):
        raise MessageError("The message's statements about replaced keys are no list: send it again.")
    return found


def unwrap(
    data: bytes,
    *,
    private: bytes,
    sender_public: bytes,
    expect: Context | None = None,
    retired: Sequence[bytes] = (),
) -> tuple[Context, Message]:
    """The context and message, proven to be `sender_public`'s. Raises MessageError, SignatureError.

    With `expect`, any other context (another round, another sender) is refused before anything is opened. `retired` are replaced
    private keys that the message may still be sealed to.
    """
    context, box = peek(data)
    if expect is not None and context != expect:
        raise MessageError(
            f"The message is a {context.kind} of round {context.round} from {context.sender!r} where a {expect.kind} of round"
            f" {expect.round} from {expect.sender!r} belongs: it is not used."
        )
    try:
        plain = open_(box, private=private, sender_public=sender_public, context=context)
    except SignatureError as error:
        opened = (_opened(box, one, sender_public, context) for one in retired)
        older = next((found for found in opened if found is not None), None)
        if older is None:
            raise error from None
        plain = older
    return context, Message.decode(plain)


def _opened(box: bytes, private: bytes, sender_public: bytes, context: Context) -> bytes | None:
    try:
        return open_(box, private=private, sender_public=sender_public, context=context)
    except SignatureError:
        return None


def _outer(data: bytes) -> tuple[dict[str, Any], dict[str, Any], memoryview]:
    """(context, what introduces the sender's keys, sealed box); nothing of it is proven yet."""
    if data[: len(_INTRODUCED)] != _INTRODUCED:
        clear, box = _split(data, _OUTER)
        return clear, {}, box
    clear, rest = _split(data, _INTRODUCED)
    told, box = _header(rest)
    return clear, told, box


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _split(data: bytes, magic: bytes) -> tuple[dict[str, Any], memoryview]:
    if data[: len(magic)] != magic:
        raise MessageError("The bytes are no message of a version known here: update fedpacs on both sides.")
    return _header(memoryview(data)[len(magic) :])


def _header(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    """(the JSON object at the beginning, told by its length; what follows)."""
    start = _LENGTH.size
    length = _LENGTH.unpack(data[:start])[0] if len(data) >= start else 0
    if length > MAX_HEADER or len(data) < start + length:
        raise MessageError("The message is cut short: it has to be sent again.")
    try:
        header = json.loads(bytes(data[start : start + length]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise MessageError("The message's header is damaged: it has to be sent again.")
    return header, data[start + length :]
