"""Which keys of its coordinator a hospital trusts: the invitation's and what they introduced, less what was revoked here.

keys/coordinator.json holds what was learnt (successions) and what was revoked, beside the invitation, which stays as it came.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator_client import messages, rotation
from aggregator_client.errors import DocumentError, RefusedError, SignatureError
from aggregator_client.invitations import Invitation, write_file
from aggregator_client.rotation import Pair, Succession
from aggregator_client.sealing import Context, receipt_of
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig


class RevokedKey(BaseModel):
    """A signing key of a coordinator that this hospital refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signing_public: str
    fingerprint: str
    at: float
    reason: str
    by: str


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    successions: tuple[Succession, ...] = ()
    revoked: tuple[RevokedKey, ...] = ()


@dataclass(frozen=True)
class Trust:
    """The coordinator's keys as this hospital knows them. `generations`: the invitation's first, the present one last."""

    invitation: Invitation
    successions: tuple[Succession, ...]
    generations: tuple[Pair, ...]
    revoked: tuple[RevokedKey, ...]

    @property
    def present(self) -> Pair:
        return self.generations[-1]

    def require(self, signing: bytes) -> None:
        """Raises RefusedError for a revoked signing key."""
        encoded = base64.b64encode(signing).decode()
        for one in self.revoked:
            if one.signing_public == encoded:
                when = time.strftime("%Y-%m-%d", time.gmtime(one.at))
                raise RefusedError(
                    f"The coordinator's key {one.fingerprint} was revoked at this hospital on {when} ({one.reason}): ask the"
                    " coordinator for an invitation with new keys."
                )

    def knows(self, signing: bytes, sealing: bytes) -> bool:
        """Whether these are keys of this coordinator, present or replaced."""
        return Pair(signing, sealing) in self.generations


def trust_of(config: NodeConfig, invitation: Invitation) -> Trust:
    """What this hospital trusts now. Raises DocumentError for a damaged file, SignatureError for statements that do not hold."""
    kept = _read(_file(config))
    start = Pair(invitation.signing_key, invitation.sealing_key)
    chain = [link.verify() for link in kept.successions]
    if chain and chain[0].before != start:
        chain = []  # learnt under an earlier invitation
    return Trust(invitation, tuple(chain), tuple(rotation.follow(start, chain, messages.COORDINATOR)), kept.revoked)


def learn(config: NodeConfig, trust: Trust, told: Sequence[Any], audit: AuditLog) -> Trust:
    """`trust`, with newer keys when a message's introductions lead to them: audited, then kept.

    Raises RefusedError when revoked keys introduce others, DocumentError and SignatureError for statements that do not hold.
    """
    if not told:
        return trust
    chain = rotation.extended(trust.generations[0], trust.successions, rotation.read(told), messages.COORDINATOR)
    if len(chain) == len(trust.successions):
        return trust
    for link in chain:
        trust.require(link.before.signing)
        trust.require(link.after.signing)
    newest = chain[-1].after
    audit.append(
        "federation.keys_replaced",
        coordinator=trust.invitation.coordinator,
        before=trust.present.fingerprint,
        fingerprint=newest.fingerprint,
        number=chain[-1].number,
    )
    _write(_file(config), _Kept(successions=tuple(chain), revoked=trust.revoked))
    return trust_of(config, trust.invitation)


def revoke(config: NodeConfig, invitation: Invitation, reason: str, by: str, audit: AuditLog) -> Trust:
    """Refuse every key of this coordinator from now on. Audited first. Raises DocumentError without a reason."""
    if not reason.strip():
        raise DocumentError("A revocation needs a reason: give one with --reason.")
    trust = trust_of(config, invitation)
    held = {one.signing_public for one in trust.revoked}
    gone = [
        RevokedKey(
            signing_public=base64.b64encode(pair.signing).decode(),
            fingerprint=pair.fingerprint,
            at=time.time(),
            reason=reason.strip()[:300],
            by=by,
        )
        for pair in trust.generations
    ]
    fresh = tuple(one for one in gone if one.signing_public not in held)
    audit.append(
        "federation.revoked",
        coordinator=invitation.coordinator,
        fingerprints=[one.fingerprint for one in fresh],
        reason=reason.strip()[:300],
        by=by,
    )
    _write(_file(config), _Kept(successions=trust.successions, revoked=(*trust.revoked, *fresh)))
    return trust_of(config, invitation)


def unwrap(trust: Trust, payload: bytes, private: bytes, retired: Sequence[bytes]) -> tuple[Context, messages.Message]:
    """messages.unwrap of a request by the coordinator's present keys; says so when it is by replaced or revoked ones."""
    trust.require(trust.present.signing)
    try:
        return messages.unwrap(payload, private=private, sender_public=trust.present.signing, retired=retired)
    except SignatureError:
        _explain(trust, payload)
        raise


def _explain(trust: Trust, payload: bytes) -> None:
    """Raises SignatureError or RefusedError when an earlier key of the coordinator signed this."""
    context, box = messages.peek(payload)
    receipt = receipt_of(io.BytesIO(box), len(box), context)
    for key in [one.signing for one in trust.generations[:-1]] + [
        base64.b64decode(one.signing_public) for one in trust.revoked
    ]:
        try:
            receipt.verify(key)
        except SignatureError:
            continue
        trust.require(key)
        raise SignatureError(
            f"The {context.kind} of round {context.round} is signed by a key that {trust.invitation.coordinator!r} has"
            f" replaced (now {trust.present.fingerprint}): it is not used."
        ) from None


def _file(config: NodeConfig) -> Path:
    return config.storage.keys / "coordinator.json"


def _read(file: Path) -> _Kept:
    try:
        return _Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _Kept()
    except (OSError, ValidationError):
        raise DocumentError(f"{file} is damaged: restore it from your copy.") from None


def _write(file: Path, kept: _Kept) -> None:
    write_file(file, json.dumps(kept.model_dump(mode="json"), indent=1).encode() + b"\n")
