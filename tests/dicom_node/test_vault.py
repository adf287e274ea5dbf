"""The vault: nothing in clear on disk, one key from many starts, a wrong key is told apart from damage by nobody."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from dicom_node.config import NodeConfig, load_config
from dicom_node.errors import ConfigError, IntegrityError
from dicom_node.setup import write_default_config
from dicom_node.vault import Vault


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return load_config(write_default_config(tmp_path / "node"))


def test_the_pseudonym_key_stays_the_same_and_is_not_on_disk_in_clear(config: NodeConfig) -> None:
    key = Vault.open(config).pseudonym_key
    assert len(key) == 32 and Vault.open(config).pseudonym_key == key
    for path in config.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert key not in data and key.hex().encode() not in data


def test_the_crosswalk_leads_back_and_shows_nothing(config: NodeConfig) -> None:
    vault = Vault.open(config)
    vault.remember("patient", "PAT-0815", "p1")
    vault.remember("patient", " PAT-0815 ", "p1")
    vault.remember("patient", "PAT-0815", "p2")
    assert vault.pseudonyms("patient", "PAT-0815") == ["p1", "p2"] and vault.pseudonyms("study", "PAT-0815") == []
    assert vault.originals("patient", "p1") == ["PAT-0815"]
    vault.close()
    for path in config.storage.vault.iterdir():
        assert b"PAT-0815" not in path.read_bytes(), path.name
        assert path.stat().st_mode & 0o077 == 0 or path.suffix not in (".json", ".db"), path.name


def test_a_wrong_key_opens_nothing(config: NodeConfig) -> None:
    Vault.open(config)
    config.vault.key_file.write_text("ab" * 32)
    with pytest.raises(IntegrityError, match="does not open") as caught:
        Vault.open(config)
    assert caught.value.exit_code == 8
    config.vault.key_file.write_text("too short")
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        Vault.open(config)
    config.vault.key_file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        Vault.open(config)


def test_rows_cannot_be_exchanged(config: NodeConfig) -> None:
    vault = Vault.open(config)
    vault.remember("patient", "ONE", "p1")
    vault.remember("patient", "TWO", "p2")
    vault._db.execute(
        "UPDATE crosswalk SET original = (SELECT original FROM crosswalk WHERE pseudonym = 'p2') WHERE pseudonym = 'p1'"
    )
    with pytest.raises(IntegrityError):
        vault.originals("patient", "p1")


def test_a_passphrase_serves_as_key(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with_passphrase = config.model_copy(
        update={"vault": config.vault.model_copy(update={"passphrase_env": "FEDPACS_TEST_PASS"})}
    )
    monkeypatch.delenv("FEDPACS_TEST_PASS", raising=False)
    with pytest.raises(ConfigError, match="not set"):
        Vault.open(with_passphrase)
    monkeypatch.setenv("FEDPACS_TEST_PASS", "correct horse")
    key = Vault.open(with_passphrase).pseudonym_key
    assert Vault.open(with_passphrase).pseudonym_key == key
    monkeypatch.setenv("FEDPACS_TEST_PASS", "battery staple")
    with pytest.raises(IntegrityError):
        Vault.open(with_passphrase)
    with pytest.raises(ConfigError, match="passphrase"):
        Vault.open(config)


def _open(path: Path, keys: Any) -> None:
    keys.put(Vault.open(load_config(path)).pseudonym_key)


def test_processes_that_start_together_agree_on_one_key(config: NodeConfig) -> None:
    context = multiprocessing.get_context("spawn")
    keys = context.Queue()
    workers = [context.Process(target=_open, args=(config.path, keys)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = {keys.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(found) == 1
