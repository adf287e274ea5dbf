"""The Orthanc reader against a real Orthanc: every stable study once, whatever is killed, restored or cleared."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dicom_node.errors import ConfigError, InputError, StorageError, UnreachableError
from dicom_node.orthanc_reader.client import OrthancClient, OrthancInstance
from dicom_node.orthanc_reader.ledger import Ledger
from dicom_node.orthanc_reader.reader import Reader
from tests.interop.orthanc_process import MISSING, PASSWORD, USER, Orthanc
from tests.interop.studies import ct_instance, planted

pytestmark = [pytest.mark.interop, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
ROOT = Path(__file__).resolve().parents[2]
QUIET = 1.0
# FEDPACS_LONG=1: hundreds of kills and 10,000 instances in place of ten and 500
LONG = os.environ.get("FEDPACS_LONG") == "1"


class Sink:
    """Stands for the spool: counts what it is given."""

    def __init__(self) -> None:
        self.added: Counter[str] = Counter()

    def add_files(self, files: Sequence[bytes], *, source: str) -> object:
        self.added.update(hashlib.sha256(data).hexdigest() for data in files)
        return None

    def expect(self, study_key: str, instances: int) -> None:
        pass


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    # no plugin: what is read must not depend on it
    pacs = Orthanc(tmp_path / "orthanc", script=None).start()
    yield pacs
    pacs.kill()


@pytest.fixture
def reader(orthanc: Orthanc, tmp_path: Path) -> Iterator[Reader]:
    client = OrthancClient(orthanc.url, USER, PASSWORD)
    ledger = Ledger(tmp_path / "orthanc.db", orthanc.url)
    yield Reader(client, ledger, Sink(), quiet_seconds=QUIET)
    client.close()
    ledger.close()


def store(pacs: Orthanc, study: int, *numbers: int, size: int = 16) -> list[str]:
    digests = []
    with pacs.client() as client:
        for number in numbers:
            data = ct_instance(planted(study), number, size)
            assert client.post("/instances", content=data).json()["Status"] in ("Success", "AlreadyStored")
            digests.append(hashlib.sha256(data).hexdigest())
    return digests


def follow(reader: Reader, done: Callable[[], bool], seconds: float = 15) -> int:
    deadline, handed = time.monotonic() + seconds, 0
    while not done():
        assert time.monotonic() < deadline, (reader.ledger.counts(), reader.ledger.last_error())
        try:
            handed += reader.step()
        except UnreachableError:
            pass
        time.sleep(0.1)
    return handed


def sink(reader: Reader) -> Counter[str]:
    assert isinstance(reader.spool, Sink)
    return reader.spool.added


def idle(reader: Reader) -> bool:
    return reader.ledger.counts()["waiting"] == 0 and reader.ledger.counts()["handed_over"] > 0


def test_each_instance_arrives_once_with_its_bytes_after_the_study_is_quiet(orthanc: Orthanc, reader: Reader) -> None:
    sent = store(orthanc, 1, 1, 2, 3) + store(orthanc, 2, 1)
    reader.step()
    assert not sink(reader), "not while the study may still grow"
    assert follow(reader, lambda: idle(reader)) == 2
    assert sink(reader) == Counter(sent)
    reader.scan_needed = True
    reader.step()
    assert sink(reader) == Counter(sent), "a full scan repeats nothing"


def test_late_instances_reopen_the_study_and_only_they_are_pulled(orthanc: Orthanc, reader: Reader) -> None:
    first = store(orthanc, 1, 1, 2)
    follow(reader, lambda: idle(reader))
    late = store(orthanc, 1, 3)
    assert follow(reader, lambda: len(sink(reader)) == 3 and idle(reader)) == 1
    assert sink(reader) == Counter(first + late)


def test_an_overwritten_instance_is_pulled_again_and_its_study_handed_over_anew(tmp_path: Path) -> None:
    pacs = Orthanc(tmp_path / "orthanc", {"OverwriteInstances": True}, script=None).start()
    client = OrthancClient(pacs.url, USER, PASSWORD)
    reader = Reader(client, Ledger(tmp_path / "orthanc.db", pacs.url), Sink(), quiet_seconds=QUIET)
    try:
        first = store(pacs, 1, 1, 2)
        follow(reader, lambda: idle(reader))
        changed = store(pacs, 1, 2, size=32)
        assert follow(reader, lambda: changed[0] in sink(reader) and idle(reader)) == 1
        assert sink(reader) == Counter(first + changed), "the other one is not pulled twice"
    finally:
        client.close()
        pacs.kill()


def test_outside_the_hours_nothing_is_taken_and_the_rate_is_kept(orthanc: Orthanc, reader: Reader) -> None:
    sent = store(orthanc, 1, 1, 2, 3, 4, size=256)
    offer = {"Modalities": [], "BodyParts": [], "CallingAets": [], "Labels": [], "Metadata": {}}
    rules = {"problems": [], "offer": {**offer, "MinAgeDays": 0, "MaxAgeDays": 0}, "megabytes_per_second": 0.2}
    now = datetime.now()
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    reader.ledger.keep_rules(json.dumps({**rules, "hours": [closed]}))
    shut = Reader(reader.client, reader.ledger, reader.spool, quiet_seconds=QUIET)
    deadline = time.monotonic() + QUIET + 2
    while time.monotonic() < deadline:
        assert shut.step() == 0
        time.sleep(0.1)
    assert not sink(shut) and shut.ledger.counts()["waiting"] == 1, "seen, and left until the hour comes"
    reader.ledger.keep_rules(
        json.dumps({**rules, "hours": [f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"]})
    )
    slow = Reader(reader.client, reader.ledger, reader.spool, quiet_seconds=QUIET)
    started = time.monotonic()
    follow(slow, lambda: idle(slow), 60)
    assert sink(slow) == Counter(sent)
    assert time.monotonic() - started >= 4 * 131_072 / 0.2e6 * 0.9, "half a megabyte at 0.2 MB/s"


def test_a_study_of_which_the_spool_has_all_is_closed_without_a_download(orthanc: Orthanc, reader: Reader) -> None:
    sent = store(orthanc, 1, 1, 2)
    follow(reader, lambda: idle(reader))
    reader.ledger.mark([orthanc.client().get("/studies").json()[0]])  # a hint, or a kill before the study was closed
    follow(reader, lambda: idle(reader))
    assert sink(reader) == Counter(sent)


def test_a_late_instance_is_found_when_orthanc_restarts_before_it_calls_the_study_stable(
    orthanc: Orthanc, reader: Reader
) -> None:
    first = store(orthanc, 1, 1)
    follow(reader, lambda: idle(reader))
    late = store(orthanc, 1, 2)
    orthanc.kill()
    orthanc.start()
    follow(reader, lambda: len(sink(reader)) == 2 and idle(reader))
    assert sink(reader) == Counter(first + late)


def test_a_cleared_log_loses_nothing(orthanc: Orthanc, reader: Reader) -> None:
    store(orthanc, 1, 1)
    follow(reader, lambda: idle(reader))
    store(orthanc, 2, 1)
    with orthanc.client() as client:
        assert client.delete("/changes").status_code == 200
    follow(reader, lambda: len(sink(reader)) == 2 and idle(reader))
    assert max(sink(reader).values()) == 1


def test_another_database_behind_the_same_url_is_noticed(orthanc: Orthanc, reader: Reader) -> None:
    store(orthanc, 1, 1, 2, 3, 4)
    follow(reader, lambda: idle(reader))
    orthanc.kill()
    (orthanc.folder / "db").rename(orthanc.folder / "old")
    orthanc.start()
    other = store(orthanc, 5, 1)
    follow(reader, lambda: other[0] in sink(reader) and idle(reader))
    assert reader.ledger.counts()["gone"] == 1


def test_a_deleted_study_is_noticed_and_holds_up_nothing(orthanc: Orthanc, reader: Reader) -> None:
    store(orthanc, 1, 1)
    reader.step()
    with orthanc.client() as client:
        client.delete(f"/studies/{client.get('/studies').json()[0]}")
    other = store(orthanc, 2, 1)
    follow(reader, lambda: other[0] in sink(reader))
    assert sink(reader) == Counter(other)


def tried(reader: Reader, study: str) -> bool:
    row = reader.ledger.get(study)
    return row is not None and row.attempts >= 1


def test_a_file_that_is_not_what_orthanc_promised_is_not_taken_and_others_go_on(
    orthanc: Orthanc, reader: Reader
) -> None:
    store(orthanc, 1, 1)
    good = store(orthanc, 2, 1)
    with orthanc.client() as client:
        study = next(
            s for s in client.get("/studies?expand").json() if s["MainDicomTags"]["StudyInstanceUID"][-2:] == ".1"
        )
        instance = client.get(f"/studies/{study['ID']}/instances").json()[0]
    stored = next((orthanc.folder / "db").rglob(instance["FileUuid"]))
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1  # one bit rots on Orthanc's disk
    stored.write_bytes(data)
    orthanc.kill()  # it keeps what was stored lately in memory
    orthanc.start()
    follow(reader, lambda: good[0] in sink(reader) and tried(reader, study["ID"]))
    assert sink(reader) == Counter(good)
    row = reader.ledger.get(study["ID"])
    assert row and row.dirty and "MD5" in row.reason


def test_wrong_credentials_are_told_in_one_sentence(orthanc: Orthanc) -> None:
    client = OrthancClient(orthanc.url, USER, "wrong")
    with pytest.raises(ConfigError, match="password_file"):
        client.version()
    with pytest.raises(UnreachableError, match="does not answer"):
        OrthancClient("http://127.0.0.1:9").version()


def test_what_an_offer_is_decided_by_is_read_from_orthanc(orthanc: Orthanc, reader: Reader) -> None:
    store(orthanc, 1, 1)
    with orthanc.client() as client:
        study = client.get("/studies").json()[0]
        assert client.put(f"/studies/{study}/metadata/1024", content=b"yes").status_code == 200
    traits = reader.client.traits(study)
    assert (traits.modalities, traits.body_parts) == ({"CT"}, {"CHEST"})
    assert (traits.metadata["1024"], traits.study_date) == ("yes", planted(1).study_date)
    assert reader.client.rules() is None, "there is no plugin in this one"
    assert reader.client.find_study(planted(1).study_uid, planted(1).patient_id) == study
    assert reader.client.find_study(planted(1).study_uid, "another") is None


def test_an_instance_listed_is_one_the_sink_had_first(orthanc: Orthanc, reader: Reader) -> None:
    class Full(Sink):
        def add_files(self, files: Sequence[bytes], *, source: str) -> object:
            raise StorageError("disk full")

    store(orthanc, 1, 1)
    reader.spool = Full()
    with pytest.raises(StorageError):
        follow(reader, lambda: False, 10)
    assert reader.ledger.counts() == {"waiting": 1, "handed_over": 0, "withheld": 0, "gone": 0, "instances": 0}
    assert not reader.ledger.has(OrthancInstance("x", "y", 1))


def test_one_file_that_is_not_dicom_does_not_take_the_others_with_it(orthanc: Orthanc, reader: Reader) -> None:
    sent = store(orthanc, 1, 1, 2, 3)

    class Picky(Sink):
        def add_files(self, files: Sequence[bytes], *, source: str) -> object:
            if sent[1] in {hashlib.sha256(data).hexdigest() for data in files}:
                raise InputError("A file cannot be kept; send it again.")
            return super().add_files(files, source=source)

    reader.spool = Picky()
    follow(reader, lambda: idle(reader))
    assert sink(reader) == Counter([sent[0], sent[2]])
    assert reader.refused == 1 and "cannot be kept" in reader.ledger.last_error()


READER = """
    import hashlib, os, sys, time
    from pathlib import Path
    from dicom_node.errors import NodeError
    from dicom_node.orthanc_reader.client import OrthancClient
    from dicom_node.orthanc_reader.ledger import Ledger
    from dicom_node.orthanc_reader.reader import Reader
    url, folder = sys.argv[1], Path(sys.argv[2])
    class Sink:  # one file a digest, like the spool: a second copy is the same copy
        def add_files(self, files, *, source):
            for data in files: (folder / "sink" / hashlib.sha256(data).hexdigest()).write_bytes(data)
        def expect(self, study_key, instances): pass
    def told(instances, fresh):
        with open(folder / "handed", "a") as f: f.write(f"{int(fresh)}\\n")
    client = OrthancClient(url, "alice", "alice-password")
    reader = Reader(client, Ledger(folder / "orthanc.db", url), Sink(), quiet_seconds=1.0, on_handover=told)
    while True:
        try: reader.step()
        except NodeError: pass
        time.sleep(0.05)
"""


def test_many_instances_arrive_once_though_the_node_is_away_half_of_the_time(orthanc: Orthanc, reader: Reader) -> None:
    studies, each = (100, 100) if LONG else (10, 50)
    sent: list[str] = []
    for study in range(studies // 2):
        sent += store(orthanc, study, *range(1, each + 1))
    follow(reader, lambda: idle(reader), 600)
    for study in range(studies // 2, studies):  # nobody reads meanwhile, and then the log is gone
        sent += store(orthanc, study, *range(1, each + 1))
    with orthanc.client() as client:
        client.delete("/changes")
    follow(reader, lambda: reader.ledger.counts()["handed_over"] == studies and idle(reader), 600)
    assert sink(reader) == Counter(sent) and len(sent) == studies * each


@pytest.mark.timeout(7200 if LONG else 300)
def test_nothing_is_lost_or_repeated_under_kill_9_of_both(orthanc: Orthanc, tmp_path: Path) -> None:
    chance, studies = random.Random(11), 600 if LONG else 18
    (tmp_path / "sink").mkdir()
    sent: list[str] = []

    def spawn() -> subprocess.Popen[bytes]:
        code = textwrap.dedent(READER)
        return subprocess.Popen([sys.executable, "-c", code, orthanc.url, str(tmp_path)], cwd=ROOT)

    process, killed = spawn(), Counter[str]()
    try:
        for study in range(studies):
            sent += store(orthanc, study, *range(1, 4))
            time.sleep(chance.uniform(0, 0.4))
            if study % 3 == 1:
                process.send_signal(signal.SIGKILL)
                process.wait()
                process, killed["reader"] = spawn(), killed["reader"] + 1
            if study % 5 == 2:
                orthanc.kill()
                orthanc.start()
                killed["orthanc"] += 1
        deadline = time.monotonic() + (600 if LONG else 90)
        ledger = Ledger(tmp_path / "orthanc.db", orthanc.url)
        while ledger.counts()["handed_over"] < studies or ledger.counts()["waiting"]:
            assert time.monotonic() < deadline, ledger.counts()
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert killed["reader"] == studies // 3 and killed["orthanc"] == (studies + 2) // 5
    assert sorted(p.name for p in (tmp_path / "sink").iterdir()) == sorted(sent)
    rows: Any = ledger._db.execute("SELECT orthanc_id, count(*) FROM handover GROUP BY 1").fetchall()
    assert len(rows) == studies and all(count == 1 for _, count in rows), "each study was handed over once"
