"""The power goes right after an acknowledgement: what had been synced by then holds every object that was acknowledged.

FEDPACS_CUTS sets after how many groups the power is cut (40 by default), each time in two ways.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from dicom_node.spool import Incoming, Ingest, Spool, part10, recover, scan
from dicom_node.spool.digest import Digest
from dicom_node.spool.segment import HEADER_SIZE
from dicom_node.spool.slab import Slab
from tests.dicom_node.receiver.wire import CT, EXPLICIT, dataset
from tests.dicom_node.spool.power import Disk

CUTS = int(os.environ.get("FEDPACS_CUTS", "40"))
Ledger = dict[str, str]  # SOP Instance UID → SHA-256 of the data set


def incoming(ingest: Ingest, uid: str, data: bytes, large: bool) -> Incoming:
    """An object as the receiver hands it over: streamed, in the memory it was received into, or among the small ones."""
    item = Incoming(scan(data, EXPLICIT), EXPLICIT, "MODALITY", Digest([data]), len(data), () if large else (data,))
    head = part10.prefix(CT, uid, EXPLICIT, "MODALITY")
    if large:
        item.placed = ingest.large("MODALITY")
        item.placed.begin(head)
        for at in range(0, len(data), 10_000):
            item.placed.write([data[at : at + 10_000]])
    elif len(data) > 50_000:
        item.slab, item.data_at = Slab(1 << 17), HEADER_SIZE + len(head)
        item.slab.view[item.data_at : item.data_at + len(data)] = data
    return item


def kept(root: Path) -> Ledger:
    """What is visible after a recovery; raises where a visible object is not the one received."""
    recover(root)
    with Spool(root) as spool:
        rows = [spool.instance(i) for (i,) in spool.db.execute("SELECT id FROM instances")]
        for row in rows:
            spool.read(row)
        return {row.sop_uid: row.sha256 for row in rows}


def lost(disk: Disk, root: Path, promised: Ledger, sent: Ledger, chance: random.Random | None) -> int:
    """How many promised objects a cut at this moment takes. Fails where something is visible that nobody sent."""
    disk.cut(root, chance)
    there = kept(root)
    assert there.items() <= sent.items(), "half an object is visible"
    return len(promised.items() - there.items())


def losses(folder: Path, patch: pytest.MonkeyPatch, cuts: int, lies: bool = False) -> list[int]:
    """Objects lost by each cut, one after each group that was acknowledged."""
    chance = random.Random(11)
    ingest = Ingest(folder / "spool", synchronous="NORMAL")
    promised: Ledger = {}
    sent: Ledger = {}
    found: list[int] = []
    with patch.context() as during:
        disk = Disk(ingest.segments, during, lies)
        for group in range(cuts):
            batch = []
            for n in range(chance.randint(1, 4)):
                uid = f"2.25.{group}.{n}"
                data = dataset(uid, pixels=chance.randbytes(chance.choice((50, 5_000, 60_000))))
                sent[uid] = hashlib.sha256(data).hexdigest()
                batch.append(incoming(ingest, uid, data, large=chance.random() < 0.1))
            ingest.commit(batch)
            promised = dict(sent)
            half = dataset(f"2.25.{group}.9", pixels=chance.randbytes(9_000))
            sent[f"2.25.{group}.9"] = hashlib.sha256(half).hexdigest()  # on its way, promised to nobody
            torn = incoming(ingest, f"2.25.{group}.9", half, large=True).placed
            found.append(lost(disk, folder / f"strict{group}", promised, sent, None))
            found.append(lost(disk, folder / f"torn{group}", promised, sent, random.Random(group)))
            assert torn is not None
            torn.abandon()
            del sent[f"2.25.{group}.9"]
    ingest.close()
    return found


def test_a_power_cut_after_any_acknowledgement_takes_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert losses(tmp_path, monkeypatch, CUTS) == [0] * (2 * CUTS)


def test_a_sync_that_is_left_out_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert min(losses(tmp_path, monkeypatch, 3, lies=True)[::2]) > 0
