"""A remote application entity, and how an association with it is opened and its refusal put into words."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node.config import check_ae_title
from dicom_node.errors import InputError, RefusedError, UnreachableError
from dicom_node.scu.answers import keep_answers
from dicom_node.spool.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

_ADDRESS = re.compile(r"(?P<title>[^@]+)@(?P<host>\[[^\]]+\]|[^:@]+):(?P<port>\d{1,5})\Z")

# PS3.8 table 9-21: (source, reason) of a rejection, in words that say what to do.
_REJECTED = {
    (1, 1): "it gave no reason",
    (1, 2): "it does not know DICOM's application context",
    (1, 3): "it does not know the calling AE title {calling}; add it to its list of peers",
    (1, 7): "it is not called {called}; check its AE title",
    (2, 1): "it gave no reason",
    (2, 2): "it speaks another protocol version",
    (3, 1): "it is busy; try again later",
    (3, 2): "it has as many associations as it takes; try again later",
}


@dataclass(frozen=True)
class Peer:
    """Where a remote AE listens; TLS when a CA file is given, mutual when a certificate and key are."""

    ae_title: str
    host: str
    port: int
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @classmethod
    def parse(cls, text: str, **tls: Path | None) -> Peer:
        """From `AETITLE@host:port`. Raises InputError."""
        found = _ADDRESS.match(text)
        try:
            if found is None or not 0 < int(found["port"]) < 65536:
                raise ValueError("it is not AETITLE@host:port")
            return cls(check_ae_title(found["title"]), found["host"].strip("[]"), int(found["port"]), **tls)
        except ValueError as error:
            raise InputError(f"The peer {text!r} cannot be used: {error}; write it as AETITLE@host:port.") from None

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"

    def ssl_context(self) -> ssl.SSLContext | None:
        if self.tls_ca is None:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.tls_ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.tls_certificate is not None:
                context.load_cert_chain(self.tls_certificate, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"The TLS files for {self} cannot be used ({error}); give PEM files.") from None
        return context


@contextmanager
def associate(
    peer: Peer,
    contexts: Iterable[tuple[str, Sequence[str]]],
    calling: str,
    timeout: float = 30.0,
    roles: Sequence[Any] = (),
) -> Iterator[Association]:
    """An established association, released at the end. Raises UnreachableError or RefusedError with one sentence."""
    ae = AE(ae_title=calling)
    ae.implementation_class_uid, ae.implementation_version_name = IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
    ae.connection_timeout = min(timeout, 10.0)
    for abstract, transfer in contexts:
        ae.add_requested_context(abstract, list(transfer))
    tls = peer.ssl_context()
    association = ae.associate(
        peer.host,
        peer.port,
        ae_title=peer.ae_title,
        max_pdu=131072,
        tls_args=(tls, peer.host) if tls else None,
        ext_neg=list(roles),
    )
    try:
        if not association.is_established:
            raise _refusal(peer, association, calling)
        yield keep_answers(association)
    finally:
        if association.is_established:
            association.release()


def _refusal(peer: Peer, association: Association, calling: str) -> RefusedError | UnreachableError:
    if association.is_rejected:
        primitive = association.acceptor.primitive
        key = (primitive.result_source, primitive.diagnostic) if primitive is not None else (1, 1)
        why = _REJECTED.get(key, "it gave no reason that is known").format(calling=calling, called=peer.ae_title)
        return RefusedError(f"{peer} rejected the association: {why}.")
    if association.acceptor.primitive is not None:
        return RefusedError(f"{peer} accepts none of the proposed SOP classes; check what it is configured to take.")
    return UnreachableError(
        f"{peer} cannot be reached, or does not speak DICOM there; check host, port, firewall and TLS."
    )
