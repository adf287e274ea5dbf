"""An answer that arrives while pynetdicom's reactor is awake belongs to the call that waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.sop_class import Verification

from dicom_node.scu.answers import keep_answers
from tests.dicom_node.receiver.conftest import Receiver, receiver  # noqa: F401 - the fixture


def taken_by_the_reactor(association: Association) -> bool:
    """Whether an answer put into the queue, as the network thread would, is gone a moment later."""
    answer = C_ECHO()
    answer.MessageIDBeingRespondedTo = 1
    answer.Status = 0
    association.dimse.msg_queue.put((1, answer))
    time.sleep(0.2)
    return bool(association.dimse.msg_queue.empty())


def test_the_reactor_takes_an_answer_unless_told_not_to(receiver: Callable[..., Receiver]) -> None:  # noqa: F811
    one = receiver()
    ae = AE(ae_title="TEST")
    ae.add_requested_context(Verification)
    plain = ae.associate("127.0.0.1", one.port, ae_title="TEST")
    kept = keep_answers(ae.associate("127.0.0.1", one.port, ae_title="TEST"))
    try:
        assert plain.is_established and kept.is_established
        assert taken_by_the_reactor(plain), "pynetdicom was mended: dicom_node.scu.answers is no longer needed"
        assert not taken_by_the_reactor(kept)
        assert kept.dimse.get_msg(block=True)[0] == 1
        assert kept.send_c_echo().Status == 0
    finally:
        plain.abort()
        kept.release()
