"""The vault: the pseudonym key and the crosswalk back to the original identifiers, encrypted at rest (left of the wall)."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from sqlite_utils.migrations import Migrations

from dicom_node.config import NodeConfig
from dicom_node.database import connect, transaction
from dicom_node.errors import ConfigError, IntegrityError, StorageError

migrations = Migrations("dicom_node.vault")
KEY_COMMAND_SECONDS = 30.0


@migrations()
def m001_crosswalk(db: Any) -> None:
    db.execute(
        """CREATE TABLE crosswalk(
             kind TEXT NOT NULL, token TEXT NOT NULL, pseudonym TEXT NOT NULL, original BLOB NOT NULL, at REAL NOT NULL,
             PRIMARY KEY(kind, token, pseudonym)) WITHOUT ROWID"""
    )
    db.execute("CREATE INDEX crosswalk_pseudonym ON crosswalk(kind, pseudonym)")


class Vault:
    """vault/vault.json (the sealed pseudonym key) and vault/crosswalk.db (rows sealed one by one).

    Everything is AES-256-GCM under the vault key: 64 hex digits in a file that only the node's user can read, or derived from
    a passphrase with scrypt (RFC 7914), or what a program prints (a token behind PKCS#11, a key service). Raises IntegrityError
    for a wrong key, ConfigError when no key is to be had.
    """

    def __init__(self, folder: Path, secret: bytes, passphrase: bool = False) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            header = self._header(secret, passphrase)
        except OSError as error:
            raise StorageError(f"The vault {folder} cannot be used ({error.strerror}): check who owns it.") from None
        master = _stretch(secret, bytes.fromhex(header["salt"])) if header["kdf"] == "scrypt" else secret
        self._sealing = AESGCM(_derive(master, b"seal"))
        self._token_key = _derive(master, b"token")
        self.pseudonym_key = self._unseal(bytes.fromhex(header["pseudonym_key"]), b"pseudonym key")
        self._db = connect(folder / "crosswalk.db", migrations)
        (folder / "crosswalk.db").chmod(0o600)

    @classmethod
    def open(cls, config: NodeConfig) -> Vault:
        """The vault of a node, made on first use with a fresh pseudonym key."""
        name = config.vault.passphrase_env
        if name:
            passphrase = os.environ.get(name, "")
            if not passphrase:
                raise ConfigError(
                    f"{config.path}: vault.passphrase_env names {name}, which is not set: set it and start again."
                )
            return cls(config.storage.vault, passphrase.encode(), passphrase=True)
        if config.vault.key_command:
            return cls(config.storage.vault, _from_command(config))
        file = config.vault.key_file
        try:
            mode = file.stat().st_mode & 0o777
            if mode & 0o077:
                raise ConfigError(
                    f"The vault key {file} can be read by others than its owner (mode {mode:o}): chmod 600 it, and think of who"
                    " may have read it."
                )
            secret = bytes.fromhex(file.read_text().strip())
        except OSError as error:
            raise ConfigError(
                f"The vault key {file} cannot be read ({error.strerror}): restore it from your copy."
            ) from None
        except ValueError:
            secret = b""
        if len(secret) != 32:
            raise ConfigError(f"The vault key {file} is not 64 hexadecimal digits: restore it from your copy.")
        return cls(config.storage.vault, secret)

    def close(self) -> None:
        self._db.close()

    def token(self, kind: str, value: str) -> str:
        """Keyed hash under which an original identifier can be found again without being stored in clear."""
        return hmac.new(self._token_key, f"{kind}\x00{value.strip()}".encode(), hashlib.sha256).hexdigest()

    def remember(self, kind: str, original: str, pseudonym: str) -> None:
        """Keep the pair (kind: patient, study, accession) in the crosswalk; keeping it twice is one row."""
        token = self.token(kind, original)
        with transaction(self._db) as db:
            if db.execute(
                "SELECT 1 FROM crosswalk WHERE kind = ? AND token = ? AND pseudonym = ?", (kind, token, pseudonym)
            ).fetchone():
                return
            sealed = self._seal(original.encode(), f"{kind}:{pseudonym}".encode())
            db.execute("INSERT INTO crosswalk VALUES(?, ?, ?, ?, ?)", (kind, token, pseudonym, sealed, time.time()))

    def pseudonyms(self, kind: str, original: str) -> list[str]:
        """The pseudonyms an original identifier was given here."""
        rows = self._db.execute(
            "SELECT pseudonym FROM crosswalk WHERE kind = ? AND token = ? ORDER BY pseudonym",
            (kind, self.token(kind, original)),
        )
        return [row["pseudonym"] for row in rows]

    def originals(self, kind: str, pseudonym: str) -> list[str]:
        """Re-identification: the original identifiers behind a pseudonym. Callers audit every use."""
        rows = self._db.execute(
            "SELECT original FROM crosswalk WHERE kind = ? AND pseudonym = ? ORDER BY at", (kind, pseudonym)
        )
        return [self._unseal(row["original"], f"{kind}:{pseudonym}".encode()).decode() for row in rows]

    def _header(self, secret: bytes, passphrase: bool) -> dict[str, Any]:
        file = self.folder / "vault.json"
        if file.exists():
            header: dict[str, Any] = json.loads(file.read_text())
            if (header["kdf"] == "scrypt") != passphrase:
                raise ConfigError(
                    f"The vault {self.folder} was made with {'a passphrase' if header['kdf'] == 'scrypt' else 'a key file'}:"
                    " set vault.passphrase_env and vault.key_file in node.toml as they were."
                )
            return header
        salt = secrets.token_bytes(16)
        master = _stretch(secret, salt) if passphrase else secret
        sealing = AESGCM(_derive(master, b"seal"))
        nonce = secrets.token_bytes(12)
        sealed = nonce + sealing.encrypt(nonce, secrets.token_bytes(32), b"pseudonym key")
        header = {
            "version": 1,
            "kdf": "scrypt" if passphrase else "file",
            "salt": salt.hex(),
            "pseudonym_key": sealed.hex(),
        }
        temporary = self.folder / f".vault.json.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            json.dump(header, handle)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(temporary, file)  # unlike rename, never replaces the header another process has just made
        except FileExistsError:
            return self._header(secret, passphrase)
        finally:
            temporary.unlink()
        return header

    def _seal(self, plain: bytes, bound_to: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._sealing.encrypt(nonce, plain, bound_to)

    def _unseal(self, sealed: bytes, bound_to: bytes) -> bytes:
        try:
            return self._sealing.decrypt(sealed[:12], sealed[12:], bound_to)
        except InvalidTag:
            raise IntegrityError(
                f"The vault {self.folder} does not open with this key (or was changed): restore the right key or passphrase."
            ) from None


def _from_command(config: NodeConfig) -> bytes:
    """The vault key as the configured program prints it. Raises ConfigError; neither key nor output stands in the message."""
    command, told = list(config.vault.key_command), f"{config.path}: vault.key_command ({config.vault.key_command[0]})"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=KEY_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"{told} cannot be used ({type(error).__name__}): run it by hand as the node's user."
        ) from None
    if done.returncode:
        raise ConfigError(f"{told} ended with exit code {done.returncode}: run it by hand as the node's user.")
    try:
        secret = bytes.fromhex(done.stdout.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigError(f"{told} does not print 64 hexadecimal digits and nothing else: mend it.")
    return secret


def _derive(master: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"fedpacs vault " + purpose).derive(master)


def _stretch(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase)
