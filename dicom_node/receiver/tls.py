"""TLS for DICOM by the BCP 195 profile (PS3.15 annex B.9 and B.10): TLS 1.2 at least, forward secrecy, both sides proven."""

from __future__ import annotations

import ssl

from dicom_node.errors import ConfigError
from dicom_node.receiver.settings import Settings

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!eNULL:!MD5:!DSS"


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """The receiver's TLS, or None where no certificate is set. With `tls_ca`, peers must show a certificate it signed."""
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The TLS files of [dicom] cannot be used ({error}); give a PEM certificate, its key, and the CA of the peers."
        ) from error
    return context
