"""N-EVENT-REPORT of storage commitment on an association of our own, in the role of SCP (PS3.4 annex J.3.3)."""

from __future__ import annotations

from pydicom import Dataset
from pynetdicom import build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicom_node.errors import RefusedError, UnreachableError
from dicom_node.scu.peer import Peer, associate

_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def report_commitment(peer: Peer, event_type: int, report: Dataset, calling: str, timeout: float = 30.0) -> None:
    """Tell a peer what was committed. Raises UnreachableError, or RefusedError when it does not take the report."""
    uid = str(StorageCommitmentPushModel)
    with associate(peer, [(uid, _SYNTAXES)], calling, timeout, [build_role(uid, scp_role=True)]) as association:
        status, _ = association.send_n_event_report(
            report, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        if not status:
            raise UnreachableError(f"{peer} took the storage commitment report but did not answer; look at its log.")
        if status.Status != 0:
            raise RefusedError(f"{peer} answered the storage commitment report with status 0x{status.Status:04X}.")
