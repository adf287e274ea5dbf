"""`fedpacs demo` itself: the whole federation in small, its contract, and that it leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pydicom
import pytest

from aggregator_client.demo.processes import fedpacs

SMALL = ["--sites", "2", "--rounds", "1", "--studies", "60"]


def processes_in(folder: Path) -> list[str]:
    """Command lines of live processes that name `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in words:
                found.append(words)
    return found


def await_none(folder: Path, seconds: float = 10.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    return processes_in(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_demo_keeps_its_contract_twice_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for _ in range(2):
        argv = fedpacs("demo", "--out", out, *SMALL, "--json")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=580, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        check_contract(found)
        assert Path(found["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
        assert await_none(out) == []
    check_the_wall(out)


def check_contract(found: dict) -> None:  # type: ignore[type-arg]
    assert [site["name"] for site in found["sites"]] == ["Lindenau", "St Brendan"]
    for site in found["sites"]:
        assert site["received"] == site["deidentified"] >= 60 and site["used"] > 20
        assert site["bytes_out"] > 10_000
    assert set(found["algorithms"]) == {"local", "fedavg", "cds"}
    for name, one in found["algorithms"].items():
        assert 0 <= one["auc"] <= 1 and set(one["per_site"]) == {"Lindenau", "St Brendan"}, name
    assert found["algorithms"]["fedavg"]["bytes"] == sum(site["bytes_out"] for site in found["sites"])
    assert found["algorithms"]["fedavg"]["rounds"] == 1
    assert found["algorithms"]["local"]["bytes"] == 0


OF_THE_HOSPITAL = ("modality", "pacs-studies", "labels.csv", "orthanc/storage")
OF_THE_NODE = ("node/spool", "node/quarantine", "node/vault")  # left of the wall


def check_the_wall(out: Path) -> None:
    """No value that identifies a patient stands in any log, database, image, message or model right of the wall."""
    sites = [path.parent for path in out.glob("*/modality")]
    values = set().union(*(identifying(site / "modality") for site in sites))
    assert len(values) > 300
    patterns = out.with_name("patterns")
    patterns.write_bytes(b"\n".join(form for value in values for form in spellings(value)))
    left = {site / part for site in sites for part in OF_THE_HOSPITAL + OF_THE_NODE} | {
        out / "report.html"
    }  # it shows an invented patient
    right = [path for path in out.rglob("*") if path.is_file() and not left & {path, *path.parents}]
    assert {"trainer.log", "catalogue.db", "audit.db", "coordinator.log"} <= {path.name for path in right}
    assert sum(path.suffix == ".dcm" for path in right) >= 120
    segments = list((sites[0] / "node" / "spool").rglob("*.seg"))
    assert segments and holding(patterns, segments) == segments, "the search finds what stands left of the wall"
    assert holding(patterns, right) == []


def holding(patterns: Path, files: list[Path]) -> list[Path]:
    """Those of `files` that hold one of the byte strings, which stand one a line in `patterns`."""
    grep = ["grep", "--text", "--fixed-strings", "--files-with-matches", "--file", patterns, "--", *files]
    found = subprocess.run(grep, capture_output=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    assert found.returncode in (0, 1), found.stderr
    return [Path(os.fsdecode(line)) for line in found.stdout.splitlines()]


def identifying(folder: Path) -> set[str]:
    """Names, identifiers and UIDs of the sent images, long enough not to be found by chance."""
    found: set[str] = set()
    for file in folder.glob("*.dcm"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        found |= {str(header.PatientID), str(header.AccessionNumber), header.StudyInstanceUID, header.SOPInstanceUID}
        found |= {word for word in re.split(r"[\^= ]", str(header.PatientName)) if len(word.encode()) > 5}
    return found


def spellings(value: str) -> set[bytes]:
    """The bytes of a value in the character sets the demo's scanners and our files are written in."""
    found = {value.encode("unicode_escape"), json.dumps(value)[1:-1].encode()}
    for charset in ("utf-8", "latin-1", "iso8859-5", "iso2022_jp"):
        with contextlib.suppress(UnicodeEncodeError):  # a charset that cannot write it cannot hold it
            found.add(value.encode(charset))
    return {form for form in found if len(form) > 5}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("step", ["starting the nodes", "the federation trains"])
def test_ctrl_c_at_any_step_leaves_no_process(tmp_path: Path, step: str) -> None:
    out, log = tmp_path / "demo", tmp_path / "stderr.txt"
    with log.open("w") as err:
        child = subprocess.Popen(fedpacs("demo", "--out", out, *SMALL), stdout=subprocess.DEVNULL, stderr=err)
    try:
        deadline = time.monotonic() + 300
        while step not in log.read_text(encoding="utf-8"):
            assert child.poll() is None, log.read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() < deadline, f"never came to: {step}"
            time.sleep(0.1)
        while len(processes_in(out)) < 4:
            assert time.monotonic() < deadline, "its processes never came"
            time.sleep(0.2)
        time.sleep(1.0)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 130
        assert await_none(out) == []
        assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        child.kill()  # its children die with it
        child.wait()


def test_a_folder_with_other_files_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    argv = fedpacs("demo", "--out", tmp_path)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1 and "not a demo's" in done.stderr
    assert (tmp_path / "thesis.txt").exists()


def test_help_says_what_it_does() -> None:
    done = subprocess.run(fedpacs("demo", "--help"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    for words in ("--out", "--sites", "--rounds", "--json", "invented"):
        assert words in done.stdout
