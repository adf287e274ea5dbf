"""How a hospital and a coordinator come to know each other's keys: one file each way, and a fingerprint by telephone.

    coordinator invite ─▶ Invitation (address, TLS authority, coordinator's public keys, token) ─▶ federation join
    coordinator enrol  ◀─ Enrolment (the hospital's public keys, the token)                     ◀─┘

Both files are signed by the keys they carry, so that a changed one shows; a *replaced* one only shows by its fingerprint,
which is why both sides read it to each other. The token lets only the invited hospital enrol under the invited name. Private
keys never leave the folder they were made in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aggregator_client.errors import DocumentError, SignatureError, StateError
from aggregator_client.keys import SEALING_PUBLIC_BYTES, NodeKeys, fingerprint, sync_folder
from aggregator_client.project import canonical

MAX_BYTES = 1 << 16
S = TypeVar("S", bound="_Signed")
SITE_NAME = r"^[^\x00-\x1f/\\]{1,64}$"


class _Signed(BaseModel):
    """A document signed by the key it carries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    site: str = Field(pattern=SITE_NAME)
    token: str = Field(min_length=20, max_length=100)
    signing_public: str
    sealing_public: str
    signature: str = ""

    @field_validator("signing_public", "sealing_public")
    @classmethod
    def _key(cls, value: str, info: Any) -> str:
        size = 32 if info.field_name == "signing_public" else SEALING_PUBLIC_BYTES
        if len(base64.b64decode(value, validate=True)) != size:
            raise ValueError(f"must be {size} bytes in base64")
        return value

    @property
    def signing_key(self) -> bytes:
        return base64.b64decode(self.signing_public)

    @property
    def sealing_key(self) -> bytes:
        return base64.b64decode(self.sealing_public)

    def _to_sign(self) -> bytes:
        body = canonical(self.model_dump(mode="json", exclude={"signature"}))
        return b"fedpacs " + self.format.encode() + b"\x00" + hashlib.sha256(body).digest()

    def signed(self, signer: Ed25519PrivateKey) -> Self:
        return self.model_copy(update={"signature": base64.b64encode(signer.sign(self._to_sign())).decode()})

    def verify(self, where: str) -> Self:
        """Itself; SignatureError when it was changed after signing."""
        try:
            signature = base64.b64decode(self.signature, validate=True)
            Ed25519PublicKey.from_public_bytes(self.signing_key).verify(signature, self._to_sign())
        except (InvalidSignature, ValueError):
            raise SignatureError(f"{where} was changed after it was made: ask for it again.") from None
        return self

    def write(self, file: Path) -> None:
        """Write the file, readable by its owner alone (it holds the token). Raises StateError."""
        data = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"
        write_file(file, data)

    @classmethod
    def read(cls, file: Path) -> Self:
        """A file, checked and verified. Raises DocumentError, SignatureError."""
        return read_signed(cls, file)


class Invitation(_Signed):
    """What a coordinator gives to one hospital."""

    format: str = Field(default="fedpacs-invitation-1", pattern="^fedpacs-invitation-1$")
    coordinator: str = Field(min_length=1, max_length=120)
    address: str = Field(pattern=r"^https://[^\s/]+:[0-9]{1,5}$")
    ca_pem: str

    @field_validator("ca_pem")
    @classmethod
    def _certificate(cls, value: str) -> str:
        x509.load_pem_x509_certificate(value.encode("ascii"))
        return value

    @property
    def fingerprint(self) -> str:
        """Of the coordinator's keys: the same for every hospital it invites."""
        return fingerprint(self.signing_key, self.sealing_key)


class Enrolment(_Signed):
    """What the hospital gives back: its public keys. `flower_public` is SubjectPublicKeyInfo in PEM."""

    format: str = Field(default="fedpacs-enrolment-1", pattern="^fedpacs-enrolment-1$")
    flower_public: str

    @field_validator("flower_public")
    @classmethod
    def _flower_key(cls, value: str) -> str:
        key = serialization.load_pem_public_key(value.encode("ascii"))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("must be an elliptic-curve public key in PEM")
        return value

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_key, self.sealing_key, self.flower_public.encode())


def accept(invitation: Invitation, keys: NodeKeys) -> Enrolment:
    """The hospital's answer to an invitation, signed with the hospital's key."""
    return Enrolment(
        site=invitation.site,
        token=invitation.token,
        **keys.public_base64(),
        flower_public=keys.flower_public.decode(),
    ).signed(keys.signing)


def read_signed(model: type[S], file: Path) -> S:
    """A signed file of this kind. Raises DocumentError naming what is wrong, SignatureError when changed."""
    what = f"The file {file}"
    try:
        data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
    except FileNotFoundError:
        raise DocumentError(f"{what} does not exist: check the path.") from None
    except OSError as error:
        raise DocumentError(f"{what} cannot be read ({error.strerror}): check its permissions.") from None
    kind = model.__name__.lower()
    try:
        return model.model_validate_json(data).verify(what)
    except (ValidationError, RecursionError):
        raise DocumentError(f"{what} is not an {kind} made by fedpacs (or is damaged): ask for it again.") from None


def write_file(file: Path, data: bytes) -> None:
    """Write whole or not at all, 0600, synced. Raises StateError."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StateError(f"{file} cannot be written ({error.strerror}): choose another place.") from None
