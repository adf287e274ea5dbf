"""An encrypted stream in one file: chunks under AES-256-GCM that can be neither changed, reordered nor cut off unseen.

    "FPBACK1\\n"   16 bytes salt (scrypt, RFC 7914)   7 bytes nonce prefix
    then for each chunk of up to 1 MiB: 4 bytes length of what follows, sealed(1 byte kind + content)

The nonce is the prefix, the chunk's number (4 bytes) and whether it is the last one (1 byte): the STREAM construction of
Hoang, Reyhanitabar, Rogaway and Vizár (CRYPTO 2015). A chunk of zeros alone, as in a segment's reserve, is kept as its length.
"""

from __future__ import annotations

import io
import secrets
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from dicom_node.errors import InputError, IntegrityError

MAGIC = b"FPBACK1\n"
CHUNK = 1 << 20
_SALT, _PREFIX, _TAG = 16, 7, 16
_PLAIN, _ZEROS = b"\0", b"\1"
_NOTHING = bytes(CHUNK)


def _sealing(secret: bytes, salt: bytes) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(secret))


class SealedWriter(io.RawIOBase):
    """What is written comes out encrypted in `file`; `close` writes the last chunk, without which nothing opens."""

    def __init__(self, file: BinaryIO, secret: bytes) -> None:
        salt, self._prefix = secrets.token_bytes(_SALT), secrets.token_bytes(_PREFIX)
        self._header = MAGIC + salt + self._prefix
        self._file, self._aead = file, _sealing(secret, salt)
        self._held, self._number = bytearray(), 0
        file.write(self._header)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._held += view
        while len(self._held) > CHUNK:  # one chunk stays behind: the last one is marked
            self._put(bytes(self._held[:CHUNK]), last=False)
            del self._held[:CHUNK]
        return len(view)

    def close(self) -> None:
        if not self.closed:
            self._put(bytes(self._held), last=True)
        super().close()

    def abandon(self) -> None:
        """Close without the last chunk: what was written so far can never be taken for a whole backup."""
        super().close()

    def _put(self, chunk: bytes, last: bool) -> None:
        empty = chunk == _NOTHING[: len(chunk)]
        plain = _ZEROS + len(chunk).to_bytes(4, "big") if empty else _PLAIN + chunk
        sealed = self._aead.encrypt(_nonce(self._prefix, self._number, last), plain, self._header)
        self._file.write(len(sealed).to_bytes(4, "big") + sealed)
        self._number += 1


class SealedReader(io.RawIOBase):
    """What `SealedWriter` wrote. Raises InputError for another kind of file, IntegrityError for a wrong key or damage."""

    def __init__(self, file: BinaryIO, secret: bytes, name: str) -> None:
        self._header, self._file, self._name = file.read(len(MAGIC) + _SALT + _PREFIX), file, name
        if not self._header.startswith(MAGIC) or len(self._header) != len(MAGIC) + _SALT + _PREFIX:
            raise InputError(f"{name} is not a fedpacs backup: name the file that `backup --out` wrote.")
        self._aead = _sealing(secret, self._header[len(MAGIC) : len(MAGIC) + _SALT])
        self._prefix = self._header[-_PREFIX:]
        self._chunk, self._at, self._number, self._ended = b"", 0, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, into: object) -> int:
        while self._at == len(self._chunk) and not self._ended:
            self._next()
        view = memoryview(into).cast("B")  # type: ignore[arg-type]
        count = min(len(view), len(self._chunk) - self._at)
        view[:count] = self._chunk[self._at : self._at + count]
        self._at += count
        return count

    def _next(self) -> None:
        length = int.from_bytes(self._file.read(4), "big")
        sealed = self._file.read(length) if _TAG < length <= CHUNK + 1 + _TAG else b""
        for last in (False, True):
            try:
                plain = self._aead.decrypt(_nonce(self._prefix, self._number, last), sealed, self._header)
            except (InvalidTag, ValueError):
                continue
            self._ended = last
            break
        else:
            why = (
                "does not open with this passphrase or key, or its beginning is damaged: try the right one"
                if self._number == 0
                else "is damaged or cut short: take another copy of it"
            )
            raise IntegrityError(f"The backup {self._name} {why}.")
        if self._ended and self._file.read(1):
            raise IntegrityError(f"The backup {self._name} goes on after its end: take another copy of it.")
        self._number += 1
        self._chunk, self._at = bytes(int.from_bytes(plain[1:5], "big")) if plain[:1] == _ZEROS else plain[1:], 0


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([last])
