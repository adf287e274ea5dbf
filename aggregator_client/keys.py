"""The keys a hospital and a coordinator hold: made once, kept in files only their owner can read, told by fingerprint.

| key | kind | file of a node | file of a coordinator |
|---|---|---|---|
| signing | Ed25519, PKCS#8 PEM | keys/signing.pem | keys/signing.pem |
| sealing | X-Wing: ML-KEM-768 seed (64 bytes) then X25519 (32 bytes), hex | keys/sealing.key | keys/sealing.key |
| Flower node | ECDSA P-384, OpenSSH (what `flower-supernode --auth-supernode-private-key` reads) | keys/flower.key | |

A sealing public key is the ML-KEM-768 encapsulation key (1184 bytes) then the X25519 public key (32 bytes), the order of
draft-connolly-cfrg-xwing-kem.

Signing and sealing keys are replaced together (aggregator_client.rotation): each later generation stands in a folder of its own,
keys/generations/0002 and on, which one rename puts in place, so that a kill at any moment leaves one whole, working generation.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from aggregator_client.errors import DocumentError, RefusedError, StateError

SEALING_PUBLIC_BYTES = 1184 + 32
SEALING_PRIVATE_BYTES = 64 + 32
RETIRED_DAYS = 30
"""For so long what was sealed to a replaced key still opens; then its private half is deleted."""
_SEED = 64
_MLKEM_PUBLIC = 1184
_GENERATION = re.compile(r"[0-9]{4,9}")


@dataclass(frozen=True)
class CoordinatorKeys:
    """A coordinator's keys. `sealing` is the private key as `sealing.open_` takes it.

    `generation` counts the replacements from 1. `introductions` are the signed statements that lead from the first generation
    to this one (JSON, see rotation.py), oldest first; `retired` the replaced sealing keys that still open messages.
    """

    signing: Ed25519PrivateKey
    sealing: bytes
    generation: int = field(default=1, kw_only=True)
    introductions: tuple[bytes, ...] = field(default=(), kw_only=True)
    retired: tuple[bytes, ...] = field(default=(), kw_only=True)

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
    folder: Path = field(default=Path(), kw_only=True)

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
    number, active = _active(folder)
    return CoordinatorKeys(
        _signing(active / "signing.pem", make=number == 1),
        _sealing(active / "sealing.key", make=number == 1),
        generation=number,
        introductions=_introductions(folder),
        retired=_retired(folder, number),
    )


def node_keys(folder: Path) -> NodeKeys:
    """The keys in a node's key folder, made on first use. Raises DocumentError for a damaged one, StateError."""
    held = coordinator_keys(folder)
    begun_anew = list((folder / "generations").glob("[0-9]*/flower.key"))
    file = max(begun_anew, default=folder / "flower.key")
    flower = _flower(file)
    public = flower.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return NodeKeys(
        held.signing,
        held.sealing,
        file,
        public,
        generation=held.generation,
        introductions=held.introductions,
        retired=held.retired,
        folder=folder,
    )


def renewed(keys: NodeKeys) -> NodeKeys:
    """These keys, read again when they were replaced meanwhile."""
    return keys if _active(keys.folder)[0] == keys.generation else node_keys(keys.folder)


def exist(folder: Path) -> bool:
    """Whether the signing and sealing keys in use are there."""
    _, active = _active(folder)
    return (active / "signing.pem").exists() and (active / "sealing.key").exists()


def install_generation(folder: Path, keys: CoordinatorKeys, introduction: bytes | None) -> None:
    """Put new keys in place of those in use, in one rename; the replaced signing key is deleted afterwards.

    `introduction` is the old key's statement about the new one; None begins anew (the old keys are not trusted): the old sealing
    key is deleted too, and a node gets a new key for its connection. RefusedError when another process was first, StateError.
    """
    place = folder / "generations" / f"{keys.generation:04d}"
    made = place.with_name(f".new-{secrets.token_hex(6)}")
    pem = keys.signing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    place.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(made / "signing.pem", pem)
    write_private(made / "sealing.key", keys.sealing.hex().encode() + b"\n")
    write_private(made / "introduction.json", introduction or b"")
    if introduction is None and (folder / "flower.key").exists():
        _flower(made / "flower.key")
    try:
        sync_folder(made)
        made.rename(place)
        sync_folder(place.parent)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if place.exists():
            raise RefusedError(f"The keys in {folder} were just replaced by another process: look at them.") from None
        raise StateError(f"{place} cannot be written ({error.strerror}): check the folder and its owner.") from None
    tidy(folder)


def tidy(folder: Path, now: float | None = None) -> None:
    """Delete what replaced keys are not needed for any more; also what a killed replacement left. Raises StateError."""
    number, _ = _active(folder)
    if number == 1:
        return
    places = [folder, *(folder / "generations" / f"{one:04d}" for one in range(2, number + 1))]
    begun_anew = False
    try:
        for place, following in zip(places[-2::-1], places[:0:-1], strict=True):  # newest first
            stat = (following / "introduction.json").stat()
            begun_anew = begun_anew or stat.st_size == 0
            (place / "signing.pem").unlink(missing_ok=True)
            if begun_anew:
                (place / "flower.key").unlink(missing_ok=True)
            if begun_anew or (time.time() if now is None else now) - stat.st_mtime > RETIRED_DAYS * 86400:
                (place / "sealing.key").unlink(missing_ok=True)
        for left in (folder / "generations").glob(".new-*"):
            if time.time() - left.stat().st_mtime > 60:  # not one that another process is making now
                shutil.rmtree(left)
    except OSError as error:
        raise StateError(f"Replaced keys in {folder} cannot be deleted ({error.strerror}): delete them.") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _active(folder: Path) -> tuple[int, Path]:
    """Number and folder of the keys in use."""
    try:
        names = [file.name for file in (folder / "generations").iterdir() if _GENERATION.fullmatch(file.name)]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise StateError(f"The keys in {folder} cannot be read ({error.strerror}): check who owns them.") from None
    number = max((int(name) for name in names), default=1)
    return number, folder if number == 1 else folder / "generations" / f"{number:04d}"


def _introductions(folder: Path) -> tuple[bytes, ...]:
    """The statements since the last new beginning, oldest first."""
    found: list[bytes] = []
    for number in range(2, _active(folder)[0] + 1):
        file = folder / "generations" / f"{number:04d}" / "introduction.json"
        try:
            statement = file.read_bytes()
        except OSError as error:
            raise StateError(f"{file} cannot be read ({error.strerror}): restore it from your copy.") from None
        found = [*found, statement] if statement else []
    return tuple(found)


def _retired(folder: Path, number: int) -> tuple[bytes, ...]:
    """Replaced sealing keys that are still there, newest first."""
    places = [folder / "generations" / f"{one:04d}" for one in range(number - 1, 1, -1)]
    places += [folder] if number > 1 else []
    files = [place / "sealing.key" for place in places]
    return tuple(_sealing(file, make=False) for file in files if file.exists())


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


def _read_or_make(file: Path, fresh: bytes | None) -> bytes:
    """What the file holds; without one, `fresh` is written. StateError where nothing fresh may take its place."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        if fresh is None:
            raise StateError(f"The key file {file} is missing: restore it from your copy.") from None
        return write_private(file, fresh)
    except OSError as error:
        raise StateError(f"The key file {file} cannot be read ({error.strerror}): check who owns it.") from None


def _signing(file: Path, make: bool = True) -> Ed25519PrivateKey:
    fresh = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        key = serialization.load_pem_private_key(_read_or_make(file, fresh if make else None), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(file, "an Ed25519 private key in PEM")
    return key


def _sealing(file: Path, make: bool = True) -> bytes:
    text = _read_or_make(file, new_sealing_key().hex().encode() + b"\n" if make else None)
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
