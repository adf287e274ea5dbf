"""No text that might identify a patient reaches a log, however it is passed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dicom_node import logs

NAME = "GRÜNEWALD^BÄRBEL"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logs.configure(tmp_path, "receiver")
    return tmp_path


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "receiver.jsonl").read_text(encoding="utf-8").splitlines()]


def test_known_fields_and_numbers_pass_and_unknown_text_does_not(folder: Path) -> None:
    logs.get_logger(process="receiver").info(
        "stored", calling_ae="CT1", instances=3, patient_name=NAME, extra={"PatientID": "4711"}
    )
    (line,) = lines(folder)
    assert (
        line["event"] == "stored" and line["calling_ae"] == "CT1" and line["instances"] == 3 and line["level"] == "info"
    )
    text = (folder / "receiver.jsonl").read_text(encoding="utf-8")
    assert NAME not in text and "4711" not in text and "withheld" in str(line["patient_name"])


def test_an_exception_is_logged_by_type_and_place_only(folder: Path) -> None:
    try:
        raise ValueError(f"bad value {NAME}")
    except ValueError:
        logs.get_logger().error("failed", exc_info=True)
    (line,) = lines(folder)
    assert str(line["error"]).startswith("ValueError at test_logs.py:") and NAME not in json.dumps(
        line, ensure_ascii=False
    )


def test_other_libraries_do_not_write_into_our_files(folder: Path) -> None:
    logging.getLogger("pynetdicom").error("received %s", NAME)
    logging.getLogger().error("received %s", NAME)
    assert not (folder / "receiver.jsonl").exists() or NAME not in (folder / "receiver.jsonl").read_text(
        encoding="utf-8"
    )
