"""node.toml: what `fedpacs node init` writes runs as it is, and a wrong value is named with file, key and mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import check_ae_title, load_config
from dicom_node.errors import ConfigError
from dicom_node.setup import write_default_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_default_config(tmp_path / "node", ae_title="ALPHA", port=11190, http_port=8190, name='St. "Anna"')


def test_the_written_file_is_ready_to_run(file: Path) -> None:
    config = load_config(file)
    assert (config.dicom.ae_title, config.dicom.port, config.web.port, config.node.name) == (
        "ALPHA",
        11190,
        8190,
        'St. "Anna"',
    )
    assert config.dicom.allowed_ae_titles == () and "127.0.0.0/8" in config.dicom.allowed_networks
    assert config.storage.spool == file.parent / "spool" and config.web.token_file == file.parent / "keys" / "api.token"


def test_every_setting_of_the_model_stands_in_the_commented_file(file: Path) -> None:
    config, text = load_config(file), file.read_text()
    for group in ("node", "dicom", "storage", "study", "deid", "policy", "web", "federation", "orthanc", "vault"):
        section = text.split(f"[{group}]")[1].split("\n[")[0]
        for key in type(getattr(config, group)).model_fields:
            assert f"{key} =" in section, f"{group}.{key} is not in the file that init writes"


def test_identified_folders_and_keys_are_guarded(file: Path) -> None:
    for folder in ("spool", "quarantine", "vault", "keys"):
        assert (file.parent / folder).stat().st_mode & 0o077 == 0
    for key in ("vault.key", "api.token"):
        assert (file.parent / "keys" / key).stat().st_mode & 0o077 == 0


def test_the_configuration_is_frozen(file: Path) -> None:
    with pytest.raises(Exception, match="frozen"):
        load_config(file).dicom.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("port = 11190", "port = 70000", "dicom.port"),
        ("port = 11190", 'port = "eleven"', "dicom.port"),
        ('ae_title = "ALPHA"', 'ae_title = "MORE THAN SIXTEEN"', "dicom.ae_title"),
        ('ae_title = "ALPHA"', 'ae_title = "BACK\\\\SLASH"', "dicom.ae_title"),
        ("quiet_seconds = 30", "quiet_seconds = 0", "study.quiet_seconds"),
        ('coordinator = ""', 'coordinator = "http://plain"', "federation.coordinator"),
        ('"127.0.0.0/8"', '"ten.slash.eight"', "dicom.allowed_networks"),
        ("workers = 1", "wokers = 1", "study.wokers"),
        ("[study]", "[studdy]", "studdy"),
    ],
)
def test_a_wrong_value_is_named(file: Path, old: str, new: str, key: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    message = str(caught.value)
    assert str(file) in message and key in message and "\n" not in message and caught.value.exit_code == 3


def test_unreadable_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "node.toml"
    broken.write_text("[dicom\nport = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(broken)


def test_a_second_init_changes_nothing(file: Path) -> None:
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="exists already"):
        write_default_config(file.parent)
    assert before == {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}


@given(st.text(max_size=20))
def test_ae_titles_are_what_ps3_5_allows(value: str) -> None:
    legal = (
        1 <= len(value) <= 16
        and all(" " <= character <= "~" and character != "\\" for character in value)
        and value == value.strip(" ")
    )
    try:
        assert check_ae_title(value) == value and legal
    except ValueError:
        assert not legal
