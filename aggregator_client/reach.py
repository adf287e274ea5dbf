"""Whether a coordinator answers: one TLS connection that trusts the invitation's authority and nobody else."""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit

from aggregator_client.errors import SignatureError, UnreachableError

TIMEOUT_SECONDS = 10.0


def reach(address: str, ca_pem: str) -> float:
    """Milliseconds until the TLS connection to "https://host:port" stood.

    Raises UnreachableError when nothing answers there, SignatureError when what answers has another certificate.
    """
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 443
    trusted = ssl.create_default_context(cadata=ca_pem)
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_SECONDS) as plain:
            with trusted.wrap_socket(plain, server_hostname=host):
                return round((time.monotonic() - started) * 1000, 1)
    except ssl.SSLCertVerificationError:
        raise SignatureError(
            f"What answers at {address} is not the coordinator of the invitation (another certificate): something stands in"
            " between, or the coordinator was made anew; call it."
        ) from None
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"The coordinator at {address} does not answer ({getattr(error, 'strerror', None) or type(error).__name__}):"
            " check that it runs, and that this machine may connect to that port."
        ) from None
