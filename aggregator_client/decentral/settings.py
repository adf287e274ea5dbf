"""What a project says about decentralised rounds: the hospitals that take part and the relays where they meet."""

from __future__ import annotations

import base64
import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aggregator_client.decentral.chain import Peer
from aggregator_client.keys import SEALING_PUBLIC_BYTES

ALGORITHM = "decentralised"
_PIN = re.compile(r"sha256=[0-9a-f]{64}")


class PeerKeys(BaseModel):
    """One hospital's public keys in base64: Ed25519 (32 bytes), MLKEM768-X25519 (1216 bytes)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    signing_public: str
    sealing_public: str

    @field_validator("signing_public", "sealing_public")
    @classmethod
    def _key(cls, value: str, info: object) -> str:
        size = 32 if getattr(info, "field_name", "") == "signing_public" else SEALING_PUBLIC_BYTES
        if len(base64.b64decode(value, validate=True)) != size:
            raise ValueError(f"must be {size} bytes in base64")
        return value


class PeerSettings(BaseModel):
    """relays: "https://host:port/#sha256=<digest of its certificate>" or "file:///a/shared/folder"; one that answers is enough.

    sites: the members by name. The signed project fixes them; a majority of them has to agree on each round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    relays: tuple[str, ...] = Field(default=(), max_length=50)
    sites: dict[str, PeerKeys] = Field(default_factory=dict, max_length=50)

    @field_validator("relays")
    @classmethod
    def _address(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for relay in value:
            parts = urlsplit(relay)
            pinned = parts.scheme == "https" and parts.hostname and _PIN.fullmatch(parts.fragment)
            if not pinned and not (parts.scheme == "file" and parts.path.startswith("/")):
                raise ValueError(
                    f"must hold addresses as `fedpacs federation relay` prints them (https://host:port/#sha256=...), or"
                    f" file:///folder; {relay!r} is none"
                )
        return value

    def members(self) -> list[Peer]:
        """The members, by name."""
        return [
            Peer(name, base64.b64decode(keys.signing_public), base64.b64decode(keys.sealing_public))
            for name, keys in sorted(self.sites.items())
        ]
