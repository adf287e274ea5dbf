"""Peers that lie, stall, flood or babble: the receiver answers as it should, keeps nothing it did not promise, and goes on.

Every case is followed by a C-ECHO on a clean association; at the end the process has neither grown nor leaked, and nothing
was written outside its folder. FEDPACS_FUZZ_SECONDS sets how long the fuzzer runs (10 by default).
"""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
    associate_rq,
    command,
    context,
    dataset,
    echo,
    element,
    item,
    p_data,
    pdu,
    pdv,
    store_rq,
)

FUZZ_SECONDS = float(os.environ.get("FEDPACS_FUZZ_SECONDS", "10"))
ABORTED = "A-ABORT"
CLOSED = "closed"
UID = "2.25.666"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    one = Receiver(tmp_path_factory.mktemp("hostile"), stall_timeout_s=2.0, idle_timeout_s=6.0)
    one.start()
    echo(one.port)
    yield one
    one.kill()


def answer(raw: Raw) -> object:
    """What the receiver says next: a DIMSE status, A-ABORT, a rejection (result, source, reason), or that it closed."""
    try:
        kind, body = raw.read()
    except Closed:
        return CLOSED
    if kind == 7:
        return ABORTED
    if kind == 3:
        return tuple(body[1:])
    if kind == 4:
        at = 6
        while at < len(body):
            _, number, length = struct.unpack_from("<HHI", body, at)
            if number == 0x0900:
                return int.from_bytes(body[at + 8 : at + 8 + length], "little")
            at += 8 + length
    return kind


def after_association(*sent: bytes, contexts: bytes | None = None) -> Callable[[Raw], object]:
    def play(raw: Raw) -> object:
        raw.associate(contexts or context(1, CT) + context(3, VERIFICATION))
        raw.send(*sent)
        return answer(raw)

    return play


def at_once(*sent: bytes, then_close: bool = False) -> Callable[[Raw], object]:
    def play(raw: Raw) -> object:
        raw.send(*sent)
        if then_close:
            raw.socket.shutdown(socket.SHUT_WR)
        return answer(raw)

    return play


def storing(data: bytes, *, syntax: str = EXPLICIT, uid: str = UID, rq: bytes | None = None) -> Callable[[Raw], object]:
    return after_association(
        p_data(1, 3, rq or store_rq(uid)),
        *[
            p_data(1, 2 if at + 60000 >= len(data) else 0, data[at : at + 60000])
            for at in range(0, len(data) or 1, 60000)
        ],
        contexts=context(1, CT, syntax),
    )


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def nested(depth: int) -> bytes:
    head = struct.pack("<HH2sxxI", 0x0040, 0x0275, b"SQ", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return head * depth + tail * depth


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    out = packer.compress(data) + packer.flush()
    return out + b"\0" * (len(out) % 2)


RQ = associate_rq(context(1, CT) + context(3, VERIFICATION))
BOMB = deflated(dataset(UID, pixels=b"")[:-4] + struct.pack("<I", 300 << 20) + bytes(300 << 20))
HALF = dataset(UID)[:200]

CASES: dict[str, tuple[Callable[[Raw], object], tuple[object, ...]]] = {
    # -- not DICOM, or not yet -----------------------------------------------------------------------------------------
    "HTTP": (at_once(b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n"), (ABORTED, CLOSED)),
    "TLS hello": (at_once(bytes.fromhex("16030100c8010000c40303") + bytes(190)), (ABORTED, CLOSED)),
    "zeros": (at_once(bytes(4096)), (ABORTED,)),
    "noise": (at_once(random.Random(1).randbytes(4096)), (ABORTED, CLOSED)),
    "closes at once": (at_once(then_close=True), (CLOSED,)),
    "half a header": (at_once(b"\x01\x00\x00", then_close=True), (CLOSED,)),
    "half a request": (at_once(RQ[:50], then_close=True), (CLOSED,)),
    "P-DATA before any association": (at_once(p_data(1, 3, ECHO_RQ)), (ABORTED,)),
    "release before any association": (at_once(pdu(5, bytes(4))), (ABORTED,)),
    "A-ASSOCIATE-AC as a request": (at_once(pdu(2, RQ[6:])), (ABORTED,)),
    "unknown PDU type first": (at_once(pdu(0x55, b"x" * 10)), (ABORTED,)),
    # -- malformed requests --------------------------------------------------------------------------------------------
    "request of 4 GiB": (at_once(struct.pack(">BxI", 1, 0xFFFFFFFF), RQ[6:]), (ABORTED,)),
    "request of 2 MiB": (at_once(struct.pack(">BxI", 1, 2 << 20), bytes(1000)), (ABORTED,)),
    "request without items": (at_once(pdu(1, RQ[6:74])), (ABORTED, (1, 1, 2))),
    "request shorter than its fixed part": (at_once(pdu(1, RQ[6:40])), (ABORTED,)),
    "item longer than the request": (at_once(pdu(1, RQ[6:74] + struct.pack(">BxH", 0x10, 60000) + b"1.2")), (ABORTED,)),
    "sub-item longer than its item": (
        at_once(associate_rq(item(0x20, b"\1\0\0\0" + struct.pack(">BxH", 0x30, 500) + b"1.2"))),
        (ABORTED,),
    ),
    "no presentation context": (at_once(associate_rq(b"")), (ABORTED,)),
    "even context id": (at_once(associate_rq(context(2, CT))), (ABORTED,)),
    "context id used twice": (at_once(associate_rq(context(1, CT) + context(1, VERIFICATION))), (ABORTED,)),
    "context without transfer syntax": (at_once(associate_rq(item(0x20, b"\1\0\0\0" + item(0x30, CT.encode())))), (ABORTED,)),
    "context without abstract syntax": (at_once(associate_rq(item(0x20, b"\1\0\0\0" + item(0x40, b"1.2")))), (ABORTED,)),
    "a maximum length of two bytes": (at_once(associate_rq(context(1, CT), user=item(0x51, b"ab"))), (ABORTED,)),
    "role item that lies": (at_once(associate_rq(context(1, CT), user=item(0x54, b"\xff\xff12"))), (ABORTED,)),
    "wrong application context": (at_once(associate_rq(context(1, CT), app="1.2.3")), ((1, 1, 2),)),
    "wrong protocol version": (at_once(associate_rq(context(1, CT), version=0)), ((1, 2, 2),)),
    "AE title of NULs": (at_once(associate_rq(context(1, CT), calling=bytes(16))), ((1, 1, 3),)),
    "AE title with a newline": (at_once(associate_rq(context(1, CT), calling=b"A\nB")), ((1, 1, 3),)),
    "AE title with escape codes": (at_once(associate_rq(context(1, CT), calling=b"\x1b[31mA")), ((1, 1, 3),)),
    "AE title above ASCII": (at_once(associate_rq(context(1, CT), calling=b"\xff\xfe\x80")), ((1, 1, 3),)),
    "AE title that climbs": (at_once(associate_rq(context(1, CT), calling=b"../../../etc/x")), (2,)),
    "abstract syntax that climbs": (at_once(associate_rq(context(1, "../../etc/passwd"))), (2,)),
    "128 contexts": (at_once(associate_rq(b"".join(context(i, CT) for i in range(1, 256, 2)))), (2,)),
    "a context of 5,000 transfer syntaxes": (at_once(associate_rq(context(1, CT, *["1.2.3"] * 5000))), (2,)),
    "second request on an association": (after_association(RQ), (ABORTED,)),
    # -- PDUs ----------------------------------------------------------------------------------------------------------
    "unknown PDU type": (after_association(pdu(0x80, b"abc")), (ABORTED,)),
    "P-DATA of 4 GiB": (after_association(struct.pack(">BxI", 4, 0xFFFFFFFF), bytes(100)), (ABORTED,)),
    "P-DATA longer than negotiated": (after_association(struct.pack(">BxI", 4, 131073), bytes(100)), (ABORTED,)),
    "empty P-DATA": (after_association(pdu(4, b"")), (ABORTED,)),
    "PDV longer than its PDU": (after_association(pdu(4, struct.pack(">IBB", 5000, 1, 3) + ECHO_RQ)), (ABORTED,)),
    "PDV of 4 GiB": (after_association(pdu(4, struct.pack(">IBB", 0xFFFFFFFF, 1, 3) + ECHO_RQ)), (ABORTED,)),
    "PDV of length 0": (after_association(pdu(4, struct.pack(">IBB", 0, 1, 3))), (ABORTED,)),
    "PDV of length 1": (after_association(pdu(4, struct.pack(">IBB", 1, 1, 3))), (ABORTED,)),
    "PDV header cut": (after_association(pdu(4, b"\0\0\0")), (ABORTED,)),
    "context nobody proposed": (after_association(p_data(99, 3, ECHO_RQ)), (ABORTED,)),
    "context that was refused": (
        after_association(p_data(5, 3, ECHO_RQ), contexts=context(1, CT) + context(5, "1.2.840.10008.5.1.4.1.2.2.1")),
        (ABORTED,),
    ),
    "release of 4 GiB": (after_association(struct.pack(">BxI", 5, 0xFFFFFFFF)), (ABORTED,)),
    "A-ASSOCIATE-RJ on an association": (after_association(pdu(3, bytes(4))), (ABORTED,)),
    "release reply nobody asked for": (after_association(pdu(6, bytes(4))), (ABORTED,)),
    # -- commands ------------------------------------------------------------------------------------------------------
    "command of noise": (after_association(p_data(3, 3, random.Random(2).randbytes(100))), (ABORTED,)),
    "empty command": (after_association(p_data(3, 3, b"")), (ABORTED,)),
    "command with an element of 4 GiB": (
        after_association(p_data(3, 3, struct.pack("<HHI", 0, 2, 0xFFFFFFFF) + b"x" * 10)),
        (ABORTED,),
    ),
    "command in another group": (after_association(p_data(3, 3, implicit(0x00080018, b"1.2 "))), (ABORTED,)),
    "endless command": (after_association(*[p_data(3, 1, bytes(16000))] * 8), (ABORTED,)),
    "command without a field": (after_association(p_data(3, 3, command(message_id=1, data_set=0x101))), (ABORTED,)),
    "unknown command": (
        after_association(p_data(3, 3, command(sop_class=VERIFICATION, field=0x7777, message_id=1, data_set=0x101))),
        (0x0211,),
    ),
    "data set without a command": (after_association(p_data(1, 2, HALF)), (ABORTED,)),
    "echo with a data set": (
        after_association(p_data(3, 3, command(field=0x30, message_id=1, data_set=1)), p_data(3, 2, HALF)),
        (0x0211,),
    ),
    "command in the middle of a data set": (
        after_association(p_data(1, 3, store_rq(UID)), p_data(1, 0, HALF), p_data(1, 3, store_rq(UID))),
        (ABORTED,),
    ),
    "data set on another context": (
        after_association(p_data(1, 3, store_rq(UID)), p_data(3, 2, dataset(UID))),
        (ABORTED,),
    ),
    "data set before its command is whole": (
        after_association(p_data(1, 1, store_rq(UID)[:20]), p_data(1, 2, dataset(UID))),
        (ABORTED,),
    ),
    "command that changes its context": (
        after_association(p_data(1, 1, store_rq(UID)[:20]), p_data(3, 3, store_rq(UID)[20:])),
        (ABORTED,),
    ),
    "store without a data set": (after_association(p_data(1, 3, store_rq(UID, data_set=0x0101))), (0xC000,)),
    "store on the verification context": (
        after_association(p_data(3, 3, store_rq(UID)), p_data(3, 2, dataset(UID))),
        (0x0122,),
    ),
    "store without an instance UID": (
        storing(dataset(UID), rq=command(sop_class=CT, field=1, message_id=1, data_set=1)), (0x0117,)),
    "store without a class UID": (storing(dataset(UID), rq=command(field=1, message_id=1, data_set=1, instance=UID)), (0x0122,)),
    "message in pieces of one byte": (
        after_association(*[p_data(3, 3 if i == len(ECHO_RQ) - 1 else 1, ECHO_RQ[i : i + 1]) for i in range(len(ECHO_RQ))]),
        (0,),
    ),
    "two PDVs in one PDU": (after_association(pdu(4, pdv(3, 1, ECHO_RQ[:10]) + pdv(3, 3, ECHO_RQ[10:]))), (0,)),
    # -- data sets -----------------------------------------------------------------------------------------------------
    "empty data set": (storing(b""), (0xA900,)),
    "data set of noise": (storing(random.Random(3).randbytes(5000)), (0xC000, 0xA900)),
    "data set of zeros": (storing(bytes(5000)), (0xC000, 0xA900)),
    "another instance than announced": (storing(dataset("2.25.1")), (0xA900,)),
    "another class than announced": (storing(dataset(UID, sop_class="1.2.840.10008.5.1.4.1.1.4")), (0xA900,)),
    "instance UID that climbs": (storing(dataset("../../../tmp/evil"), uid="../../../tmp/evil"), (0x0117,)),
    "instance UID with NULs": (storing(dataset("1.2\x00/3"), uid="1.2\x00/3"), (0x0117,)),
    "instance UID too long": (storing(dataset("1." * 40 + "1"), uid="1." * 40 + "1"), (0x0117,)),
    "study UID that climbs": (storing(dataset(UID, study="../../../../tmp/evil")), (0xC000,)),
    "series UID too long": (storing(dataset(UID, series="1." * 40 + "1")), (0xC000,)),
    "two instance UIDs": (storing(dataset(UID, extra=element(0x00080018, "UI", "2.25.9"))), (0xC000,)),
    "a study UID of 60 kB": (storing(dataset(UID, study="1" * 60000)), (0xC000,)),
    "element of 4 GiB before the UIDs": (
        storing(struct.pack("<HH2sxxI", 8, 5, b"UT", 0xFFFFFFF0) + dataset(UID)), (0xC000,)),
    "implicit data set on an explicit context": (storing(implicit(0x00080018, UID.encode())), (0xA900, 0xC000)),
    "explicit data set on an implicit context": (storing(dataset(UID), syntax=IMPLICIT), (0xA900, 0xC000)),
    "little endian data set on a big endian context": (storing(dataset(UID), syntax=BIG), (0xA900, 0xC000)),
    "not deflated on a deflated context": (storing(dataset(UID), syntax=DEFLATED), (0xC000,)),
    "deflated and cut": (storing(deflated(dataset(UID, pixels=os.urandom(50000)))[:-600], syntax=DEFLATED), (0xC000, 0xB007)),
    "deflate bomb": (storing(BOMB, syntax=DEFLATED), (0xC000,)),
    "cut in the header": (storing(dataset(UID)[:60]), (0xC000, 0xA900)),
    "sequence that never ends": (storing(dataset(UID, extra=nested(3)[:-20], pixels=b"")), (0xB007,)),
    "item outside a sequence": (storing(dataset(UID, extra=struct.pack("<HHI", 0xFFFE, 0xE000, 0))), (0xB007,)),
    "nested 100,000 deep and cut": (storing(dataset(UID, extra=nested(100_000)[: 20 * 100_000])), (0xB007,)),
    # -- the way it ends -----------------------------------------------------------------------------------------------
    "abort in the middle of an object": (
        after_association(p_data(1, 3, store_rq(UID)), p_data(1, 0, HALF), pdu(7, bytes(4))), (CLOSED,)),
    "release in the middle of an object": (
        after_association(p_data(1, 3, store_rq(UID)), p_data(1, 0, HALF), pdu(5, bytes(4))),
        (6, ABORTED),
    ),
    "stall in the middle of a PDU": (after_association(struct.pack(">BxI", 4, 5000), bytes(10)), (ABORTED, CLOSED)),
    "stall in the middle of an object": (after_association(p_data(1, 3, store_rq(UID)), p_data(1, 0, HALF)), (ABORTED, CLOSED)),
    "stall in the middle of a command": (after_association(p_data(1, 1, store_rq(UID)[:30])), (ABORTED, CLOSED)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_is_answered_as_it_should_and_the_next_peer_is_served(target: Receiver, name: str) -> None:
    play, allowed = CASES[name]
    with Raw(target.port, timeout=15) as raw:
        said = play(raw)
    assert said in allowed, name
    assert echo(target.port) == 0
    assert target.alive()
    with target.spool() as spool:
        assert [i for i in spool.find(UID) if i.state == "received"] == [], "nothing of it became part of a study"


def test_a_data_set_nested_very_deep_is_kept_as_it_is(target: Receiver) -> None:
    data = dataset("2.25.667", extra=nested(50_000))
    with Raw(target.port) as raw:
        raw.associate()
        assert raw.store("2.25.667", data) == 0
    with target.spool() as spool:
        (kept,) = spool.find("2.25.667")
        assert spool.read(kept)[kept.data_offset :] == data


def test_a_flood_of_connections_and_slow_senders_starve_nobody(target: Receiver) -> None:
    before = target.descriptors()
    crowd = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    try:
        for n in range(3000):
            connection = socket.create_connection(("127.0.0.1", target.port), 10)
            crowd.append(connection)
            if n % 3 == 0:
                connection.sendall(RQ[: n % 60])
        start = time.monotonic()
        assert echo(target.port) == 0
        assert time.monotonic() - start < 3
        with Raw(target.port) as raw:
            raw.associate()
            assert raw.store("2.25.668", dataset("2.25.668")) == 0
    finally:
        for connection in crowd:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    deadline = time.monotonic() + 10
    while target.descriptors() > before + 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert target.descriptors() <= before + 5


def test_a_pdu_that_trickles_in_byte_by_byte_does_not_hold_an_association_for_ever(
    receiver: Callable[..., Receiver],
) -> None:
    one = receiver(stall_timeout_s=0.5)
    with Raw(one.port, timeout=0.1) as raw:
        raw.associate()
        raw.send(struct.pack(">BxI", 4, 5000))
        said, start = None, time.monotonic()
        while said is None:
            assert time.monotonic() - start < 20, "each byte came in time, the PDU never"
            try:
                raw.send(b"\0")
                said = answer(raw)
            except TimeoutError:
                continue
            except OSError:
                said = CLOSED
        assert said in (ABORTED, CLOSED)
        assert time.monotonic() - start > 1, "a slow sender is given time"
    assert echo(one.port) == 0


def test_a_receiver_fed_with_mutated_associations_goes_on(target: Receiver) -> None:
    """Recorded associations with bytes changed, cut, doubled and swapped, for FEDPACS_FUZZ_SECONDS."""
    chance = random.Random(int(os.environ.get("FEDPACS_FUZZ_SEED", "20")))
    good = [
        RQ,
        p_data(3, 3, ECHO_RQ),
        p_data(1, 3, store_rq("2.25.670")),
        p_data(1, 0, dataset("2.25.670", extra=nested(3))[:150]),
        p_data(1, 2, dataset("2.25.670", extra=nested(3))[150:]),
        pdu(5, bytes(4)),
    ]
    deadline, rounds = time.monotonic() + FUZZ_SECONDS, 0
    while time.monotonic() < deadline:
        rounds += 1
        with Raw(target.port, timeout=0.05) as raw:
            raw.send(*mutated(good, chance))
            try:
                while True:
                    raw.read()
            except (TimeoutError, Closed, OSError):
                pass
        if rounds % 25 == 0:
            assert echo(target.port) == 0
    assert echo(target.port) == 0
    assert target.alive()
    assert rounds > FUZZ_SECONDS


def mutated(parts: list[bytes], chance: random.Random) -> list[bytes]:
    out = [bytearray(part) for part in parts]
    for _ in range(chance.randint(1, 4)):
        what, at = chance.choice(("flip", "cut", "double", "swap", "length", "insert")), chance.randrange(len(out))
        part = out[at]
        if what == "flip" and part:
            part[chance.randrange(len(part))] = chance.randrange(256)
        elif what == "cut" and part:
            del part[chance.randrange(len(part)) :]
        elif what == "double":
            out.insert(at, bytearray(part))
        elif what == "swap":
            other = chance.randrange(len(out))
            out[at], out[other] = out[other], out[at]
        elif what == "length" and len(part) >= 6:
            part[2:6] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", chance.randbytes(4)))
        elif what == "insert":
            where = chance.randrange(len(part) + 1)
            part[where:where] = chance.randbytes(chance.randint(1, 40))
    return [bytes(part) for part in out]


def test_refused_objects_leave_no_memory_behind(target: Receiver) -> None:
    half = dataset("2.25.671")[:150]
    refused = storing(half + half + dataset("2.25.671")[150:], uid="2.25.671")
    before = target.rss_mb()
    for _ in range(300):
        with Raw(target.port) as raw:
            status = refused(raw)
            assert isinstance(status, int) and status >= 0xA000
    assert target.rss_mb() < before + 20


def test_afterwards_nothing_has_leaked_and_nothing_stands_outside_the_folder(target: Receiver) -> None:
    assert target.rss_mb() < 150
    assert target.descriptors() < 40
    written = {p.relative_to(target.folder).parts[0] for p in target.folder.rglob("*")}
    assert written == {"spool", "run", "logs", "node.toml", "receiver.log"}
    names = {p.name for p in (target.folder / "spool").iterdir()}
    assert names <= {"segments", "spool.db", "spool.db-wal", "spool.db-shm", "write.lock", "open.lock", "recover.lock"}
    assert not Path("/tmp/evil").exists()
    assert "Traceback" not in target.log()
    assert "Planted" not in target.log()
    assert "PID-1" not in target.log()
