"""DICOM over TLS: both sides prove who they are, and whoever cannot is not let near an association."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from dicom_node.errors import UnreachableError
from dicom_node.scu import Peer, echo, send_files
from dicom_node.spool import part10
from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.wire import CT, EXPLICIT, Raw, dataset

Make = Callable[..., Receiver]


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None
) -> ec.EllipticCurvePrivateKey:
    """Write name.pem and name.key; self-signed CA without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    write(folder, name, key, issuer or (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key), ca=not issuer)
    return key


def write(
    folder: Path,
    name: str,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey],
    ca: bool = False,
) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0])
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    signed = builder.sign(issuer[1], hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    for ca, member in (("ca", "node"), ("ca2", "stranger")):
        key = certificate(tmp_path, ca, None)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ca)])
        certificate(tmp_path, member, (name, key))
        if ca == "ca":
            certificate(tmp_path, "modality", (name, key))
    return tmp_path


def test_objects_arrive_over_mutual_tls_and_strangers_do_not_get_in(receiver: Make, tls: Path) -> None:
    files = {"tls_certificate": tls / "node.pem", "tls_key": tls / "node.key", "tls_ca": tls / "ca.pem"}
    one = receiver(stall_timeout_s=2.0, **files)
    known = Peer("TEST", "127.0.0.1", one.port, tls / "ca.pem", tls / "modality.pem", tls / "modality.key")
    assert echo(known).echo_s < 5
    path = tls / "one.dcm"
    data = dataset("2.25.900", pixels=bytes(range(256)) * 8000)
    path.write_bytes(part10.prefix(CT, "2.25.900", EXPLICIT) + data)
    assert send_files(known, [path]).failed == {}
    with one.spool() as spool:
        (kept,) = spool.find("2.25.900")
        assert spool.read(kept)[kept.data_offset :] == data
    for stranger in (
        Peer("TEST", "127.0.0.1", one.port, tls / "ca.pem", tls / "stranger.pem", tls / "stranger.key"),
        Peer("TEST", "127.0.0.1", one.port, tls / "ca.pem"),
        Peer("TEST", "127.0.0.1", one.port),
    ):
        with pytest.raises(UnreachableError):
            echo(stranger, timeout=5)
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    context.load_cert_chain(tls / "modality.pem", tls / "modality.key")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Raw(one.port) as raw, pytest.raises((ssl.SSLError, ConnectionError, ValueError)):
        context.wrap_socket(raw.socket, server_hostname="127.0.0.1")
    assert echo(known).echo_s < 5


def test_tls_files_that_are_not_there_are_named(receiver: Make, tls: Path) -> None:
    one = receiver(start=False, tls_certificate=tls / "absent.pem", tls_key=tls / "node.key")
    one.start(wait=False)
    assert one.processes[0].wait(20) == 3
    assert "TLS files of [dicom]" in one.log()
    one.processes.clear()
