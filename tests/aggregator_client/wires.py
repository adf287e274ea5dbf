"""Two federations of the same kind of ends: one over real sockets with TLS and node keys, one in this process."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from aggregator_client.coordinator.flower_hub import FlowerHub, Tls
from aggregator_client.flower_site import FlowerLink
from aggregator_client.transport import Hub, LocalHub, SiteLink


def self_signed(folder: Path) -> Tls:
    """A certificate for 127.0.0.1 that is its own authority."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator under test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Tls(folder / "cert.pem", folder / "key.pem", folder / "cert.pem")


@dataclass
class LocalWire:
    root: Path
    hub: LocalHub = field(default_factory=LocalHub)

    def enrol(self, site: str) -> None:
        self.hub.register(site)

    def link(self, site: str) -> SiteLink:
        return self.hub.link(site)

    def close(self) -> None:
        self.hub.close()


class FlowerWire:
    def __init__(self, root: Path) -> None:
        self.root, self.keys = root, {}
        self.links: list[FlowerLink] = []
        self.tls = self_signed(root / "tls")
        self.hub: Hub = FlowerHub(root / "hub", self.tls, "127.0.0.1")
        self.address = f"127.0.0.1:{self.hub.port}"

    def enrol(self, site: str) -> None:
        key = self.keys.setdefault(site, ec.generate_private_key(ec.SECP384R1()))
        self.hub.register(site, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def link(self, site: str, key: ec.EllipticCurvePrivateKey | None = None) -> SiteLink:
        authority = self.tls.authority.read_bytes()
        self.links.append(FlowerLink(self.address, authority, key or self.keys[site], self.root / site))
        return self.links[-1]

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.hub.close()
