"""What this hospital decided about a project, and whether that still holds: every use of a project asks here.

A decision is recorded in the catalogue (`dicom_node.projects`), signed with the node's key, and written to the audit log
first. It stands for one digest, so a changed file has no decision. `require_approved` trusts none of the stored parts alone:
the document must carry the coordinator's signature, by the coordinator whose invitation this hospital accepted, and the
decision the node's own.
"""

from __future__ import annotations

import base64
import time
from contextlib import closing
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aggregator_client.errors import DocumentError, RefusedError, SignatureError
from aggregator_client.invitations import Invitation
from aggregator_client.keys import node_keys
from aggregator_client.project import SignedProject, canonical, changes
from aggregator_client.rotation import lineage
from aggregator_client.trust import trust_of
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.projects import ProjectRecord, Projects

_SIGN = b"fedpacs decision v1\x00"


@dataclass(frozen=True)
class Decision:
    """What a named person says about one digest."""

    digest: str
    state: str
    by: str
    role: str
    reason: str = ""


def invitation_of(config: NodeConfig) -> Invitation:
    """The invitation this hospital accepted. Raises RefusedError when there is none."""
    file = config.federation.invitation
    if not file.exists():
        raise RefusedError(
            f"This hospital has not joined a federation ({file} does not exist): accept the coordinator's invitation with"
            " `fedpacs federation join` first."
        )
    return Invitation.read(file)


def require_known_coordinator(config: NodeConfig, project: SignedProject) -> None:
    """Raises RefusedError when another coordinator signed the project than the one this hospital joined."""
    known = invitation_of(config)
    who, trust = project.document.coordinator, trust_of(config, known)
    trust.require(who.signing_key)
    if not trust.knows(who.signing_key, who.sealing_key):
        raise RefusedError(
            f"The project {project.document.name} is signed by other keys ({who.fingerprint}) than those of"
            f" {known.coordinator!r}, whose federation this hospital joined ({known.fingerprint}): call the coordinator."
        )


def offer(config: NodeConfig, project: SignedProject) -> ProjectRecord:
    """Remember a project file here, undecided; what was decided about it stands."""
    document = project.document
    with closing(Projects(config.storage.catalogue)) as projects:
        if projects.offer(project.digest, document.name, document.version, project.file_bytes()):
            audit(config, "project.offered", project=project.digest, name=document.name, version=document.version)
        record = projects.get(project.digest)
    assert record is not None
    return record


def decide(config: NodeConfig, project: SignedProject, decision: Decision) -> ProjectRecord:
    """Record a decision, audited and signed. Raises RefusedError for an approval of an unknown coordinator's project."""
    if decision.state == "approved":
        require_known_coordinator(config, project)
    if not decision.by.strip():
        raise DocumentError("A decision needs the name of the person who takes it: give --by NAME.")
    offer(config, project)
    keys = node_keys(config.storage.keys)
    signature = _signature(decision, keys.signing, int(time.time()))
    audit(
        config,
        f"project.{decision.state}",
        project=decision.digest,
        name=project.document.name,
        version=project.document.version,
        by=decision.by,
        role=decision.role,
        reason=decision.reason,
        signature=signature,
    )
    with closing(Projects(config.storage.catalogue)) as projects:
        return projects.decide(decision.digest, decision.state, decision.by, decision.role, decision.reason, signature)


def require_approved(config: NodeConfig, digest: str, name: str = "") -> SignedProject:
    """The project with this digest when this hospital approves it now.

    `name`, as the other side tells it, only serves the message. Raises RefusedError when it is not approved (naming the
    approved version that this one differs from), SignatureError when a signature does not hold.
    """
    with closing(Projects(config.storage.catalogue)) as projects:
        record = projects.get(digest)
        approved = [one for one in projects.list() if one.state == "approved"]
    if record is None:
        raise RefusedError(_unknown(digest, name, approved))
    if record.state != "approved":
        raise RefusedError(
            f"The project {record.name} version {record.version} (digest {digest[:12]}) is {record.state} here:"
            " read it with `fedpacs project show` and approve it to take part."
        )
    project = SignedProject.read(record.document)
    if project.digest != digest:
        raise SignatureError(
            f"The stored project {record.name} is not the one that was approved: approve its file again."
        )
    require_known_coordinator(config, project)
    _require_own_signature(config, record)
    return project


def differences(config: NodeConfig, project: SignedProject) -> tuple[str, list[str]] | None:
    """(digest, changes) against the last approved project of that name; None when there is none or it is this one."""
    with closing(Projects(config.storage.catalogue)) as projects:
        earlier = [one for one in projects.list() if one.name == project.document.name and one.state == "approved"]
    if not earlier or any(one.digest == project.digest for one in earlier):
        return None
    last = max(earlier, key=lambda one: one.decided_at or 0.0)
    return last.digest, changes(SignedProject.read(last.document).payload, project.payload)


def _unknown(digest: str, name: str, approved: list[ProjectRecord]) -> str:
    same = [one for one in approved if one.name == name]
    if same:
        last = max(same, key=lambda one: one.decided_at or 0.0)
        return (
            f"The project {name} was changed after this hospital approved it (approved {last.digest[:12]}, asked for"
            f" {digest[:12]}): read the new file with `fedpacs project show FILE` and approve it again to take part."
        )
    return (
        f"The project with digest {digest[:12]} was never approved here: read its file with `fedpacs project show FILE` and"
        " approve it to take part."
    )


def _statement(decision: Decision, at: int) -> bytes:
    body = {
        "digest": decision.digest,
        "state": decision.state,
        "by": decision.by,
        "role": decision.role,
        "reason": decision.reason,
        "at": at,
    }
    return _SIGN + canonical(body)


def _signature(decision: Decision, signer: Ed25519PrivateKey, at: int) -> str:
    """ "unix time:base64 of the Ed25519 signature over decision and time"."""
    return f"{at}:{base64.b64encode(signer.sign(_statement(decision, at))).decode()}"


def _require_own_signature(config: NodeConfig, record: ProjectRecord) -> None:
    decision = Decision(record.digest, record.state, record.decided_by, record.role, record.reason)
    own = lineage(node_keys(config.storage.keys))  # an approval outlives the replacement of the key that signed it
    at, _, encoded = record.signature.partition(":")
    if not any(_signs(pair.signing, at, encoded, decision) for pair in own):
        raise SignatureError(
            f"The approval of {record.name} is not signed by this node (changed in the database, or the node's key was"
            " replaced by one it does not vouch for): approve the project again."
        )


def _signs(public: bytes, at: str, encoded: str, decision: Decision) -> bool:
    try:
        signature = base64.b64decode(encoded, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _statement(decision, int(at)))
    except (InvalidSignature, ValueError):
        return False
    return True


def audit(config: NodeConfig, kind: str, **facts: object) -> None:
    """Append one record to this hospital's audit log."""
    with closing(AuditLog(config.storage.audit)) as log:
        log.append(kind, **facts)
