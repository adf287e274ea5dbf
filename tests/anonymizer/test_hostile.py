"""Bad input: each file gets its line, nothing crashes or hangs, and no partial output is left."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from anonymizer import Deidentifier, load_profile
from anonymizer.cli import deid
from anonymizer.walk import MAX_INFLATED, inflate
from tests.anonymizer.corpus.generate import base, encoded
from tests.anonymizer.corpus.people import PEOPLE

KEY = bytes(range(32))
GOOD = encoded(base(PEOPLE[0], 1))
META = GOOD[:132] + GOOD[132 : 132 + 12 + struct.unpack("<I", GOOD[140:144])[0]]


def nested(depth: int) -> bytes:
    opening = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return META + opening * depth + closing * depth


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("image.dcm", GOOD)
    return out.getvalue()


HOSTILE = {
    "empty": b"",
    "short": b"DICM",
    "prefix only": bytes(128) + b"DICM",
    "garbage": bytes((i * 7919 >> 3) & 255 for i in range(4096)),
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "pdf": b"%PDF-1.7\n" + b"x" * 2000,
    "zip": zipped(),
    "cut in the meta": GOOD[:200],
    "cut in the data set": GOOD[:900],
    "cut in the pixels": GOOD[:-100],
    "4000 deep": nested(4000),
    "length lies": META + struct.pack("<HH2sH", 0x10, 0x10, b"PN", 0xFFF0) + b"Doe^John",
    "long length lies": META + struct.pack("<HH2sHI", 0x8, 0x1140, b"SQ", 0, 0x7FFFFFFF) + b"x" * 50,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_input_is_rejected_in_a_sentence_and_in_time(name: str) -> None:
    started = time.monotonic()
    outcome = Deidentifier(load_profile("federated-default"), KEY).deidentify(HOSTILE[name])
    assert outcome.status in ("rejected", "quarantined")
    assert outcome.reason.endswith(".") or outcome.reason
    assert outcome.output is None
    assert "Doe" not in outcome.reason
    assert time.monotonic() - started < 10


def test_a_hundred_deep_is_followed_and_cleaned() -> None:
    outcome = Deidentifier(load_profile("federated-default"), KEY).deidentify(nested(90))
    assert outcome.status == "ok"


def test_a_deflate_bomb_is_bounded() -> None:
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(engine.compress(bytes(1 << 20)) for _ in range((MAX_INFLATED >> 20) + 8)) + engine.flush()
    with pytest.raises(Exception, match="larger than"):
        inflate(bomb, 1 << 20)


def test_every_cut_of_a_good_file_is_handled() -> None:
    deid = Deidentifier(load_profile("federated-default"), KEY)
    for end in range(0, len(GOOD) - 8200, 7):
        outcome = deid.deidentify(GOOD[:end])
        assert outcome.output is None or b"Quennell" not in outcome.output


def test_every_flipped_byte_of_the_header_is_handled() -> None:
    deid = Deidentifier(load_profile("basic"), KEY)
    for at in range(132, len(GOOD) - 8200, 3):
        data = bytearray(GOOD)
        data[at] ^= 0xFF
        outcome = deid.deidentify(bytes(data))
        assert outcome.status in ("ok", "rejected", "quarantined")


def test_the_command_accounts_for_each_file_and_goes_on(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(deid)
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    for index, (_, data) in enumerate(HOSTILE.items()):
        (source / f"bad{index}.dcm").write_bytes(data)
    (source / "sub" / "good.dcm").write_bytes(GOOD)
    (source / "good.dcm").write_bytes(GOOD)
    report = tmp_path / "report.jsonl"
    result = CliRunner().invoke(app, [
        str(source), "--out", str(out), "--report", str(report), "--workers", "2", "--json",
    ])  # fmt: skip
    assert result.exit_code == 10, result.output
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(lines) == len(HOSTILE) + 2
    assert {line["source"] for line in lines} == {str(p) for p in source.rglob("*.dcm")}
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert written == ["good.dcm", "sub/good.dcm"]
    text = report.read_text()
    assert not any(word in text for word in ("Quennell", "Tabitha", PEOPLE[0].pid, PEOPLE[0].accession, "Brannoc"))
