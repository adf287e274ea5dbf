"""An object beyond 4 GiB, which no 32-bit length can tell of, arrives whole. FEDPACS_LARGE_OBJECT=1 runs it (half a minute)."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.dicom_node.receiver.conftest import Receiver
from tests.dicom_node.receiver.wire import CT, Raw, context, dataset, p_data, store_rq

BASELINE = "1.2.840.10008.1.2.4.50"
FRAME, FRAMES = 64 << 20, 66


def item(element: int, length: int) -> bytes:
    return struct.pack("<HHI", 0xFFFE, element, length)


def pieces() -> Iterator[bytes]:
    """A data set with encapsulated pixel data of FRAMES frames, as it is sent."""
    block = os.urandom(120_000)
    yield dataset("2.25.100", pixels=b"")[:-4] + b"\xff" * 4 + item(0xE000, 0)
    for _ in range(FRAMES):
        yield item(0xE000, FRAME)
        for at in range(0, FRAME, len(block)):
            yield block[: FRAME - at]
    yield item(0xE0DD, 0)


@pytest.mark.skipif(not os.environ.get("FEDPACS_LARGE_OBJECT"), reason="set FEDPACS_LARGE_OBJECT=1: it writes 4.1 GiB")
def test_an_object_beyond_4_gib_is_kept_whole_in_little_memory(receiver: Callable[..., Receiver]) -> None:
    one, digest, size = receiver(), hashlib.sha256(), 0
    with Raw(one.port, timeout=120) as raw:
        raw.associate(context(1, CT, BASELINE))
        raw.send(p_data(1, 3, store_rq("2.25.100")))
        for piece in pieces():
            digest.update(piece)
            size += len(piece)
            raw.send(p_data(1, 0, piece))
        raw.send(p_data(1, 2, b""))
        assert raw.status() == 0
    with one.spool() as spool:
        (kept,) = spool.find("2.25.100")
    assert (kept.state, kept.sha256) == ("received", digest.hexdigest())
    assert kept.length - kept.data_offset == size > 4 << 30
    assert one.rss_mb() < 150
