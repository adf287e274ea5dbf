"""The receiver's promises to peers that behave: negotiation, storage, duplicates, refusals, limits, and the way it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, build_role
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.sop_class import _STORAGE_CLASSES

from dicom_node.config import AeRule
from dicom_node.spool import part10
from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.wire import (
    BIG,
    CT,
    DEFLATED,
    ECHO_RQ,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    Closed,
    Raw,
    accepted,
    command,
    context,
    dataset,
    echo,
    element,
    p_data,
    pdu,
    store_rq,
)

Make = Callable[..., Receiver]


def stored(one: Receiver, sop_uid: str) -> list[bytes]:
    """The data sets kept under a SOP Instance UID."""
    with one.spool() as spool:
        return [spool.read(i)[i.data_offset :] for i in spool.find(sop_uid)]


def test_what_was_sent_is_what_is_kept_and_the_rows_say_so(receiver: Make) -> None:
    one = receiver()
    data = dataset("2.25.10", pixels=os.urandom(300_000))
    with Raw(one.port) as raw:
        raw.associate()
        assert raw.store("2.25.10", data) == 0
        with one.spool() as spool:  # visible at once, before the association ends
            (kept,) = spool.find("2.25.10")
            file = spool.read(kept)
            study = spool.study(kept.study_key)
    assert file[128:132] == b"DICM"
    assert file[kept.data_offset :] == data
    assert (kept.calling_ae, kept.transfer_syntax, kept.state) == ("TESTSCU", EXPLICIT, "received")
    assert (study.patient_id, study.accession, study.instances, study.state) == ("PID-1", "A-1", 1, "receiving")
    parsed = pydicom.dcmread(BytesIO(file))
    assert (parsed.PatientID, parsed.file_meta.MediaStorageSOPInstanceUID) == ("PID-1", "2.25.10")
    assert parsed.file_meta.SourceApplicationEntityTitle == "TESTSCU"


def test_every_storage_class_is_accepted_with_the_first_syntax_proposed_and_nothing_else_is(receiver: Make) -> None:
    one = receiver(private_sop_classes=["1.3.12.2.1107.5.9.1"])
    classes = sorted(map(str, _STORAGE_CLASSES.values()))
    for batch in (classes[:100], classes[100:]):
        with Raw(one.port) as raw:
            kind, body = raw.associate(*(context(2 * i + 1, uid) for i, uid in enumerate(batch)))
            assert kind == 2
            assert set(accepted(body).values()) == {0}
    with Raw(one.port) as raw:
        syntaxes = [str(t) for t in AllTransferSyntaxes if "SMPTE" not in t.name]
        kind, body = raw.associate(*(context(2 * i + 1, CT, t) for i, t in enumerate(syntaxes)))
        assert kind == 2
        assert {syntaxes[c // 2]: r for c, r in accepted(body).items() if r} == {}
    with Raw(one.port) as raw:
        _, body = raw.associate(
            context(1, "1.3.12.2.1107.5.9.1"),
            context(3, "1.3.12.2.1107.5.9.2"),
            context(5, CT, "1.2.3.4"),
            context(7, "1.2.840.10008.5.1.4.1.2.2.1"),
        )
        assert accepted(body) == {1: 0, 3: 3, 5: 4, 7: 3}


def test_implicit_big_endian_and_deflated_data_sets_are_read_and_kept_as_they_came(receiver: Make) -> None:
    one = receiver()
    for number, syntax in enumerate((IMPLICIT, BIG, DEFLATED)):
        uid = f"2.25.2{number}"
        plain = dataset(uid)
        parsed = dcmread(BytesIO(plain), force=True)
        out = DicomBytesIO()
        out.is_little_endian, out.is_implicit_VR = syntax != BIG, syntax == IMPLICIT
        write_dataset(out, parsed)
        raw_bytes = out.getvalue()
        if syntax == DEFLATED:
            deflater = zlib.compressobj(wbits=-15)
            raw_bytes = deflater.compress(raw_bytes) + deflater.flush()
            raw_bytes += b"\0" * (len(raw_bytes) % 2)
        with Raw(one.port) as raw:
            raw.associate(context(1, CT, syntax))
            assert raw.store(uid, raw_bytes) == 0, syntax
        assert stored(one, uid) == [raw_bytes]


def test_the_same_bytes_again_are_counted_and_other_bytes_are_kept_beside_and_flagged(receiver: Make) -> None:
    one = receiver()
    first, second = dataset("2.25.30"), dataset("2.25.30", pixels=b"\7\7" * 64)
    with Raw(one.port) as raw:
        raw.associate()
        assert [raw.store("2.25.30", d) for d in (first, first, second, second)] == [0, 0, 0, 0]
    assert stored(one, "2.25.30") == [first, second]
    with one.spool() as spool:
        one_row, other = spool.find("2.25.30")
        assert (one_row.state, one_row.duplicate_of) == ("received", None)
        assert (other.state, other.duplicate_of) == ("conflict", one_row.id)
        assert [i.id for i in spool.instances(one_row.study_key)] == [one_row.id], "a conflict is no part of the study"
        assert spool.study(one_row.study_key).instances == 1
        time.sleep(1.8)
        peer = spool.stats().peers["TESTSCU"]
        assert (peer["stored"], peer["duplicate"], peer["conflict"]) == (1, 2, 1)


def test_an_object_that_is_not_what_the_command_says_is_refused_with_the_status_that_says_why(receiver: Make) -> None:
    one = receiver()
    cases = {
        "2.25.40": (dataset("2.25.41"), 0xA900),
        "2.25.42": (dataset("2.25.42", sop_class="1.2.840.10008.5.1.4.1.1.4"), 0xA900),
        "2.25.43": (dataset("2.25.43", study="../../etc/passwd"), 0xC000),
        "2.25.44": (b"not a data set at all, not in the least", 0xC000),
        "2.25.45": (b"", 0xA900),
        "../../x": (dataset("../../x"), 0x0117),
        "2.25." + "9" * 70: (dataset("2.25.1"), 0x0117),
        "": (dataset("2.25.1"), 0x0117),
    }
    with Raw(one.port) as raw:
        raw.associate()
        for uid, (data, status) in cases.items():
            assert raw.store(uid, data) == status, uid
        assert raw.store("2.25.46", dataset("2.25.46")) == 0, "the association goes on"
    with one.spool() as spool:
        assert spool.stats().instances == {"received": 1}


def test_an_object_unfit_for_a_study_is_kept_in_quarantine_and_answered_with_a_warning(receiver: Make) -> None:
    one = receiver()
    cut = dataset("2.25.51", extra=element(0x00400275, "SQ", b"")[:-4] + b"\xff\xff\xff\xff" + b"\0" * 3)
    with Raw(one.port) as raw:
        raw.associate()
        assert raw.store("2.25.50", dataset("2.25.50", study=None)) == 0xB007
        assert raw.store("2.25.51", cut) == 0xB007
    with one.spool() as spool:
        aside = spool.set_aside("quarantined")
        assert [i.sop_uid for i in aside] == ["2.25.50", "2.25.51"]
        assert all(i.reason for i in aside)
        assert spool.studies() == [], "nothing of it reaches a study"
        assert spool.read(aside[1])[aside[1].data_offset :] == cut


def test_unknown_callers_are_rejected_for_the_right_reason_and_logged_by_ae_title_only(receiver: Make) -> None:
    one = receiver(allowed_ae_titles=["MODALITY1", "MODALITY 2"])
    with Raw(one.port) as raw:
        kind, body = raw.associate(calling=b"STRANGER")
        assert (kind, body[1:]) == (3, bytes([1, 1, 3]))
        with pytest.raises(Closed):
            raw.read()
    for title in (b"MODALITY1", b"MODALITY 2"):
        with Raw(one.port) as raw:
            assert raw.associate(calling=title)[0] == 2
    time.sleep(1.2)
    with one.spool() as spool:
        assert spool.stats().peers["STRANGER"] == {"rejected: calling AE title is not on the list": 1}
    assert "STRANGER" in one.log()
    assert "127.0.0.1" not in one.log()


def test_rules_bind_an_ae_title_to_its_addresses_and_classes(receiver: Make, tmp_path: Path) -> None:
    here = AeRule(ae_title="CT1", networks=("127.0.0.0/8",), sop_classes=(CT,))
    there = AeRule(ae_title="AWAY", networks=("10.0.0.0/8",))
    mr = AeRule(ae_title="MR1", sop_classes=("1.2.840.10008.5.1.4.1.1.4",))
    one = receiver(rules=[rule.model_dump() for rule in (here, there, mr)], require_called_ae_title=True)
    with Raw(one.port) as raw:
        assert raw.associate(calling=b"AWAY") == (3, bytes([0, 1, 1, 3])), "its address is another"
    with Raw(one.port) as raw:
        assert raw.associate(calling=b"CT1", called=b"ANOTHER") == (3, bytes([0, 1, 1, 7]))
    for title, result in ((b"CT1", 0), (b"MR1", 3), (b"FREE", 0)):
        with Raw(one.port) as raw:
            kind, body = raw.associate(calling=title)
            assert kind == 2 and accepted(body) == {1: result, 3: 0}, "verification is never taken away"
    with Raw(one.port) as raw:
        raw.associate(calling=b"CT1")
        assert raw.store("2.25.90", dataset("2.25.90")) == 0


def test_addresses_versions_and_contexts_that_are_not_ours_are_rejected(receiver: Make, tmp_path: Path) -> None:
    elsewhere = receiver(allowed_networks=["10.0.0.0/8"])
    with Raw(elsewhere.port) as raw:
        assert raw.associate() == (3, bytes([0, 1, 1, 3]))
    (tmp_path / "b").mkdir()
    one = receiver(tmp_path / "b")
    for options, answer in (
        ({"version": 2}, bytes([0, 1, 2, 2])),
        ({"app": "1.2.3"}, bytes([0, 1, 1, 2])),
        ({"calling": b"BAD\\AE"}, bytes([0, 1, 1, 3])),
        ({"calling": b""}, bytes([0, 1, 1, 3])),
        ({"called": b""}, bytes([0, 1, 1, 7])),
    ):
        with Raw(one.port) as raw:
            assert raw.associate(**options) == (3, answer), options


def test_offers_that_are_not_taken_up_do_not_stand_in_the_way(receiver: Make) -> None:
    """User identity with an answer asked for, an operations window, extended and role negotiation (PS3.7 annex D.3.3)."""
    one = receiver()
    who, window = UserIdentityNegotiation(), AsynchronousOperationsWindowNegotiation()
    who.user_identity_type, who.primary_field, who.secondary_field = 2, b"radiographer", b"secret"
    who.positive_response_requested = True
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    more = SOPClassExtendedNegotiation()
    more.sop_class_uid, more.service_class_application_information = CT, b"\x02\x00\x03\x00\x01\x00"
    ae = AE("MODALITY")
    ae.add_requested_context(CT, EXPLICIT)
    offers = [who, window, more, build_role(CT, scu_role=True, scp_role=True)]
    association = ae.associate("127.0.0.1", one.port, ext_neg=offers)
    assert association.is_established
    acceptor = association.acceptor
    assert acceptor.asynchronous_operations != (5, 5) and not acceptor.user_identity
    ds = dcmread(BytesIO(b"".join((part10.prefix(CT, "2.25.77", EXPLICIT), dataset("2.25.77")))))
    assert association.send_c_store(ds).Status == 0
    association.release()
    assert len(stored(one, "2.25.77")) == 1 and b"secret" not in one.log().encode()


def test_one_association_too_many_is_told_to_come_back_and_may_once_another_has_ended(receiver: Make) -> None:
    """The limit is the node's: it holds across receiver processes, and one that was killed holds nothing."""
    one = receiver(max_associations=2, processes=2)
    with contextlib.ExitStack() as crowd:
        opened = [crowd.enter_context(Raw(one.port)).associate()[0] for _ in range(8)]
        assert sorted(opened) == [2, 2] + [3] * 6
        one.kill()
    one.start()
    with Raw(one.port) as first, Raw(one.port) as second:
        assert first.associate()[0] == second.associate()[0] == 2
        with Raw(one.port) as third:
            assert third.associate() == (3, bytes([0, 2, 3, 2]))
        assert first.release() == 6
        with Raw(one.port) as fourth:
            assert fourth.associate()[0] == 2


def test_silence_ends_an_association_and_half_an_object_leaves_nothing(receiver: Make) -> None:
    one = receiver(idle_timeout_s=1.0, stall_timeout_s=1.0)
    with Raw(one.port) as idle, Raw(one.port) as stalled, Raw(one.port) as mute:
        idle.associate()
        stalled.associate()
        stalled.send(p_data(1, 3, store_rq("2.25.60")), p_data(1, 0, dataset("2.25.60")[:100]))
        assert idle.read()[0] == 7
        assert stalled.read()[0] == 7
        assert mute.socket.fileno() > 0
    assert echo(one.port) == 0
    with one.spool() as spool:
        assert spool.stats().instances == {}


def test_below_the_watermark_objects_are_refused_and_above_it_they_are_taken_again(
    receiver: Make, tmp_path: Path
) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize >> 20
    one = receiver(start=False)
    full = one.config.read_text().replace("min_free_mb = 1", f"min_free_mb = {free + 5000}")
    one.config.write_text(full)
    one.start()
    with Raw(one.port) as raw:
        raw.associate()
        assert raw.store("2.25.70", dataset("2.25.70")) == 0xA700
        raw.send(p_data(3, 3, ECHO_RQ))
        assert raw.status() == 0, "verification still works"
    time.sleep(1.0)
    (status,) = [json.loads(p.read_text()) for p in (tmp_path / "run").glob("receiver-*.json")]
    assert status["refusing"] is True


def test_an_unknown_operation_is_answered_as_unknown_and_an_echo_beside_it_still_works(receiver: Make) -> None:
    one = receiver()
    with Raw(one.port) as raw:
        raw.associate()
        raw.send(p_data(3, 3, command(sop_class=VERIFICATION, field=0x0020, message_id=9, data_set=1)))
        raw.send(p_data(3, 2, element(0x00080052, "CS", "STUDY")))
        assert raw.status() == 0x0211
        raw.send(p_data(3, 3, ECHO_RQ))
        assert raw.status() == 0


def test_sigterm_ends_it_cleanly_and_tells_open_associations(receiver: Make) -> None:
    one = receiver()
    with Raw(one.port) as raw:
        raw.associate()
        assert raw.store("2.25.80", dataset("2.25.80")) == 0
        assert one.stop() == [0]
        assert raw.read()[0] == 7
    assert list((one.folder / "run").glob("receiver-*")) == []
    with one.spool() as spool:
        assert len(spool.find("2.25.80")) == 1


def test_two_processes_share_a_port_and_a_spool(receiver: Make) -> None:
    one = receiver(processes=2)
    associations = [Raw(one.port) for _ in range(12)]
    try:
        for n, raw in enumerate(associations):
            raw.associate()
            for i in range(5):
                assert raw.store(f"2.25.9{n}.{i}", dataset(f"2.25.9{n}.{i}", pixels=bytes([n, i]) * 500)) == 0
    finally:
        for raw in associations:
            raw.socket.close()
    with one.spool() as spool:
        assert spool.stats().instances == {"received": 60}
        assert len({i.segment for n in range(12) for i in spool.find(f"2.25.9{n}.0")}) == 2, "both took part"
        assert spool.studies()[0].instances == 60


def test_memory_does_not_grow_with_the_object(receiver: Make) -> None:
    """A 2 GB object (300 MB where the disk is small), and one that breaks off after 100 MB: neither is held, and the second
    leaves no byte."""
    one = receiver()
    head = dataset("2.25.100", pixels=b"")[:-4]
    size = (2048 if shutil.disk_usage(one.folder).free > 5 << 30 else 300) << 20
    block = os.urandom(100_000)
    with Raw(one.port) as raw:
        raw.associate()
        raw.send(p_data(1, 3, store_rq("2.25.100")), p_data(1, 0, head + size.to_bytes(4, "little")))
        sent = 0
        while sent < size:
            piece = block[: min(len(block), size - sent)]
            sent += len(piece)
            raw.send(p_data(1, 2 if sent == size else 0, piece))
        assert raw.status() == 0
    with one.spool() as spool:
        (kept,) = spool.find("2.25.100")
        with spool.open(kept) as view:
            assert len(view) == kept.length
            assert view[kept.data_offset : kept.data_offset + len(head)] == head
            assert view[-1000:] == (block * 2)[(size - 1000) % len(block) :][:1000]
    with Raw(one.port) as raw:
        raw.associate()
        raw.send(p_data(1, 3, store_rq("2.25.101")), p_data(1, 0, dataset("2.25.101", pixels=b"")[:-4] + b"\0\0\0\x20"))
        for _ in range(1000):
            raw.send(p_data(1, 0, block))
        raw.send(pdu(7, bytes(4)))
    deadline = time.monotonic() + 5
    while len(list((one.spool_root / "segments").iterdir())) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list((one.spool_root / "segments").iterdir())) <= 2
    assert one.rss_mb() < 150
