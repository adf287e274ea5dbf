"""C-ECHO: does the peer hear us, does it let us in, and how long does it take (PS3.4 annex A)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from dicom_node.errors import RefusedError, UnreachableError
from dicom_node.scu.peer import Peer, associate

IMPLICIT_LE = "1.2.840.10008.1.2"


@dataclass(frozen=True)
class EchoReport:
    """Seconds to associate and to be answered."""

    peer: str
    associate_s: float
    echo_s: float


def takes_commitment(peer: Peer, calling: str = "FEDPACS", timeout: float = 10.0) -> bool:
    """Whether a peer offers Storage Commitment (PS3.4 annex J) to us. Raises UnreachableError or RefusedError."""
    uids = (str(Verification), str(StorageCommitmentPushModel))
    with associate(peer, [(uid, [IMPLICIT_LE]) for uid in uids], calling, timeout) as association:
        return any(context.abstract_syntax == uids[1] for context in association.accepted_contexts)


def echo(peer: Peer, calling: str = "FEDPACS", timeout: float = 10.0) -> EchoReport:
    """Verify a peer. Raises UnreachableError (no answer) or RefusedError (an answer that says no)."""
    start = time.monotonic()
    with associate(peer, [(str(Verification), [IMPLICIT_LE])], calling, timeout) as association:
        associated = time.monotonic()
        status = association.send_c_echo()
        if not status:
            raise UnreachableError(f"{peer} accepted the association but did not answer C-ECHO; look at its log.")
        if status.Status != 0:
            raise RefusedError(f"{peer} answered C-ECHO with status 0x{status.Status:04X}; look at its log.")
        return EchoReport(str(peer), round(associated - start, 4), round(time.monotonic() - associated, 4))
