"""`fedpacs node backup` and `restore`: under load, encrypted, whole or refused, and the same node afterwards."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from dicom_node.audit import AuditLog
from dicom_node.backup import sealed
from dicom_node.cli import run
from dicom_node.config import load_config
from dicom_node.errors import IntegrityError
from dicom_node.setup import write_default_config
from dicom_node.spool import Spool, recover
from dicom_node.vault import Vault
from tests.interop.node_process import RunningNode, wait_for
from tests.interop.studies import ct_instance, planted

PHRASE = "a passphrase of the tests"


@pytest.fixture(autouse=True)
def phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPACS_BACKUP_PASSPHRASE", PHRASE)


class Sender(threading.Thread):
    """Sends instance after instance until told to stop, and keeps which were acknowledged."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.acknowledged, self.enough = port, list[str](), threading.Event()

    def run(self) -> None:
        ae = AE("LOADER")
        ae.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
        association = ae.associate("127.0.0.1", self.port, ae_title="TESTNODE")
        number = 0
        while association.is_established and not self.enough.is_set():
            number += 1
            dataset = pydicom.dcmread(io.BytesIO(ct_instance(planted(number // 4), number)))
            if association.send_c_store(dataset).get("Status") == 0:  # empty when the node is gone
                self.acknowledged.append(str(dataset.SOPInstanceUID))
        association.release()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[RunningNode, Sender]]:
    """A node that has de-identified a few studies and receives more."""
    node = RunningNode(tmp_path / "first")
    node.start()
    sender = Sender(node.config.dicom.port)
    sender.start()
    try:
        wait_for(lambda: node.config.storage.catalogue.exists() and node.catalogue().counts(), 90)
        wait_for(lambda: node.catalogue().counts().get("eligible", 0) >= 2, 90, lambda: len(sender.acknowledged))
        yield node, sender
    finally:
        sender.enough.set()
        sender.join(30)
        node.kill()


def test_a_backup_under_load_holds_all_that_was_acknowledged(
    busy: tuple[RunningNode, Sender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node, sender = busy
    at = node.config.path
    before = list(sender.acknowledged)
    with closing(Vault.open(node.config)) as vault:
        pseudonyms = {
            p: vault.pseudonyms("patient", p) for p in (planted(n).patient_id for n in range(len(before) // 4 + 1))
        }
        key = vault.pseudonym_key
    assert any(pseudonyms.values())
    assert run(["node", "backup", "--out", str(tmp_path / "kept"), "--config", str(at), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(sender.acknowledged) > len(before), "nothing arrived meanwhile: no load"
    assert told["files"] > 5 and told["not_kept"] == []
    sender.enough.set()
    sender.join(30)
    node.kill()
    content = (tmp_path / "kept").read_bytes()
    assert planted(0).patient_id.encode() not in content and b"SQLite" not in content
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600

    assert run(["node", "restore", str(tmp_path / "kept"), "--to", str(tmp_path / "second"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit_records"] > 2
    config = load_config(tmp_path / "second")
    assert config.storage.spool.stat().st_mode & 0o777 == 0o700
    recover(config.storage.spool)  # what the node does at its start
    with Spool(config.storage.spool) as spool, closing(sqlite3.connect(spool.root / "spool.db")) as db:
        rows = dict(db.execute("SELECT sop_uid, id FROM instances WHERE state<>'purged'"))
        assert not set(before) - rows.keys(), "acknowledged, and not in the backup"
        for uid in before:
            assert uid.encode() in spool.read(rows[uid])  # checked by SHA-256
    with closing(Vault.open(config)) as vault:
        assert vault.pseudonym_key == key
        for patient, known in pseudonyms.items():  # one de-identified meanwhile may have come to it
            assert set(known) <= set(vault.pseudonyms("patient", patient))
    again = RunningNode(tmp_path / "second")
    try:
        again.start()
        for study in again.catalogue().studies("eligible"):
            for instance in again.catalogue().instances(study.study_uid):
                assert (config.storage.dataset / instance.path).exists()
    finally:
        again.kill()
    kinds = [record.kind for record in AuditLog(config.storage.audit).records()]
    assert "node.restored" in kinds and AuditLog(config.storage.audit).verify().ok


@pytest.fixture
def still(tmp_path: Path) -> Path:
    """A node that does not run, with one file in its federation folder."""
    file = write_default_config(tmp_path / "still")
    AuditLog(load_config(file).storage.audit).append("node.started", name="still")
    (file.parent / "federation" / "model.bin").write_bytes(b"\1" + bytes(3 << 20) + b"\2")
    return file


def backed_up(file: Path, out: Path) -> Path:
    assert run(["node", "backup", "--out", str(out), "--config", str(file)]) == 0
    return out


def test_restore_goes_only_where_nothing_is(still: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = backed_up(still, tmp_path / "kept")
    before = sorted(path.name for path in still.parent.iterdir())
    assert run(["node", "restore", str(kept), "--to", str(still.parent)]) == 5
    assert "is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in still.parent.iterdir()) == before
    assert run(["node", "backup", "--out", str(kept), "--config", str(still)]) == 5  # never over another one
    assert run(["node", "backup", "--out", str(still.parent / "x"), "--config", str(still)]) == 5  # never into the node
    assert run(["coordinator", "restore", str(kept), "--to", str(tmp_path / "other")]) == 4


def test_a_wrong_key_and_any_damage_restore_nothing(
    still: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, target = backed_up(still, tmp_path / "kept"), tmp_path / "target"
    content = kept.read_bytes()
    assert len(content) < 2 << 20, "zeros are kept as their number"
    for damaged in (content[:-1], content[:-4000], content + b"x", content[:9000] + b"\xff\xff\xff" + content[9003:]):
        (tmp_path / "bad").write_bytes(damaged)
        assert run(["node", "restore", str(tmp_path / "bad"), "--to", str(target)]) == 8
        assert not (target / "node.toml").exists() and not list(target.glob("*"))
    (tmp_path / "bad").write_bytes(b"something else")
    assert run(["node", "restore", str(tmp_path / "bad"), "--to", str(target)]) == 4
    monkeypatch.setenv("FEDPACS_BACKUP_PASSPHRASE", "not that passphrase")
    assert run(["node", "restore", str(kept), "--to", str(target)]) == 8
    assert "passphrase" in capsys.readouterr().err
    monkeypatch.setenv("FEDPACS_BACKUP_PASSPHRASE", "short")
    assert run(["node", "restore", str(kept), "--to", str(target)]) == 3


def test_a_key_file_does_instead_of_a_passphrase_and_folders_elsewhere_come_back(still: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk2" / "spool"
    elsewhere.mkdir(parents=True)
    (elsewhere / "note").write_text("identified")
    still.write_text(still.read_text().replace('spool = "spool" ', f'spool = "{elsewhere}" '))
    (still.parent / "run" / "paused").write_text("by me")
    key = tmp_path / "key"
    key.write_text("f" * 64)
    arguments = ["node", "backup", "--out", str(tmp_path / "kept"), "--config", str(still), "--key", str(key)]
    key.chmod(0o644)
    assert run(arguments) == 3
    key.chmod(0o600)
    assert run(arguments) == 0
    back = ["node", "restore", str(tmp_path / "kept"), "--to", str(tmp_path / "new"), "--key", str(key)]
    assert run(back) == 5  # the spool's place is not empty
    elsewhere.rename(tmp_path / "gone")
    assert run(back) == 0
    assert (elsewhere / "note").read_text() == "identified"
    assert (tmp_path / "new" / "run" / "paused").exists() and not (tmp_path / "new" / ".restoring").exists()
    assert (tmp_path / "new/federation/model.bin").read_bytes() == (still.parent / "federation/model.bin").read_bytes()


def test_a_coordinator_comes_back_with_its_keys_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "coordinator", tmp_path / "second"
    assert run(["coordinator", "init", str(first), "--port", "19092"]) == 0
    assert run(["coordinator", "invite", "north", "--out", str(tmp_path / "i.json"), "--dir", str(first)]) == 0
    assert run(["coordinator", "backup", "--out", str(tmp_path / "kept"), "--dir", str(first)]) == 0
    assert run(["coordinator", "restore", str(tmp_path / "kept"), "--to", str(second)]) == 0
    capsys.readouterr()
    told = []
    for folder in (first, second):
        assert run(["coordinator", "invite", "north", "--out", str(tmp_path / "x.json"), "--dir", str(folder)]) == 0
        told.append(json.loads((tmp_path / "x.json").read_text()))
    assert {k: v for k, v in told[0].items() if k != "signature"} == {
        k: v for k, v in told[1].items() if k != "signature"
    }
    assert (second / "keys").stat().st_mode & 0o777 == 0o700


@settings(max_examples=8, deadline=None)
@given(st.lists(st.binary(max_size=70_000), max_size=6), st.integers(0, 2))
def test_the_sealed_stream_gives_back_what_was_written(parts: list[bytes], more: int) -> None:
    parts += [bytes(sealed.CHUNK)] * more
    held = io.BytesIO()
    writer = sealed.SealedWriter(held, b"secret")
    for part in parts:
        writer.write(part)
    writer.close()
    assert sealed.SealedReader(io.BytesIO(held.getvalue()), b"secret", "x").readall() == b"".join(parts)
    with pytest.raises(IntegrityError):
        sealed.SealedReader(io.BytesIO(held.getvalue()[:-1]), b"secret", "x").readall()
