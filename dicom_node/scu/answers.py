"""Keeps pynetdicom's reactor from taking a requestor's answers.

In pynetdicom 3.0 the reactor thread of an association and a `send_*` call both read the DIMSE message queue. The call pauses the
reactor first, but believes a pause that is just ending: a peer that answers within that moment has its answer taken by the
reactor, and the call waits for it until its time-out (seen with this node's receiver about once in 2,000 C-STOREs).
"""

from __future__ import annotations

from typing import Any

from pynetdicom.association import Association


def keep_answers(association: Association) -> Association:
    """Let only the `send_*` calls read messages from now on; returns the association.

    Not for associations on which the peer may send requests of its own accord (N-EVENT-REPORT): those are the reactor's.
    """
    read = association.dimse.get_msg

    def get_msg(block: bool = False) -> tuple[Any, Any]:
        return read(block=True) if block else (None, None)

    association.dimse.get_msg = get_msg
    return association
