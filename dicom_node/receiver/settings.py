"""What one receiver process needs to know, taken from node.toml once at start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicom_node.config import NodeConfig

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Rule:
    """What one calling AE title may do; empty leaves that open."""

    networks: tuple[Network, ...] = ()
    sop_classes: frozenset[str] = frozenset()


ANY = Rule()


@dataclass(frozen=True)
class Settings:
    """Frozen settings of the Storage SCP. Times in seconds, sizes in bytes unless named otherwise."""

    spool: Path
    run: Path | None = None
    ae_title: str = "FEDPACS"
    host: str = "0.0.0.0"
    port: int = 11112
    processes: int = 2
    max_associations: int = 64
    max_pdu: int = 131072
    allowed_ae_titles: frozenset[str] = frozenset()
    allowed_networks: tuple[Network, ...] = ()
    private_sop_classes: frozenset[str] = frozenset()
    artim_timeout_s: float = 30.0
    idle_timeout_s: float = 600.0
    stall_timeout_s: float = 60.0
    min_free_mb: int = 512
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    max_half_open: int = 512
    spill_bytes: int = 8 << 20  # an object larger than this is streamed into a segment of its own
    memory_bytes: int = 48 << 20  # held by all objects of a process before the large ones are streamed
    called_ae: str = ""  # the only called AE title that is answered; "" answers any
    rules: dict[str, Rule] = field(default_factory=dict)  # by calling AE title
    peers: dict[str, str] = field(default_factory=dict)  # AE title → AETITLE@host:port

    @classmethod
    def of(cls, config: NodeConfig) -> Settings:
        dicom, storage = config.dicom, config.storage

        def path(value: object) -> Path | None:
            return Path(str(value)) if value else None

        return cls(
            spool=storage.spool,
            run=storage.run,
            ae_title=dicom.ae_title,
            host=dicom.host,
            port=dicom.port,
            processes=dicom.processes,
            max_associations=dicom.max_associations,
            max_pdu=dicom.max_pdu,
            allowed_ae_titles=frozenset(title.strip() for title in dicom.allowed_ae_titles),
            allowed_networks=_parsed(dicom.allowed_networks),
            private_sop_classes=frozenset(dicom.private_sop_classes),
            called_ae=dicom.ae_title if dicom.require_called_ae_title else "",
            rules={
                rule.ae_title.strip(): Rule(_parsed(rule.networks), frozenset(rule.sop_classes)) for rule in dicom.rules
            },
            peers={peer.partition("@")[0].strip(): peer for peer in dicom.peers},
            idle_timeout_s=dicom.idle_timeout_s,
            stall_timeout_s=dicom.stall_timeout_s,
            min_free_mb=storage.min_free_mb,
            tls_certificate=path(dicom.tls_certificate),
            tls_key=path(dicom.tls_key),
            tls_ca=path(dicom.tls_ca),
        )

    def allows_address(self, address: str, title: str = "") -> bool:
        """Whether a peer's IP address is on the list, and on that of its AE title's rule ([] allows every one)."""
        return within(address, self.allowed_networks) and within(address, self.rule(title).networks)

    def rule(self, title: str) -> Rule:
        """The rule for a calling AE title; one that allows everything where there is none."""
        return self.rules.get(title, ANY)

    def allows_ae(self, title: str) -> bool:
        """Whether a calling AE title is on the list ([] allows every one)."""
        return not self.allowed_ae_titles or title in self.allowed_ae_titles


def within(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an IP address lies in one of the networks; () holds every address."""
    if not networks:
        return True
    ip = ipaddress.ip_address(address.split("%")[0])
    candidate = getattr(ip, "ipv4_mapped", None) or ip
    return any(candidate.version == n.version and candidate in n for n in networks)


def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(one, strict=False) for one in networks)
