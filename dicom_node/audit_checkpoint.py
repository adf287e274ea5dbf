"""Signed checkpoints of the audit chain: whoever rewrites the whole log, hashes and all, would need the node's audit key too.

A checkpoint is a record `audit.checkpoint` whose facts are the number and hash of the record before it and an Ed25519 signature
(RFC 8032) over them by keys/audit.pem. The newest one also stands in keys/audit.checkpoint, outside of the database, so that a
log whose end was cut off, or that was begun anew, shows.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dicom_node.audit import AuditLog, AuditRecord, Verdict
from dicom_node.audit_export import write_whole
from dicom_node.errors import IntegrityError, StorageError

KIND = "audit.checkpoint"
_REACH = 10_000
"""So many records may have been appended by others between a checkpoint's signature and its record."""
_SIGN = b"fedpacs audit checkpoint v1\x00"


def sign_checkpoint(log: AuditLog, keys: Path) -> AuditRecord:
    """Append a checkpoint of the log as it stands. The key is made on first use, 0600. Raises StorageError, IntegrityError."""
    signer = _key(keys)
    seq, digest = log.head()
    signature = base64.b64encode(signer.sign(_statement(seq, digest))).decode()
    public = signer.public_key().public_bytes_raw().hex()
    record = log.append(KIND, seq=seq, head=digest, key=public, signature=signature)
    write_whole(keys / "audit.checkpoint", json.dumps({"seq": record.seq, "hash": record.hash}).encode())
    return record


def verify(log: AuditLog, keys: Path, public: str = "") -> Verdict:
    """The chain's verdict, and that of its checkpoints. `public`: the audit key in hex as noted elsewhere; else the node's."""
    verdict = log.verify()
    if not verdict.ok:
        return verdict
    known, hashes = public.strip().lower() or _public(keys), {0: "0" * 64}
    newest, seen = _newest(keys), False
    for record in log.records():
        reason = _fault(record, hashes, known) if record.kind == KIND else ""
        if newest and record.seq == newest[0] and record.hash != newest[1]:
            reason = "it is not the checkpoint that was noted in keys/audit.checkpoint"
        if reason:
            return Verdict(False, record.seq - 1, record.prev, record.seq, reason)
        hashes[record.seq] = record.hash
        hashes.pop(record.seq - _REACH, None)
        seen = seen or newest is None or newest[0] == record.seq
    if newest and not seen:
        return Verdict(
            False, verdict.records, verdict.head, verdict.records + 1, "a checkpoint noted earlier is missing"
        )
    return verdict


def _fault(record: AuditRecord, hashes: dict[int, str], known: str) -> str:
    facts = record.facts
    try:
        seq, digest, signature = int(facts["seq"]), str(facts["head"]), base64.b64decode(str(facts["signature"]))
        if known and facts["key"] != known:
            return "its checkpoint is by another key than this node's audit key"
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(facts["key"]))).verify(signature, _statement(seq, digest))
    except (InvalidSignature, ValueError, KeyError, TypeError):
        return "its checkpoint is not signed"
    # another process may have appended between the signature and its record: any earlier record may be the one meant
    return "" if hashes.get(seq) == digest else "its checkpoint is of another log"


def _statement(seq: int, digest: str) -> bytes:
    return _SIGN + f"{seq}:{digest}".encode()


def _key(keys: Path) -> Ed25519PrivateKey:
    file = keys / "audit.pem"
    if not file.exists():
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        part = file.with_name(f".audit.pem.{os.getpid()}")
        write_whole(part, made)
        try:
            os.link(part, file)  # never replaces the key another process has just made
        except FileExistsError:
            pass
        finally:
            part.unlink()
    found = _read(file)
    if found is None:
        raise IntegrityError(f"{file} does not hold an Ed25519 private key: restore it from your copy.")
    return found


def _read(file: Path) -> Ed25519PrivateKey | None:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise StorageError(f"The audit key {file} cannot be read ({error.strerror}): check who owns it.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PrivateKey) else None


def _public(keys: Path) -> str:
    """The node's audit key in hex; "" where there is none yet, or this user may not read it."""
    try:
        found = _read(keys / "audit.pem")
    except StorageError:
        return ""
    return found.public_key().public_bytes_raw().hex() if found else ""


def _newest(keys: Path) -> tuple[int, str] | None:
    try:
        facts = json.loads((keys / "audit.checkpoint").read_text())
        return int(facts["seq"]), str(facts["hash"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise IntegrityError(f"{keys / 'audit.checkpoint'} is damaged: look who changed it, then delete it.") from None
