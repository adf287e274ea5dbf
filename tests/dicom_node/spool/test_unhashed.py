"""Digests that are computed after the answer: they come, and meanwhile nobody is told anything wrong about an object."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node.errors import StorageError
from dicom_node.spool import Incoming, Ingest, Outcome, Spool, part10, recover, scan, unhashed
from dicom_node.spool.digest import Digest
from dicom_node.spool.segment import HEADER_SIZE
from dicom_node.spool.slab import SlabPool
from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.wire import CT, EXPLICIT, Raw, dataset

SLABS = SlabPool(1 << 20)


def incoming(uid: str, data: bytes) -> Incoming:
    """An object as the receiver hands it over: in a slab, behind room for its record's head."""
    slab = SLABS.take()
    at = HEADER_SIZE + len(part10.prefix(CT, uid, EXPLICIT, "CT1"))
    held = slab.view[at : at + len(data)]
    held[:] = data
    item = Incoming(scan(held, EXPLICIT), EXPLICIT, "CT1", Digest([held]), len(data), (held,))
    item.slab, item.data_at = slab, at
    return item


def image(uid: str) -> bytes:
    return dataset(uid, pixels=os.urandom(70_000))


def digests(ingest: Ingest) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for uid, digest in ingest.db.execute("SELECT sop_uid, sha256 FROM instances ORDER BY id"):
        found.setdefault(uid, []).append(digest)
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "spool", hash_later=True)


def test_digests_are_owed_and_then_paid(ingest: Ingest) -> None:
    images = {f"2.25.{n}": image(f"2.25.{n}") for n in range(1, 6)}
    assert ingest.commit([incoming(u, d) for u, d in images.items()]) == [Outcome.STORED] * 5
    assert digests(ingest) == {uid: [""] for uid in images}
    with Spool(ingest.root) as spool:  # whoever reads meanwhile gets the bytes, held against their CRC
        row = spool.find("2.25.3")[0]
        assert spool.read(row)[row.data_offset :] == images["2.25.3"]
    while ingest.unhashed:
        ingest.catch_up(0.001)
    assert digests(ingest) == {uid: [sha256(data)] for uid, data in images.items()}


def test_the_same_uid_is_compared_while_its_digest_is_owed(ingest: Ingest) -> None:
    first, other = image("2.25.1"), image("2.25.1")
    assert ingest.commit([incoming("2.25.1", first)]) == [Outcome.STORED]
    assert ingest.commit([incoming("2.25.1", first)]) == [Outcome.DUPLICATE]
    assert ingest.commit([incoming("2.25.1", other)]) == [Outcome.CONFLICT]
    assert digests(ingest) == {"2.25.1": [sha256(first), sha256(other)]}


def test_the_same_uid_twice_in_one_group(ingest: Ingest) -> None:
    first, other = image("2.25.1"), image("2.25.1")
    outcomes = ingest.commit([incoming("2.25.1", data) for data in (first, first, other)])
    assert outcomes == [Outcome.STORED, Outcome.DUPLICATE, Outcome.CONFLICT]
    ingest.catch_up(1)
    assert digests(ingest) == {"2.25.1": [sha256(first), sha256(other)]}


def test_another_process_meets_what_this_one_owes(ingest: Ingest) -> None:
    first, other = image("2.25.1"), image("2.25.1")
    ingest.commit([incoming("2.25.1", first)])
    second = Ingest(ingest.root, hash_later=True)
    assert second.commit([incoming("2.25.1", first), incoming("2.25.1", other)]) == [
        Outcome.DUPLICATE,
        Outcome.CONFLICT,
    ]
    ingest.catch_up(1)  # finds it paid
    assert digests(ingest) == {"2.25.1": [sha256(first), sha256(other)]}


def test_a_recovery_pays_what_a_dead_process_owed(ingest: Ingest) -> None:
    images = {f"2.25.{n}": image(f"2.25.{n}") for n in range(1, 4)}
    ingest.commit([incoming(u, d) for u, d in images.items()])
    root = ingest.root
    ingest.close()  # without catching up
    recover(root)
    with Spool(root) as spool:
        assert {uid: spool.find(uid)[0].sha256 for uid in images} == {u: sha256(d) for u, d in images.items()}


def test_an_object_that_the_disk_spoilt_is_found_and_kept_when_it_comes_again(ingest: Ingest) -> None:
    data = image("2.25.1")
    ingest.commit([incoming("2.25.1", data)])
    with Spool(ingest.root) as spool:
        row = spool.find("2.25.1")[0]
        with open(ingest.segments / row.segment, "r+b") as file:
            file.seek(row.offset + row.data_offset + 5_000)
            file.write(b"spoilt")
        with pytest.raises(StorageError, match="damaged"):
            spool.read(row)
        ingest.catch_up(1)
        assert spool.instance(row.id).sha256 == unhashed.DAMAGED
        with pytest.raises(StorageError, match="damaged"):
            spool.read(row.id)
    assert ingest.commit([incoming("2.25.1", data)]) == [Outcome.CONFLICT]
    assert digests(ingest)["2.25.1"][1] == sha256(data)


def test_what_is_purged_meanwhile_owes_nothing(ingest: Ingest) -> None:
    ingest.commit([incoming("2.25.1", image("2.25.1")), incoming("2.25.2", image("2.25.2"))])
    with Spool(ingest.root) as spool:
        spool.purge(spool.find("2.25.1")[0].study_key)
    ingest.catch_up(1)
    rows = ingest.db.execute("SELECT state, sha256 FROM instances").fetchall()
    assert rows == [("purged", "")] * 2 and not ingest.unhashed


def test_beyond_a_bound_digests_are_computed_before_the_answer(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unhashed, "MOST_BYTES", 100_000)
    images = {f"2.25.{n}": image(f"2.25.{n}") for n in (1, 2)}
    for uid, data in images.items():
        ingest.commit([incoming(uid, data)])
    assert digests(ingest) == {"2.25.1": [""], "2.25.2": [sha256(images["2.25.2"])]}


def test_a_receiver_at_rest_pays_by_itself_and_one_that_stops_pays_first(
    receiver: Callable[..., Receiver],
) -> None:
    one = receiver()
    images = {f"2.25.{n}": image(f"2.25.{n}") for n in range(1, 4)}
    with Raw(one.port) as raw:
        raw.associate()
        for uid in ("2.25.1", "2.25.2"):
            assert raw.store(uid, images[uid]) == 0
        with one.spool() as spool:
            deadline = time.monotonic() + 20
            while any(spool.find(uid)[0].sha256 == "" for uid in ("2.25.1", "2.25.2")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert raw.store("2.25.3", images["2.25.3"]) == 0
    assert one.stop() == [0]
    with one.spool() as spool:
        assert {uid: spool.find(uid)[0].sha256 for uid in images} == {u: sha256(d) for u, d in images.items()}


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE instances SET segment='no such.seg'",
        "UPDATE instances SET segment=x'00ff'",
        "UPDATE instances SET offset='elsewhere'",
        "UPDATE instances SET offset=-5",
        "UPDATE instances SET length=1 << 60",
        "UPDATE instances SET data_offset=1 << 50",
    ],
)
def test_a_row_that_points_nowhere_is_told_damaged_and_stops_nobody(ingest: Ingest, harm: str) -> None:
    data = image("2.25.1")
    ingest.commit([incoming("2.25.1", data)])
    ingest.db.execute(harm)
    assert ingest.commit([incoming("2.25.1", data)]) == [Outcome.CONFLICT]
    assert digests(ingest) == {"2.25.1": [unhashed.DAMAGED, sha256(data)]}
