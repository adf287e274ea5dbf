"""The keys a hospital and a coordinator hold: made once, kept in files only their owner can read, told by fingerprint.

| key | kind | file of a node | file of a coordinator |
|---|---|---|---|
| signing | Ed25519, PKCS#8 PEM | keys/signing.pem | keys/signing.pem |
| sealing | X-Wing: ML-KEM-768 seed (64 bytes) then X25519 (32 bytes), hex | keys/sealing.key | keys/sealing.key |
| Flower node | ECDSA P-384, OpenSSH (what `flower-supernode --auth-supernode-private-key` reads) | keys/flower.key | |

A sealing public key is the ML-KEM-768 encapsulation key (1184 bytes) then the X25519 public key (32 bytes), the order of
draft-connolly-cfrg-xwing-kem.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from aggregator_client.errors import DocumentError, StateError

SEALING_PUBLIC_BYTES = 1184 + 32
SEALING_PRIVATE_BYTES = 64 + 32
_SEED = 64
_MLKEM_PUBLIC = 1184


@dataclass(frozen=True)
class CoordinatorKeys:
    """A coordinator's keys. `sealing` is the private key as `sealing.open_` takes it."""

    signing: Ed25519PrivateKey
    sealing: bytes

    @property
    def signing_public(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""
        return self.signing.public_key().public_bytes_raw()

    @property
    def sealing_public(self) -> bytes:
        """1216 bytes, as `sealing.seal` takes it."""
        return sealing_public_of(self.sealing)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_public, self.sealing_public)

    def public_base64(self) -> dict[str, str]:
        """The two public keys as documents carry them."""
        return {
            "signing_public": base64.b64encode(self.signing_public).decode(),
            "sealing_public": base64.b64encode(self.sealing_public).decode(),
        }


@dataclass(frozen=True)
class NodeKeys(CoordinatorKeys):
    """A hospital's keys: the same two, and the key Flower's SuperNode authenticates with."""

    flower_file: Path
    flower_public: bytes
    """SubjectPublicKeyInfo, PEM: what the coordinator's SuperLink registers."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_public, self.sealing_public, self.flower_public)


def fingerprint(*public_keys: bytes) -> str:
    """80 bits of the keys' SHA-256 in groups of four, short enough to read out over the telephone: "3f2a-…-91bc"."""
    transcript = hashlib.sha256(b"fedpacs fingerprint v1\x00")
    for key in public_keys:
        transcript.update(len(key).to_bytes(4, "big") + key)
    text = transcript.hexdigest()[:20]
    return "-".join(text[start : start + 4] for start in range(0, 20, 4))


def coordinator_keys(folder: Path) -> CoordinatorKeys:
    """The keys in a coordinator's key folder, made on first use. Raises DocumentError for a damaged one, StateError."""
    return CoordinatorKeys(_signing(folder / "signing.pem"), _sealing(folder / "sealing.key"))


def node_keys(folder: Path) -> NodeKeys:
    """The keys in a node's key folder, made on first use. Raises DocumentError for a damaged one, StateError."""
    file = folder / "flower.key"
    flower = _flower(file)
    public = flower.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return NodeKeys(_signing(folder / "signing.pem"), _sealing(folder / "sealing.key"), file, public)


def new_sealing_key() -> bytes:
    """A fresh sealing private key, 96 bytes."""
    return MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw()


def sealing_private_key(private: bytes) -> MLKEM768X25519PrivateKey:
    """The HPKE key of 96 private bytes; ValueError for another length."""
    if len(private) != SEALING_PRIVATE_BYTES:
        raise ValueError(f"a sealing private key has {SEALING_PRIVATE_BYTES} bytes, not {len(private)}")
    return MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:_SEED]), X25519PrivateKey.from_private_bytes(private[_SEED:])
    )


def sealing_public_key(public: bytes) -> MLKEM768X25519PublicKey:
    """The HPKE key of 1216 public bytes. Raises DocumentError when they are none."""
    try:
        if len(public) != SEALING_PUBLIC_BYTES:
            raise ValueError
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
        )
    except ValueError:
        raise DocumentError(
            f"A sealing public key of {len(public)} bytes is not an MLKEM768-X25519 key: ask its owner for it again."
        ) from None


def sealing_public_of(private: bytes) -> bytes:
    """The 1216 public bytes that belong to 96 private ones."""
    mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:_SEED])
    x25519 = X25519PrivateKey.from_private_bytes(private[_SEED:])
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def write_private(file: Path, data: bytes) -> bytes:
    """Write a secret once, 0600 in a 0700 folder, synced; what stands there when another process was first.

    Raises StateError when the folder cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(temporary, file)  # never replaces a key another process has just made
        except FileExistsError:
            return file.read_bytes()
        finally:
            temporary.unlink()
    except OSError as error:
        raise StateError(
            f"The key file {file} cannot be written ({error.strerror}): check the folder and its owner."
        ) from None
    return data


def _read_or_make(file: Path, make: bytes) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return write_private(file, make)
    except OSError as error:
        raise StateError(f"The key file {file} cannot be read ({error.strerror}): check who owns it.") from None


def _signing(file: Path) -> Ed25519PrivateKey:
    fresh = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        key = serialization.load_pem_private_key(_read_or_make(file, fresh), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(file, "an Ed25519 private key in PEM")
    return key


def _sealing(file: Path) -> bytes:
    text = _read_or_make(file, new_sealing_key().hex().encode() + b"\n")
    try:
        private = bytes.fromhex(text.decode("ascii").strip())
        sealing_private_key(private)
    except ValueError:
        raise _damaged(file, f"{2 * SEALING_PRIVATE_BYTES} hexadecimal digits") from None
    return private


def _flower(file: Path) -> ec.EllipticCurvePrivateKey:
    fresh = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    try:
        key = serialization.load_ssh_private_key(_read_or_make(file, fresh), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(file, "an OpenSSH ECDSA private key")
    return key


def _damaged(file: Path, kind: str) -> DocumentError:
    return DocumentError(f"{file} does not hold {kind}: restore it from your copy.")
