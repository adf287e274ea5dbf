"""The one gate through which bytes leave the hospital: written to the audit log first, then let go."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dicom_node.audit import AuditLog


class EgressGate:
    """Records every byte string that leaves. `recipient` is whom it is sealed to, by name."""

    def __init__(self, audit: AuditLog, recipient: str) -> None:
        self._audit, self._recipient = audit, recipient

    def release(
        self,
        data: bytes,
        *,
        what: str,
        project: str,
        round_number: int,
        privacy: Mapping[str, Any],
        roster: Sequence[str] = (),
    ) -> bytes:
        """`data`, once its egress record is durable.

        `what` is the kind of message (update, metrics, refused); `roster` the sites the request says take part in the round.
        """
        self._audit.append(
            "egress",
            project=project,
            round=round_number,
            recipient=self._recipient,
            what=what,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            privacy=dict(privacy),
            roster=list(roster),
        )
        return data
