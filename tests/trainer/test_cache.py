"""The tensor cache: hits without decoding, survives damage, crashes and concurrency, forgets on request."""

from __future__ import annotations

import errno
import json
import multiprocessing
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trainer.errors import CacheError, PixelError
from trainer.pixels.cache import TensorCache, Wanted
from trainer.pixels.prepare import Preparation
from trainer.pixels.volume_cache import VolumeCache

PREPARATION = Preparation(size=8)


def wanted(names: list[str], source: str = "s", made: list[str] | None = None) -> list[Wanted]:
    def maker(name: str):
        def make() -> np.ndarray:
            if made is not None:
                made.append(name)
            if name.startswith("bad"):
                raise PixelError(f"instance {name} cannot be decoded (x); send it again")
            return np.full((1, 8, 8), float(name[1:]), np.float32)

        return make

    return [Wanted(name, source, maker(name)) for name in names]


def test_the_second_time_nothing_is_made_and_values_are_the_same(tmp_path: Path) -> None:
    made: list[str] = []
    first = TensorCache(tmp_path, PREPARATION).fill(wanted(["i1", "i2", "i3"], made=made), threads=2)
    assert first.made == 3 and [first.images[r].mean() for r in first.rows] == [1, 2, 3]
    again = TensorCache(tmp_path, PREPARATION).fill(wanted(["i3", "i1", "i4"], made=made))
    assert again.made == 1 and [again.images[r].mean() for r in again.rows] == [3, 1, 4]
    assert sorted(made) == ["i1", "i2", "i3", "i4"] and isinstance(again.images, np.memmap)


def test_another_source_or_preparation_is_made_anew(tmp_path: Path) -> None:
    made: list[str] = []
    cache = TensorCache(tmp_path, PREPARATION)
    cache.fill(wanted(["i1"], "old", made))
    cache.fill(wanted(["i1"], "new", made))
    assert len(made) == 2 and TensorCache(tmp_path, Preparation(size=16)).folder != cache.folder


@pytest.mark.parametrize("damage", ["flip", "cut data", "torn line", "garbage line", "lost index"])
def test_damage_only_costs_making_the_image_again(tmp_path: Path, damage: str) -> None:
    cache = TensorCache(tmp_path, PREPARATION)
    cache.fill(wanted(["i1", "i2"]))
    data, index = cache.data.read_bytes(), cache.index.read_text()
    if damage == "flip":
        cache.data.write_bytes(data[:130] + bytes([data[130] ^ 1]) + data[131:])
    elif damage == "cut data":
        cache.data.write_bytes(data[:-5])
    elif damage == "torn line":
        cache.index.write_text(index[:-20])
    elif damage == "garbage line":
        cache.index.write_text("null\n[1]\n{}\n" + index)
    else:
        cache.index.unlink()
    made: list[str] = []
    got = cache.fill(wanted(["i1", "i2", "i5"], made=made))
    assert [got.images[r].mean() for r in got.rows] == [1, 2, 5]
    assert made == {"garbage line": ["i5"], "lost index": ["i1", "i2", "i5"]}.get(damage, ["i2", "i5"])


def test_what_cannot_be_decoded_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    got = TensorCache(tmp_path, PREPARATION).fill(wanted(["i1", "bad2", "i3"]), threads=2)
    assert got.rows.tolist()[1] == -1 and got.failures == {"bad2": "instance bad2 cannot be decoded (x); send it again"}
    assert [got.images[r].mean() for r in got.rows[[0, 2]]] == [1, 3]


def test_an_image_that_is_not_finite_is_set_aside(tmp_path: Path) -> None:
    got = TensorCache(tmp_path, PREPARATION).fill([Wanted("i1", "s", lambda: np.full((1, 8, 8), np.nan))])
    assert got.rows.tolist() == [-1] and "no finite image" in got.failures["i1"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TensorCache(tmp_path, PREPARATION)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match="the disk is full while caching"):
        cache.fill(wanted(["i1"]))
    monkeypatch.undo()
    assert cache.fill(wanted(["i1"])).images[0].mean() == 1


def test_forgetting_overwrites_the_pixels(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, PREPARATION)
    cache.fill(wanted(["i1", "i2"]))
    assert cache.forget({"i1", "unknown"}) == 1
    assert "i1" not in {json.loads(line)["key"] for line in cache.index.read_text().split("\n") if line}
    assert np.frombuffer(cache.data.read_bytes(), np.float16).reshape(2, 64)[0].sum() == 0
    made: list[str] = []
    cache.fill(wanted(["i2"], made=made))
    assert made == []


def _fill(root: str) -> None:
    TensorCache(Path(root), PREPARATION).fill(wanted([f"i{n}" for n in range(300)]))


def test_processes_share_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    cache = TensorCache(tmp_path, PREPARATION)
    assert cache.data.stat().st_size == 300 * cache.row_bytes
    got = cache.fill(wanted([f"i{n}" for n in range(300)]))
    assert got.made == 0 and [int(got.images[r].mean()) for r in got.rows] == list(range(300))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_truly_full_disk_is_one_sentence_and_what_fitted_stays(small_disk: Path) -> None:
    few = TensorCache(small_disk, PREPARATION)
    count = 600_000 // few.row_bytes
    keys = [f"i{n}" for n in range(1, count)]
    with pytest.raises(CacheError, match="the disk is full while caching"):
        few.fill(wanted(keys))
    made: list[str] = []
    kept = few.fill(wanted(["i1", "i200"], made=made))
    assert made == [] and [kept.images[row].mean() for row in kept.rows] == [1, 200]


def test_a_full_disk_leaves_no_half_volume(small_disk: Path) -> None:
    def make(side: int) -> np.ndarray:
        return np.ones((2, side, side, side), np.float16)

    cache = VolumeCache(small_disk, "d")
    whole, large = Wanted("2.25.1", "s", lambda: make(16)), Wanted("2.25.2", "s", lambda: make(60))
    with pytest.raises(CacheError, match="the disk is full while caching"):
        cache.fill([whole, large])
    assert not list(small_disk.rglob("*.part"))
    kept, failures = cache.fill([whole])
    assert failures == {} and kept[0] is not None and kept[0].open().shape == (2, 16, 16, 16)
