"""Keyed pseudonyms: patient ids, UIDs and date shifts by HMAC-SHA256, the same in every process that holds the key."""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache

from anonymizer.errors import KeyFileError, ProfileError

MAX_SHIFT_DAYS = 3650


class Pseudonyms:
    """Everything derived from the site's 32-byte key; the key never appears in what is derived."""

    def __init__(self, key: bytes, uid_root: str = "2.25") -> None:
        if len(key) != 32:
            raise KeyFileError(f"The pseudonym key must be 32 bytes, not {len(key)}; write one with --key NEWFILE.")
        if not re.fullmatch(r"[0-2](\.(0|[1-9]\d*))+", uid_root) or len(uid_root) > 32:
            raise ProfileError("uid_root must be an OID of at most 32 characters such as 2.25 or the site's own root.")
        self._key, self.uid_root = key, uid_root
        self._states = {
            kind: hmac.new(key, kind + b"\0", hashlib.sha256) for kind in (b"uid", b"patient", b"shift", b"text")
        }
        self.uid = lru_cache(maxsize=65536)(self._uid)
        self.date_shift_days = lru_cache(maxsize=1024)(self._date_shift_days)

    def _digest(self, kind: bytes, value: str) -> bytes:
        state = self._states[kind].copy()
        state.update(value.encode("utf-8", "surrogateescape"))
        return state.digest()

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """A pseudonym of 17 characters, fit for LO and PN; blanks around the id do not count."""
        name = patient_id.strip(" \0") + ("\0" + issuer.strip(" \0") if issuer.strip(" \0") else "")
        return "P" + self._digest(b"patient", name).hex()[:16].upper()

    def _uid(self, original: str) -> str:
        """A UID of at most 64 characters under the root (PS3.5 B.2 for 2.25); padding does not count."""
        number = int.from_bytes(self._digest(b"uid", original.strip(" \0"))[:16], "big")
        if self.uid_root == "2.25":
            # RFC 9562 version 8 (custom) and variant bits, so that the number is that of a UUID
            number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
            return f"2.25.{number}"
        return f"{self.uid_root}.{number}"[:64].rstrip(".")

    def _date_shift_days(self, patient_id: str) -> int:
        """Whole days, -3650 to -1, the same for every date of the patient."""
        number = int.from_bytes(self._digest(b"shift", patient_id.strip(" \0"))[:8], "big")
        return -(number % MAX_SHIFT_DAYS + 1)

    def token(self, value: str) -> str:
        """Eight characters standing for any other identifier that must stay distinct."""
        return self._digest(b"text", value).hex()[:8].upper()
