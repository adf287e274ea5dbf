"""The Conformance Statement says what the code does: it is the text the code writes, and its statuses are really sent."""

from __future__ import annotations

import re
from pathlib import Path

from dicom_node.conformance import statement
from dicom_node.receiver import dimse, sop_classes, transfer

ROOT = Path(__file__).resolve().parents[3]


def test_the_document_is_what_the_code_writes() -> None:
    document = (ROOT / "docs" / "conformance.md").read_text()
    assert document == statement(), "run: python -m dicom_node.conformance > docs/conformance.md"


def test_every_status_a_transfer_can_end_with_is_documented() -> None:
    source = Path(transfer.__file__).read_text()
    used = {
        getattr(dimse, name) for name in re.findall(r"dimse\.([A-Z_]+)\b", source) if name not in ("CLASS", "INSTANCE")
    }
    documented = {int(code, 16) for code in re.findall(r"`(0x[0-9A-F]{4})`", statement())}
    assert used <= documented
    assert used, "the names were found"


def test_every_sop_class_is_listed_by_name() -> None:
    classes = statement().partition("## 3 ")[2].partition("## 4 ")[0]
    rows = re.findall(r"^\| (.+?) \| `([0-9.]+)` \|$", classes, re.MULTILINE)
    assert {uid for _, uid in rows} == sop_classes.STORAGE_CLASSES | set(sop_classes.SERVICES)
    assert [name for name, _ in rows if re.fullmatch(r"[0-9.]+", name)] == []
