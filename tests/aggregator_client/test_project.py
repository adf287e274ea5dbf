"""A project file is read one way only, its digest is what was signed, and a person can read what it asks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_client.algorithm_words import WORDS
from aggregator_client.coordinator.strategies import STRATEGIES
from aggregator_client.errors import ProjectError, SignatureError
from aggregator_client.keys import coordinator_keys
from aggregator_client.project import (
    ProjectDocument,
    SignedProject,
    canonical,
    changes,
    read_draft,
    sign,
)
from aggregator_client.sheet import plain_words

DRAFT = """
name = "chest"
version = "1"
purpose = "Tell pneumonia from normal on chest X-rays."
rounds = 3
[task]
classes = ["normal", "bacterial", "viral"]
label = "finding"
[cohort]
modalities = ["DX", "CR"]
min_age_years = 18
min_patients = 20
[network]
name = "small_resnet"
args = { in_channels = 1, classes = 3, widths = [16, 32, 64] }
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return coordinator_keys(tmp_path_factory.mktemp("coordinator"))


@pytest.fixture
def document(tmp_path: Path, keys: Any) -> ProjectDocument:
    (tmp_path / "draft.toml").write_text(DRAFT)
    draft = read_draft(tmp_path / "draft.toml")
    who = {
        "name": "University",
        "signing_public": base64.b64encode(keys.signing_public).decode(),
        "sealing_public": base64.b64encode(keys.sealing_public).decode(),
    }
    return ProjectDocument.model_validate({**draft.model_dump(), "coordinator": who})


def _write(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "project.json"
    file.write_bytes(data)
    return file


def test_sign_write_read(tmp_path: Path, document: ProjectDocument, keys: Any) -> None:
    signed = sign(document, keys.signing)
    again = SignedProject.read(_write(tmp_path, signed.file_bytes()))
    assert again.digest == signed.digest == document.digest()
    assert again.document == document
    assert SignedProject.read(signed.file_bytes()).digest == signed.digest


def test_formatting_does_not_change_the_digest_and_any_setting_does(document: ProjectDocument, keys: Any) -> None:
    signed = sign(document, keys.signing)
    whole = json.loads(signed.file_bytes())
    reordered = json.dumps({k: whole[k] for k in reversed(list(whole))}, indent=7).encode()
    assert SignedProject.read(reordered).digest == signed.digest
    other = sign(document.model_copy(update={"rounds": 4}), keys.signing)
    assert other.digest != signed.digest
    assert changes(signed.payload, other.payload) == ["rounds: 3 → 4"]


def test_a_later_package_with_more_settings_computes_the_same_digest(document: ProjectDocument, keys: Any) -> None:
    """The digest is of what was signed, so a file without a setting that exists here keeps its own digest."""
    payload = document.model_dump(mode="json")
    del payload["contract"]
    import hashlib

    digest = hashlib.sha256(canonical(payload)).hexdigest()
    signature = keys.signing.sign(b"fedpacs project v1\x00" + bytes.fromhex(digest))
    whole = {"format": "fedpacs-project-1", "digest": digest, "project": payload}
    whole["signature"] = base64.b64encode(signature).decode()
    read = SignedProject.read(json.dumps(whole).encode())
    assert read.digest == digest and read.document == document


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_never_passes_unseen(data: st.DataObject) -> None:
    """Either the change is refused or it changed nothing that was signed (spaces, for example)."""
    original = _fixed()
    place = data.draw(st.integers(0, len(original) - 1))
    changed = original[:place] + bytes([original[place] ^ data.draw(st.integers(1, 255))]) + original[place + 1 :]
    try:
        found = SignedProject.read(changed)
    except (ProjectError, SignatureError):
        return
    assert found.digest == SignedProject.read(original).digest


_CACHE: list[bytes] = []


def _fixed() -> bytes:
    if not _CACHE:
        signer = Ed25519PrivateKey.generate()
        from aggregator_client.keys import new_sealing_key, sealing_public_of

        who = {
            "name": "University",
            "signing_public": base64.b64encode(signer.public_key().public_bytes_raw()).decode(),
            "sealing_public": base64.b64encode(sealing_public_of(new_sealing_key())).decode(),
        }
        import tomllib

        document = ProjectDocument.model_validate({**tomllib.loads(DRAFT), "coordinator": who})
        _CACHE.append(sign(document, signer).file_bytes())
    return _CACHE[0]


def test_signing_with_anothers_key_is_refused(document: ProjectDocument) -> None:
    with pytest.raises(SignatureError, match="not signed by 'University'"):
        sign(document, Ed25519PrivateKey.generate())


def test_a_signature_of_another_project_is_refused(document: ProjectDocument, keys: Any) -> None:
    whole = json.loads(sign(document, keys.signing).file_bytes())
    other = sign(document.model_copy(update={"rounds": 9}), keys.signing)
    whole["signature"] = base64.b64encode(other.signature).decode()
    with pytest.raises(SignatureError):
        SignedProject.read(json.dumps(whole).encode())


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("rounds = 3", "rounds"),
        ('label = "finding"', "task.label"),
        ('classes = ["normal", "bacterial", "viral"]', "task.classes"),
    ],
)
def test_a_missing_setting_is_named(tmp_path: Path, line: str, names: str) -> None:
    file = tmp_path / "d.toml"
    file.write_text(DRAFT.replace(line, ""))
    with pytest.raises(ProjectError, match=names.replace(".", r"\.")) as caught:
        read_draft(file)
    assert str(file) in str(caught.value) and caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("rounds = 3", "rounds = 0", "rounds"),
        ("rounds = 3", 'rounds = 3\ncode = "import os"', "code"),
        ('name = "chest"', 'name = "../etc"', "name"),
        ("min_patients = 20", 'label = "other"', "cohort.label"),
        ("[network]", '[privacy]\nmode = "none"\n[network]', "privacy.mode"),
        ("[network]", "[local]\nlr = -1\n[network]", "local.lr"),
        ("[network]", "[network", "TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, old: str, new: str, names: str) -> None:
    file = tmp_path / "d.toml"
    file.write_text(DRAFT.replace(old, new, 1))
    with pytest.raises(ProjectError, match=names.replace(".", r"\.")):
        read_draft(file)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"format": "fedpacs-project-1"}',
        b'{"format": "fedpacs-project-1", "digest": "", "project": [], "signature": ""}',
        b'{"format": "fedpacs-project-9"}',
        b"x" * (1 << 20) + b"y",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_file_that_is_no_project_is_told_in_one_sentence(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ProjectError) as caught:
        SignedProject.read(_write(tmp_path, data))
    assert "\n" not in str(caught.value) and "project.json" in str(caught.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="does not exist"):
        SignedProject.read(tmp_path / "none.json")
    with pytest.raises(ProjectError, match="cannot be read"):
        SignedProject.read(tmp_path)


def test_a_key_named_twice_and_not_a_number_are_refused(document: ProjectDocument, keys: Any) -> None:
    text = sign(document, keys.signing).file_bytes().decode()
    with pytest.raises(ProjectError, match="twice"):
        SignedProject.read(text.replace('"rounds": 3', '"rounds": 3, "rounds": 99').encode())
    with pytest.raises(ProjectError, match="NaN"):
        SignedProject.read(text.replace('"rounds": 3', '"rounds": NaN').encode())


def test_the_sheet_says_what_a_decision_needs(document: ProjectDocument) -> None:
    sheet = plain_words(document, document.digest())
    for wanted in (
        "University",
        document.coordinator.fingerprint,
        document.digest(),
        "Tell pneumonia from normal",
        "DX, CR",
        "18 to any years",
        "20 patients",
        "normal, bacterial, viral",
        "Up to 3 rounds",
        "What leaves your hospital",
        "does not protect",
        "no differential privacy",
        "withdraw",
    ):
        assert wanted in " ".join(sheet.split()), wanted
    assert max(len(line) for line in sheet.splitlines()) <= 100


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_sheet_tells_each_installed_algorithm_in_plain_words(document: ProjectDocument, name: str) -> None:
    algorithm = document.algorithm.model_copy(update={"name": name, "args": {"share": 0.5}})
    told = " ".join(plain_words(document.model_copy(update={"algorithm": algorithm})).split())
    assert name in WORDS and " ".join(WORDS[name].split()) in told and "50% of the hospitals train" in told


def test_the_sheet_tells_what_else_changes_what_a_hospital_does(document: ProjectDocument) -> None:
    values = document.model_dump() | {
        "stop": {"patience": 3, "keep": "best"},
        "personal": {"epochs": 2},
        "transfer": {"compression": "topk", "share": 0.2},
        "algorithm": {"name": "median", "args": {}},
    }
    told = " ".join(plain_words(ProjectDocument.model_validate(values)).split())
    for wanted in ("end sooner when 3", "not the last one", "2 passes further", "largest 20%", "exclude each other"):
        assert wanted in told, wanted
