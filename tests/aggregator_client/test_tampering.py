"""Every kind of message: a flipped byte anywhere, another round, project, sender or coordinator, opens nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator_client import messages, rotation
from aggregator_client.approvals import Decision, decide, invitation_of
from aggregator_client.coordinator import settings
from aggregator_client.errors import DocumentError, FederationError, MessageError, SignatureError
from aggregator_client.executor import Executor
from aggregator_client.invitations import accept
from aggregator_client.keys import coordinator_keys, node_keys
from aggregator_client.ledger import Ledger
from aggregator_client.messages import COORDINATOR, REPLIES, REQUESTS, Message
from aggregator_client.project import ProjectDocument, sign
from aggregator_client.rotation import Pair
from aggregator_client.sealing import Context, overhead
from dicom_node.audit import AuditLog
from dicom_node.config import load_config
from dicom_node.setup import write_default_config

KINDS = (*REQUESTS, *REPLIES)
PART = bytes(range(256)) * 3


class Ends:
    """One message of a kind on its way, and how its reader opens it."""

    def __init__(self, root: Path, kind: str, replaced: bool = False) -> None:
        self.kind, self.holder = kind, COORDINATOR if kind in REQUESTS else "North"
        sender, self.reader = coordinator_keys(root / "sender"), coordinator_keys(root / "reader")
        self.start = Pair(sender.signing_public, sender.sealing_public)
        self.sender = rotation.replace(root / "sender", self.holder) if replaced else sender
        other = "North" if kind in REQUESTS else COORDINATOR
        self.context = Context("ab" * 32, 3, self.holder, other, kind)
        self.message = Message({"v": 1, "kind": kind, "run": "r"}, {"part": PART})
        self.blob = messages.wrap(
            self.message,
            self.context,
            recipient_public=self.reader.sealing_public,
            signer=self.sender.signing,
            introductions=self.sender.introductions,
        )

    def open(self, blob: bytes, context: Context | None = None) -> tuple[Context, Message]:
        told = rotation.read(messages.introductions(blob))
        keys = rotation.follow(self.start, rotation.extended(self.start, (), told, self.holder), self.holder)
        return messages.unwrap(
            blob, private=self.reader.sealing, sender_public=keys[-1].signing, expect=context or self.context
        )

    def places(self) -> dict[str, range]:
        """Every class of byte positions in the message."""
        blob, at, found = self.blob, 0, dict[str, range]()

        def take(name: str, size: int) -> None:
            nonlocal at
            found[name], at = range(at, at + size), at + size

        take("magic", 4)
        take("length of the context", 4)
        take("context", int.from_bytes(blob[4:8], "big"))
        if blob[:4] == b"FPE2":
            take("length of the introductions", 4)
            take("introductions", int.from_bytes(blob[at - 4 : at], "big"))
        for name, size in (("box magic", 4), ("suite", 1), ("segment size", 1), ("plaintext length", 8)):
            take(name, size)
        take("wrapped key", 1168)
        body = len(blob) - at - 64
        assert body == len(self.message.encode()) + 16 and len(blob) - found["box magic"].start - body + 16 == overhead(
            0
        )
        take("ciphertext", body - 16)
        take("tag", 16)
        take("signature", 64)
        assert at == len(blob)
        return found


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_of_every_class_of_every_message_is_refused(tmp_path: Path, kind: str, replaced: bool) -> None:
    ends = Ends(tmp_path, kind, replaced)
    assert ends.open(ends.blob)[1] == Message({**ends.message.header}, ends.message.parts)
    for name, place in ends.places().items():
        for position in {place[0], place[len(place) // 2], place[-1]}:
            for bit in (0x01, 0x80):
                changed = bytearray(ends.blob)
                changed[position] ^= bit
                with pytest.raises((SignatureError, DocumentError)):
                    ends.open(bytes(changed))
                    pytest.fail(f"bit {bit:#x} of byte {position} ({name}) of a {kind} may be flipped")
    for cut in (1, 63, 64, 80, len(ends.blob) // 2, len(ends.blob) - 3):
        with pytest.raises((SignatureError, DocumentError)):
            ends.open(ends.blob[:-cut])
    with pytest.raises((SignatureError, DocumentError)):
        ends.open(ends.blob + b"\x00")


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_is_replayed_into_another_round_project_kind_or_direction(tmp_path: Path, kind: str) -> None:
    ends = Ends(tmp_path, kind)
    other = next(one for one in KINDS if one != kind)
    for change in (
        {"round": 4},
        {"project_digest": "cd" * 32},
        {"kind": other},
        {"sender": ends.context.recipient, "recipient": ends.context.sender},
        {"sender": "South"},
        {"recipient": "South"},
        {"roster_hash": "ee" * 32},
    ):
        wanted = replace(ends.context, **change)
        with pytest.raises(MessageError, match="belongs"):  # the reader expects another
            ends.open(ends.blob, wanted)
        length = int.from_bytes(ends.blob[4:8], "big")
        claimed = {**json.loads(ends.blob[8 : 8 + length]), **change}
        text = json.dumps(claimed, sort_keys=True, separators=(",", ":")).encode()
        relabelled = b"FPE1" + len(text).to_bytes(4, "big") + text + ends.blob[8 + length :]
        with pytest.raises(SignatureError):  # and what is written over it does not help
            ends.open(relabelled, wanted)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[Any]:
    """A hospital of the first of two coordinators, each of which has a project it knows."""
    first, second = (
        settings.create(tmp_path / name, name="University", host="127.0.0.1", port=9443) for name in ("one", "two")
    )
    node = load_config(write_default_config(tmp_path / "north", name="North"))
    first.invite("North").write(node.federation.invitation)
    for one in (first, second):
        one.members.enrol(accept(one.invite("North"), node_keys(node.storage.keys)))
    with closing(AuditLog(node.storage.audit)) as audit, closing(Ledger(node.storage.federation)) as ledger:
        keys, reports = node_keys(node.storage.keys), list[dict[str, Any]]()
        made = Executor(node, invitation_of(node), keys, audit, ledger, lambda **f: reports.append(f), None)  # type: ignore[arg-type]
        yield first, second, made, reports


def test_two_coordinators_do_not_get_in_each_others_way(executor: Any) -> None:
    """The second one has the hospital's keys and a genuine project; it is not the one the hospital joined."""
    first, second, hospital, reports = executor
    asked = {}
    for one in (first, second):
        who = {"name": one.name, **one.keys().public_base64()}
        values = {
            "name": "chest",
            "version": "1",
            "purpose": "Tell pneumonia from normal on chest X-rays.",
            "rounds": 2,
            "task": {"classes": ["normal", "viral"], "label": "finding"},
            "cohort": {},
            "network": {"name": "small_resnet"},
            "coordinator": who,
        }
        project = sign(ProjectDocument.model_validate(values), one.keys().signing)
        with suppress(FederationError):  # the second one's cannot even be approved
            decide(hospital.config, project, Decision(project.digest, "approved", "Dr. Test", "pacs-admin"))
        context = Context(project.digest, 1, COORDINATOR, "North", "train")
        request = Message({"v": 1, "kind": "train", "run": "r", "round": 1, "name": "chest"})
        asked[one.root] = messages.wrap(
            request, context, recipient_public=hospital.keys.sealing_public, signer=one.keys().signing
        )
        hospital.handle(asked[one.root])
    said = [report["reason"] for report in reports if report.get("event") == "refused"]
    assert "data contract" in said[0] and "not signed by 'coordinator'" in said[1]
    assert [record.facts["recipient"] for record in hospital.audit.records("egress")] == ["University"] * 2
    answer = hospital.handle(asked[second.root])
    sealed_to = messages.peek(answer)[0]
    with pytest.raises(SignatureError):  # and what is answered is sealed to the first alone
        messages.unwrap(
            answer, private=second.keys().sealing, sender_public=hospital.keys.signing_public, expect=sealed_to
        )
