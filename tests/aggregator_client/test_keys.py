"""Keys are made once, stay the same, are readable by their owner alone, and a damaged one is named."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator_client.errors import DocumentError
from aggregator_client.keys import coordinator_keys, fingerprint, node_keys


def test_keys_are_made_once_and_guarded(tmp_path: Path) -> None:
    first, second = node_keys(tmp_path / "keys"), node_keys(tmp_path / "keys")
    assert first.signing_public == second.signing_public and len(first.signing_public) == 32
    assert first.sealing == second.sealing and len(first.sealing_public) == 1216
    assert first.fingerprint == second.fingerprint
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for file in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert {file.name for file in (tmp_path / "keys").iterdir()} == {"signing.pem", "sealing.key", "flower.key"}


def test_two_processes_that_start_together_end_with_the_same_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: coordinator_keys(tmp_path).fingerprint, range(8)))
    assert set(found) == {coordinator_keys(tmp_path).fingerprint}


def test_flowers_own_loader_takes_the_node_key(tmp_path: Path) -> None:
    """The check `flower-supernode --auth-supernode-private-key` makes, and the public form the SuperLink stores."""
    keys = node_keys(tmp_path)
    loaded = serialization.load_ssh_private_key(keys.flower_file.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey) and loaded.curve.name == "secp384r1"
    public = serialization.load_pem_public_key(keys.flower_public)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.public_numbers() == loaded.public_key().public_numbers()


@pytest.mark.parametrize("name", ["signing.pem", "sealing.key", "flower.key"])
@pytest.mark.parametrize("content", [b"", b"not a key", b"ff" * 10, b"\xff\xfe"])
def test_a_damaged_key_is_named_and_not_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    node_keys(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DocumentError, match=name):
        node_keys(tmp_path)
    assert (tmp_path / name).read_bytes() == content


def test_fingerprints_are_short_and_tell_keys_apart() -> None:
    assert len(fingerprint(b"a")) == 24 and fingerprint(b"a").count("-") == 4
    assert len({fingerprint(b"ab", b"c"), fingerprint(b"a", b"bc"), fingerprint(b"abc")}) == 3
