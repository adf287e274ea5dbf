"""A study is complete when everything a modality (MPPS), an archive (IAN) or a storage commitment spoke of is here."""

from __future__ import annotations

from collections.abc import Callable

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    InstanceAvailabilityNotification,
    ModalityPerformedProcedureStep,
)

from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.test_commitment import ask, reference
from tests.dicom_node.receiver.wire import CT, Raw, dataset

Make = Callable[..., Receiver]
STUDY = "2.25.555"
QUIET = 3600.0  # nothing here is complete for having been quiet


def connect(one: Receiver, *classes: str) -> Association:
    ae = AE("CT1")
    for sop_class in classes:
        ae.add_requested_context(sop_class)
    association = ae.associate("127.0.0.1", one.port)
    assert association.is_established and len(association.accepted_contexts) == len(classes)
    return association


def store(one: Receiver, *uids: str, study: str = STUDY) -> None:
    with Raw(one.port) as raw:
        raw.associate()
        for uid in uids:
            assert raw.store(uid, dataset(uid, study=study)) == 0


def complete(one: Receiver) -> int:
    with one.spool() as spool:
        last = max((study.last_at for study in spool.studies()), default=0.0)
        spool.complete_studies(last, QUIET)
        return sum(study.state == "complete" for study in spool.studies())


def opened(study: str = STUDY) -> Dataset:
    step, item = Dataset(), Dataset()
    item.StudyInstanceUID = study
    step.ScheduledStepAttributesSequence = [item]
    step.PerformedProcedureStepStatus = "IN PROGRESS"
    return step


def closed(*uids: str, status: str = "COMPLETED") -> Dataset:
    step, series = Dataset(), Dataset()
    series.ReferencedImageSequence = [Dataset() for _ in uids]
    for item, uid in zip(series.ReferencedImageSequence, uids, strict=True):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
    step.PerformedProcedureStepStatus, step.PerformedSeriesSequence = status, [series]
    return step


def test_a_performed_procedure_step_tells_how_many_there_will_be(receiver: Make) -> None:
    one, step = receiver(), generate_uid()
    association = connect(one, ModalityPerformedProcedureStep)
    status, _ = association.send_n_create(opened(), ModalityPerformedProcedureStep, step)
    assert status.Status == 0
    store(one, "2.25.1")
    assert complete(one) == 0, "the step is open: more may come"
    status, _ = association.send_n_set(closed("2.25.1", "2.25.2"), ModalityPerformedProcedureStep, step)
    assert status.Status == 0
    assert complete(one) == 0, "one of two is here"
    store(one, "2.25.2")
    assert complete(one) == 1
    store(one, "2.25.3")
    with one.spool() as spool:
        assert spool.studies()[0].state == "receiving" and spool.studies()[0].generation == 2, "a late one reopens it"
    association.release()


def test_the_steps_of_one_study_add_up(receiver: Make) -> None:
    one = receiver()
    association = connect(one, ModalityPerformedProcedureStep)
    for number, uids in enumerate((("2.25.1", "2.25.2"), ("2.25.3",))):
        step = f"2.25.70{number}"
        assert association.send_n_create(opened(), ModalityPerformedProcedureStep, step)[0].Status == 0
        assert association.send_n_set(closed(*uids), ModalityPerformedProcedureStep, step)[0].Status == 0
    association.release()
    store(one, "2.25.1", "2.25.2")
    assert complete(one) == 0
    store(one, "2.25.3")
    assert complete(one) == 1


def test_an_archive_tells_what_is_available(receiver: Make) -> None:
    one = receiver()
    association = connect(one, InstanceAvailabilityNotification)
    notice, series = Dataset(), Dataset()
    notice.StudyInstanceUID, notice.ReferencedSeriesSequence = STUDY, [series]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = "2.25.556", [Dataset() for _ in range(3)]
    for number, item in enumerate(series.ReferencedSOPSequence):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, f"2.25.{number}"
        item.InstanceAvailability, item.RetrieveAETitle = ("ONLINE", "ONLINE", "UNAVAILABLE")[number], "PACS"
    status, _ = association.send_n_create(notice, InstanceAvailabilityNotification, generate_uid())
    assert status.Status == 0
    association.release()
    store(one, "2.25.1")
    assert complete(one) == 0
    store(one, "2.25.2")
    assert complete(one) == 1


def test_who_asks_to_be_promised_all_there_is_has_sent_all(receiver: Make) -> None:
    one = receiver()
    store(one, "2.25.1", "2.25.2")
    store(one, "2.25.8", study="2.25.777")
    for uids, expected in ((["2.25.1"], 0), (["2.25.1", "2.25.2"], 1)):
        assert ask(one.port, [reference(CT, uid) for uid in uids])[:2] == (0, 1)
        store(one, "2.25.8", study="2.25.777")  # answered after the request has been dealt with
        assert complete(one) == expected


def test_a_notice_that_is_none_is_refused_with_its_status(receiver: Make) -> None:
    one = receiver()
    association = connect(one, ModalityPerformedProcedureStep, InstanceAvailabilityNotification)
    mpps, ian = ModalityPerformedProcedureStep, InstanceAvailabilityNotification
    nameless = Dataset()
    nameless.PerformedProcedureStepStatus = "IN PROGRESS"
    assert association.send_n_create(nameless, mpps, "2.25.1")[0].Status == 0x0115, "it names no study"
    assert association.send_n_create(opened("../../x"), mpps, "2.25.1")[0].Status == 0x0115
    assert association.send_n_set(closed("2.25.1"), mpps, "2.25.404")[0].Status == 0x0112, "never opened here"
    assert association.send_n_create(opened(), ian, "2.25.2")[0].Status == 0x0115
    assert association.send_n_set(closed("2.25.1"), ian, "2.25.2")[0].Status == 0x0211
    assert association.send_n_create(opened(), mpps, "2.25.3")[0].Status == 0, "and the association goes on"
    association.release()
    store(one, "2.25.1")
    assert complete(one) == 0
