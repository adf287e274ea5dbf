"""Every kind of audit record shows when it is tampered with, and reaches a repository as a valid DICOM audit message, once."""

from __future__ import annotations

import ast
import hashlib
import json
import socket
import sqlite3
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from dicom_node import audit_checkpoint, audit_export
from dicom_node.audit import GENESIS, AuditLog, link
from dicom_node.audit_export import PositionFile, Receiver, to_folder, to_syslog
from dicom_node.audit_message import EVENTS, audit_message, event_of, record_of
from dicom_node.cli import run as fedpacs
from dicom_node.errors import IntegrityError, UnreachableError
from dicom_node.setup import write_default_config

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.aggregator_client.wires import self_signed

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("audit-message.rng"))))
NAMES = ("append", "audit", "_audit", "note")


def kinds_in_the_source() -> list[str]:
    """Every kind of record this program writes, as its own source names them."""
    found = set()
    for file in [*ROOT.glob("dicom_node/**/*.py"), *ROOT.glob("aggregator_client/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in NAMES:
                inside = [part for argument in node.args[:2] for part in ast.walk(argument)]
                literal = [a.value for a in inside if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                found |= {text for text in literal if text == "egress" or ("." in text and " " not in text)}
    return sorted(found | {audit_checkpoint.KIND, "login.refused", "run.start"})


KINDS = kinds_in_the_source()
FACTS: dict[str, Any] = {
    "by": 'Dr. Größe <&"> \x07',
    "study": "2.25.77",
    "patient": "ab" * 16,
    "project": "cd" * 32,
    "recipient": "University",
    "bytes": 1234,
    "privacy": {"mode": "sealed", "noise": None},
    "roster": ["Nord", "Süd"],
}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with closing(AuditLog(tmp_path / "audit.db")) as made:
        for kind in KINDS:
            made.append(kind, **FACTS) if kind != audit_checkpoint.KIND else audit_checkpoint.sign_checkpoint(
                made, tmp_path / "keys"
            )
        yield made


def _edit(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for verb in ("update", "delete"):
            db.execute(f"DROP TRIGGER IF EXISTS records_no_{verb}")
        db.execute(statement, values)


def test_the_list_of_kinds_is_the_whole_one() -> None:
    for kind in ("egress", "node.started", "patient.optout", "round.trained", "keys.replaced", "study.deidentified"):
        assert kind in KINDS
    assert len(KINDS) > 25


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_to_any_kind_of_record_is_found_at_that_record(log: AuditLog, tmp_path: Path, kind: str) -> None:
    record = next(log.records(kind))
    changes = {
        "at": record.at + 1,
        "kind": "study.excluded" if kind != "study.excluded" else "egress",
        "facts": json.dumps({**record.facts, "by": "somebody else"}),
        "prev": "0" * 64 if record.seq > 1 else "1" * 64,
        "hash": hashlib.sha256(record.hash.encode()).hexdigest(),
        "seq": 10_000,
    }
    for column, value in changes.items():
        before = getattr(record, column) if column != "facts" else json.dumps(record.facts, sort_keys=True)
        _edit(log.path, f"UPDATE records SET {column} = ? WHERE seq = ?", value, record.seq)
        verdict = log.verify()
        assert not verdict.ok and verdict.first_broken == record.seq, (kind, column)
        _edit(log.path, f"UPDATE records SET {column} = ? WHERE hash IN (?, ?)", before, record.hash, changes["hash"])
        assert log.verify().ok
    _edit(log.path, "DELETE FROM records WHERE seq = ?", record.seq)
    assert log.verify().first_broken == record.seq


def _rewrite(path: Path, forget: str) -> None:
    """What somebody with the database alone can do: leave a record out and make every hash fit again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        rows = [row for row in db.execute("SELECT at, kind, facts FROM records ORDER BY seq") if row[1] != forget]
        for verb in ("update", "delete"):
            db.execute(f"DROP TRIGGER IF EXISTS records_no_{verb}")
        db.execute("DELETE FROM records")
        prev, seq = GENESIS, 0
        for seq, (at, kind, facts) in enumerate(rows, 1):
            digest = link(prev, seq, at, kind, json.loads(facts))
            db.execute("INSERT INTO records VALUES(?, ?, ?, ?, ?, ?)", (seq, at, kind, facts, prev, digest))
            prev = digest
        db.execute("UPDATE head SET seq = ?, hash = ?", (seq, prev))


def test_a_rewritten_log_shows_by_its_checkpoints(log: AuditLog, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    record = audit_checkpoint.sign_checkpoint(log, keys)
    assert audit_checkpoint.verify(log, keys).ok and audit_checkpoint.verify(log, keys, str(record.facts["key"])).ok
    assert not audit_checkpoint.verify(log, keys, "ab" * 32).ok
    _rewrite(log.path, "egress")
    assert log.verify().ok  # the chain alone does not tell
    verdict = audit_checkpoint.verify(log, keys)
    assert not verdict.ok and "checkpoint" in verdict.reason
    _rewrite(log.path, audit_checkpoint.KIND)  # nor do checkpoints that are left out with it
    assert log.verify().ok and "checkpoint" in audit_checkpoint.verify(log, keys).reason


def test_a_checkpoint_by_another_key_is_none(log: AuditLog, tmp_path: Path) -> None:
    audit_checkpoint.sign_checkpoint(log, tmp_path / "another")
    audit_checkpoint.sign_checkpoint(log, tmp_path / "keys")
    verdict = audit_checkpoint.verify(log, tmp_path / "keys")
    assert not verdict.ok and "another key" in verdict.reason


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_valid_dicom_audit_message(log: AuditLog, kind: str) -> None:
    record = next(log.records(kind))
    message = audit_message(record, "FEDPACS@Klinik Süd")
    document = etree.fromstring(message)
    assert SCHEMA.validate(document), SCHEMA.error_log
    assert document.find("EventIdentification/EventID").get("csd-code") == event_of(kind).code
    assert record_of(message) == record  # nothing of the record is lost: the repository can prove the chain


def test_the_schema_refuses_what_is_no_audit_message(log: AuditLog) -> None:
    document = etree.fromstring(audit_message(next(log.records()), "node"))
    for path, name, value in (
        (".//EventIdentification", "EventOutcomeIndicator", "1"),
        (".//EventIdentification", "EventDateTime", "yesterday"),
        (".//ActiveParticipant", "UserID", None),
        (".//EventID", "csd-code", None),
    ):
        changed = etree.fromstring(etree.tostring(document))
        element = changed.find(path)
        element.attrib.pop(name)
        if value is not None:
            element.set(name, value)
        assert not SCHEMA.validate(changed), name
    assert all(event.action in "CRUDE" for event in EVENTS.values())


class Repository:
    """A syslog receiver over TLS: splits frames by RFC 5425's octet counts. `break_after` drops a connection early."""

    def __init__(self, folder: Path) -> None:
        self.tls = self_signed(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        self.context, self.connections = context, list[bytes]()
        self.break_after: int | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.done = threading.Condition()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            data = bytearray()
            try:
                with self.context.wrap_socket(plain, server_side=True) as stream:
                    while part := stream.recv(65536):
                        data += part
                        if self.break_after is not None and len(data) > self.break_after:
                            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                            socket.socket.shutdown(stream, socket.SHUT_RDWR)
                            break
                    else:
                        stream.unwrap()
            except (OSError, ValueError):
                pass
            with self.done:
                self.connections.append(bytes(data))
                self.done.notify_all()

    def messages(self) -> list[bytes]:
        """The whole messages of every connection."""
        found = []
        for data in self.connections:
            while b" " in data:
                length, _, rest = data.partition(b" ")
                if len(rest) < int(length):
                    break
                found.append(rest[: int(length)])
                data = rest[int(length) :]
        return found

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path / "repository")
    yield made
    made.close()


def _records(repository: Repository) -> list[Any]:
    found = []
    for message in repository.messages():
        head, _, body = message.partition(b"\xef\xbb\xbf")
        fields = head.decode("ascii").split(" ")
        assert fields[0] == "<85>1" and fields[5] == "DICOM+RFC3881" and fields[6] == "-" and fields[1].endswith("Z")
        assert SCHEMA.validate(etree.fromstring(body)), SCHEMA.error_log
        found.append(record_of(body))
    return found


def test_records_reach_a_syslog_receiver_over_tls_each_once(
    log: AuditLog, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_export, "BATCH", 7)
    receiver = Receiver("127.0.0.1", repository.port, repository.tls.authority)
    position = PositionFile(tmp_path / "position.json")
    assert to_syslog(log, receiver, position, "node") == len(KINDS)
    assert to_syslog(log, receiver, position, "node") == 0
    log.append("egress", **FACTS)
    assert to_syslog(log, receiver, position, "node") == 1
    with repository.done:
        repository.done.wait_for(lambda: len(repository.messages()) >= len(KINDS) + 1, timeout=60)
    assert _records(repository) == list(log.records())


def test_a_broken_connection_loses_nothing_and_repeats_only_its_batch(
    log: AuditLog, repository: Repository, tmp_path: Path
) -> None:
    for _ in range(1500):
        log.append("egress", **FACTS)
    receiver = Receiver("127.0.0.1", repository.port, repository.tls.authority)
    position = PositionFile(tmp_path / "position.json")
    first = next(audit_export.batches(log, 0))
    receiver.deliver([audit_export.frame(record, "node") for record in first])
    position.write(audit_export.Position(first[-1].seq, first[-1].hash))
    repository.break_after = 300_000  # amid the second batch
    with pytest.raises(UnreachableError, match="sent again"):
        to_syslog(log, receiver, position, "node")
    assert position.read(log).seq == len(first)
    repository.break_after = None
    assert to_syslog(log, receiver, position, "node") == sum(1 for _ in log.records()) - len(first)
    with repository.done:
        repository.done.wait_for(lambda: len({r.seq for r in _records(repository)}) == log.head()[0], timeout=60)
    got = _records(repository)
    assert {(r.seq, r.hash) for r in got} == {(r.seq, r.hash) for r in log.records()}  # none lost
    again = [r.seq for r in got]
    repeated = {seq for seq in again if again.count(seq) > 1}
    assert all(len(first) < seq <= 2 * len(first) for seq in repeated)


def test_nobody_else_is_sent_anything(log: AuditLog, repository: Repository, tmp_path: Path) -> None:
    stranger = self_signed(tmp_path / "stranger")
    receiver = Receiver("127.0.0.1", repository.port, stranger.authority)
    with pytest.raises(UnreachableError, match="vouches"):
        to_syslog(log, receiver, PositionFile(tmp_path / "p.json"), "node")
    with pytest.raises(UnreachableError, match="did not take"):
        Receiver("127.0.0.1", 1, repository.tls.authority).deliver([b"x"])
    assert repository.messages() == []


def test_a_position_in_another_log_is_noticed(log: AuditLog, tmp_path: Path) -> None:
    position = PositionFile(tmp_path / "p.json")
    position.write(audit_export.Position(3, "ab" * 32))
    with pytest.raises(IntegrityError, match="does not hold record 3"):
        position.read(log)


def test_a_folder_gets_each_record_once(log: AuditLog, tmp_path: Path) -> None:
    assert to_folder(log, tmp_path / "out", "node") == len(KINDS)
    (tmp_path / "out" / "000000002.xml").unlink()
    log.append("egress", **FACTS)
    assert to_folder(log, tmp_path / "out", "node") == 2
    assert [record_of(file.read_bytes()) for file in sorted((tmp_path / "out").glob("*.xml"))] == list(log.records())


def test_the_command_line_exports_and_signs(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_default_config(tmp_path / "node")
    with closing(AuditLog(tmp_path / "node" / "audit.db")) as log:
        log.append("node.started", name="x")
    node = ["--config", str(file)]
    assert fedpacs(["audit", "checkpoint", *node, "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["facts"]["key"]
    assert fedpacs(["audit", "verify", *node, "--key", key]) == 0
    assert fedpacs(["audit", "verify", *node, "--key", "00" * 32]) == 8
    address = f"127.0.0.1:{repository.port}"
    ca = ["--tls-ca", str(repository.tls.authority)]
    assert fedpacs(["audit", "export", *node, "--syslog", address, *ca]) == 0
    assert fedpacs(["audit", "export", *node, "--out", str(tmp_path / "messages")]) == 0
    assert len(list((tmp_path / "messages").glob("*.xml"))) == 2
    assert fedpacs(["audit", "export", *node, "--syslog", address]) == 4
    assert fedpacs(["audit", "export", *node]) == 4
    assert fedpacs(["audit", "export", *node, "--syslog", "127.0.0.1:1", *ca]) == 6
