"""Storage commitment as pynetdicom's SCU asks for it: committed is what is held, and the rest is named with its reason."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.wire import CT, Raw, command, context, dataset, element, p_data

Make = Callable[..., Receiver]
MR = "1.2.840.10008.5.1.4.1.1.4"


def reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def ask(port: int, references: list[Dataset]) -> tuple[int, int, Dataset]:
    """(N-ACTION status, event type, event data set)."""
    reported = threading.Event()
    events: list[tuple[int, Dataset]] = []

    def report(event: evt.Event) -> tuple[int, None]:
        events.append((event.event_type, event.event_information))
        reported.set()
        return 0x0000, None

    ae = AE()
    ae.add_requested_context(StorageCommitmentPushModel)
    association = ae.associate("127.0.0.1", port, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    assert association.is_established
    request = Dataset()
    request.TransactionUID = generate_uid()
    request.ReferencedSOPSequence = references
    status, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    assert reported.wait(10)
    association.release()
    assert events[0][1].TransactionUID == request.TransactionUID
    return status.Status, *events[0]


def test_what_is_held_is_committed_and_what_is_not_is_named_with_its_reason(receiver: Make) -> None:
    one = receiver()
    with Raw(one.port) as raw:
        raw.associate()
        for n in range(3):
            assert raw.store(f"2.25.8{n}", dataset(f"2.25.8{n}")) == 0
    status, event, report = ask(one.port, [reference(CT, f"2.25.8{n}") for n in range(3)])
    assert (status, event) == (0, 1)
    assert [i.ReferencedSOPInstanceUID for i in report.ReferencedSOPSequence] == ["2.25.80", "2.25.81", "2.25.82"]
    status, event, report = ask(
        one.port, [reference(CT, "2.25.80"), reference(CT, "2.25.99"), reference(MR, "2.25.81")]
    )
    assert (status, event) == (0, 2)
    assert [i.ReferencedSOPInstanceUID for i in report.ReferencedSOPSequence] == ["2.25.80"]
    failed = {i.ReferencedSOPInstanceUID: i.FailureReason for i in report.FailedSOPSequence}
    assert failed == {"2.25.99": 0x0112, "2.25.81": 0x0119}


def test_a_request_that_is_none_is_answered_as_an_invalid_argument(receiver: Make) -> None:
    one = receiver()
    push = str(StorageCommitmentPushModel)
    with Raw(one.port) as raw:
        raw.associate(context(1, push))
        action = command(field=0x0130, message_id=1, data_set=1)[12:]
        action += b"\0\0\3\0" + len(push).to_bytes(4, "little") + push.encode()
        instance = str(StorageCommitmentPushModelInstance).encode()
        action += b"\0\0\1\x10" + len(instance).to_bytes(4, "little") + instance + b"\0\0\x08\x10\2\0\0\0\1\0"
        for nonsense in (b"", b"x" * 500, element(0x00081195, "UI", "../../x")):
            raw.send(p_data(1, 3, action), p_data(1, 2, nonsense))
            assert raw.status() == 0x0115
