"""The vault key may come from a token or a program, is refused when others can read it; dm-crypt is looked up, not believed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dicom_node.config import NodeConfig, load_config
from dicom_node.daemon import run as run_daemon
from dicom_node.errors import ConfigError
from dicom_node.setup import write_default_config
from dicom_node.storage_encryption import FOLDERS, on_dm_crypt, require_as_configured, unencrypted
from dicom_node.vault import Vault

MODULES = [Path("/usr/lib/softhsm/libsofthsm2.so"), *Path("/usr/lib").glob("*/softhsm/libsofthsm2.so")]


def _node(root: Path, *settings: tuple[str, str]) -> NodeConfig:
    file = write_default_config(root)
    text = file.read_text()
    for before, after in settings:
        assert before in text
        text = text.replace(before, after)
    file.write_text(text)
    return load_config(file)


def _command(*words: str) -> tuple[str, str]:
    return "key_command = []", "key_command = [" + ", ".join(f"'{word}'" for word in words) + "]"


def test_a_program_gives_the_vault_key(tmp_path: Path) -> None:
    config = _node(tmp_path / "node", _command("cat", str(tmp_path / "token")))
    (tmp_path / "token").write_text("5a" * 32 + "\n")
    (tmp_path / "node" / "keys" / "vault.key").unlink()  # nothing of it lies on the node's disk
    with closing(Vault.open(config)) as vault:
        vault.remember("patient", "PAT-1", "p1")
    with closing(Vault.open(config)) as vault:
        assert vault.originals("patient", "p1") == ["PAT-1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("false",), "exit code 1"),
        (("/does/not/exist",), "FileNotFoundError"),
        (("echo", "secret-but-short"), "64 hexadecimal digits"),
        ((sys.executable, "-c", "print('ab' * 31)"), "64 hexadecimal digits"),
    ],
)
def test_a_program_that_gives_no_key_is_told_without_what_it_said(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    words = tuple(word.replace("'", '"') for word in words)
    with pytest.raises(ConfigError, match=told) as caught:
        Vault.open(_node(tmp_path / "node", _command(*words)))
    assert "secret-but-short" not in str(caught.value) and "abab" not in str(caught.value)


@pytest.mark.skipif(
    not (shutil.which("softhsm2-util") and shutil.which("pkcs11-tool") and any(m.exists() for m in MODULES)),
    reason="needs softhsm2 and opensc (apt)",
)
def test_the_vault_key_lives_on_a_pkcs11_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SoftHSM stands in for the token; the command is the one of the documentation."""
    module = str(next(m for m in MODULES if m.exists()))
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm.conf"))
    monkeypatch.setenv("FEDPACS_PIN", "4711")
    (tmp_path / "key").write_text("c3" * 32)
    token = ["pkcs11-tool", "--module", module, "--login", "--pin", "env:FEDPACS_PIN"]
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "node", "--so-pin", "12345678", "--pin", "4711"],
        check=True,
        capture_output=True,
    )
    write = [*token, "--write-object", str(tmp_path / "key"), "--type", "data", "--label", "vault", "--private"]
    subprocess.run(write, check=True, capture_output=True)
    (tmp_path / "key").unlink()
    read = [*token, "--read-object", "--type", "data", "--label", "vault", "--output-file", "/dev/stdout"]
    config = _node(tmp_path / "node", _command(*read))
    with closing(Vault.open(config)) as vault:
        vault.remember("patient", "PAT-1", "p1")
    with closing(Vault.open(config)) as vault:
        assert vault.originals("patient", "p1") == ["PAT-1"]
    monkeypatch.setenv("FEDPACS_PIN", "0815")
    with pytest.raises(ConfigError, match="exit code"):
        Vault.open(config)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    config = _node(tmp_path / "node")
    config.vault.key_file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        Vault.open(config)
    config.vault.key_file.chmod(0o600)
    Vault.open(config).close()


def _device(sysfs: Path, number: str, uuid: str = "", below: tuple[str, ...] = ()) -> None:
    place = sysfs / number
    (place / "slaves").mkdir(parents=True)
    if uuid:
        (place / "dm").mkdir()
        (place / "dm" / "uuid").write_text(uuid + "\n")
    for one in below:
        (place / "slaves" / one.replace(":", "-")).mkdir()
        (place / "slaves" / one.replace(":", "-") / "dev").write_text(one + "\n")


@pytest.mark.parametrize(
    ("uuid", "below", "expected"),
    [
        ("CRYPT-LUKS2-00112233-luks", (), True),
        ("LVM-abc", ("253:1",), True),
        ("LVM-abc", ("253:1", "8:1"), False),
        ("", ("8:1",), False),
        ("", (), False),
    ],
)
def test_dm_crypt_is_looked_up_down_to_every_disk(
    tmp_path: Path, uuid: str, below: tuple[str, ...], expected: bool
) -> None:
    sysfs, device = tmp_path / "sys", tmp_path.stat().st_dev
    own = f"{os.major(device)}:{os.minor(device)}"
    _device(sysfs, own, uuid, below)
    _device(sysfs, "253:1" if own != "253:1" else "253:99", "CRYPT-LUKS2-9-x")
    if own != "8:1":
        _device(sysfs, "8:1")
    if own not in ("253:1", "8:1"):
        assert on_dm_crypt(tmp_path / "not" / "yet", sysfs) is expected
    assert not on_dm_crypt(tmp_path, tmp_path / "no-sysfs")


def test_a_node_that_asks_for_dm_crypt_does_not_start_without(tmp_path: Path) -> None:
    config = _node(tmp_path / "node", ('encryption = "none" ', 'encryption = "dm-crypt" '))
    sysfs, device = tmp_path / "sys", tmp_path.stat().st_dev
    assert unencrypted(config, sysfs) == list(FOLDERS)
    with pytest.raises(ConfigError, match="spool, quarantine"):
        require_as_configured(config, sysfs)
    _device(sysfs, f"{os.major(device)}:{os.minor(device)}", "CRYPT-LUKS2-1-x")
    require_as_configured(config, sysfs)
    if unencrypted(config):  # on this machine's own disks
        with pytest.raises(ConfigError, match="dm-crypt"):
            run_daemon(config)
