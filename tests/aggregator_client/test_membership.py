"""An invitation and an enrolment bring exactly the invited hospital in; anything changed or borrowed is refused."""

from __future__ import annotations

import json
import ssl
import stat
import threading
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509

from aggregator_client.coordinator import settings
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.errors import DocumentError, RefusedError, SettingsError, SignatureError, UnreachableError
from aggregator_client.invitations import Enrolment, Invitation, accept
from aggregator_client.keys import node_keys
from aggregator_client.reach import reach


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    return settings.create(tmp_path / "coordinator", name="University", host="fed.example.org", port=9443)


def _enrolment(config: CoordinatorConfig, tmp_path: Path, site: str, keys: str = "") -> Enrolment:
    return accept(config.invite(site), node_keys(tmp_path / (keys or site)))


def test_an_invitation_and_its_answer_bring_a_hospital_in(config: CoordinatorConfig, tmp_path: Path) -> None:
    config.invite("North Hospital").write(tmp_path / "invitation.json")
    invitation = Invitation.read(tmp_path / "invitation.json")
    assert invitation.address == "https://fed.example.org:9443" and invitation.fingerprint == config.keys().fingerprint
    keys = node_keys(tmp_path / "node")
    accept(invitation, keys).write(tmp_path / "enrolment.json")
    member = config.members.enrol(Enrolment.read(tmp_path / "enrolment.json"))
    assert [one.name for one in config.members.list()] == ["North Hospital"]
    found = config.members.get("North Hospital")
    assert (found.signing_public, found.sealing_public, found.flower_public) == (
        keys.signing_public,
        keys.sealing_public,
        keys.flower_public,
    )
    assert member.fingerprint == keys.fingerprint == found.fingerprint


def test_private_keys_stay_where_they_were_made(config: CoordinatorConfig, tmp_path: Path) -> None:
    config.invite("North").write(tmp_path / "i.json")
    keys = node_keys(tmp_path / "node")
    accept(Invitation.read(tmp_path / "i.json"), keys).write(tmp_path / "e.json")
    sent = (tmp_path / "i.json").read_text() + (tmp_path / "e.json").read_text()
    for folder in (tmp_path / "node", config.storage.keys):
        for file in folder.iterdir():
            if file.suffix == ".pem" and "tls" in file.name:
                continue  # certificates are public
            secret = [line for line in file.read_text().splitlines() if len(line) > 20 and "-----" not in line]
            assert secret and not any(line in sent for line in secret), file.name
    assert stat.S_IMODE((tmp_path / "i.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "field", ["address", "ca_pem", "signing_public", "sealing_public", "token", "site", "signature"]
)
def test_a_changed_invitation_is_refused(config: CoordinatorConfig, tmp_path: Path, field: str) -> None:
    file = tmp_path / "i.json"
    config.invite("North").write(file)
    other = settings.create(tmp_path / "evil", name="University", host="evil.example.org", port=9443).invite("South")
    values = json.loads(file.read_text())
    values[field] = json.loads(other.model_dump_json())[field]
    file.write_text(json.dumps(values))
    with pytest.raises(SignatureError, match="changed"):
        Invitation.read(file)


def test_a_replaced_invitation_shows_by_its_fingerprint(config: CoordinatorConfig, tmp_path: Path) -> None:
    other = settings.create(tmp_path / "evil", name="University", host="fed.example.org", port=9443)
    assert other.invite("North").fingerprint != config.invite("North").fingerprint


def test_who_was_not_invited_cannot_enrol(config: CoordinatorConfig, tmp_path: Path) -> None:
    other = settings.create(tmp_path / "other", name="Other", host="127.0.0.1", port=9443)
    with pytest.raises(RefusedError, match="no invitation"):
        config.members.enrol(_enrolment(other, tmp_path, "North"))
    config.invite("North")
    with pytest.raises(RefusedError, match="no invitation"):
        config.members.enrol(_enrolment(other, tmp_path, "North"))


def test_new_keys_under_a_known_name_need_an_explicit_yes(config: CoordinatorConfig, tmp_path: Path) -> None:
    first = config.members.enrol(_enrolment(config, tmp_path, "North"))
    assert config.members.enrol(_enrolment(config, tmp_path, "North")) == first  # the same answer twice is once
    fresh = _enrolment(config, tmp_path, "North", keys="fresh")
    with pytest.raises(RefusedError, match="other keys"):
        config.members.enrol(fresh)
    assert config.members.enrol(fresh, replace=True).fingerprint == fresh.fingerprint


def test_two_hospitals_cannot_share_keys(config: CoordinatorConfig, tmp_path: Path) -> None:
    config.members.enrol(_enrolment(config, tmp_path, "North"))
    with pytest.raises(RefusedError, match="keys of 'North'"):
        config.members.enrol(_enrolment(config, tmp_path, "South", keys="North"))


def test_a_removed_hospital_is_out_and_its_invitation_void(config: CoordinatorConfig, tmp_path: Path) -> None:
    enrolment = _enrolment(config, tmp_path, "North")
    config.members.enrol(enrolment)
    config.members.remove("North")
    assert config.members.list() == []
    with pytest.raises(RefusedError):
        config.members.enrol(enrolment)


def test_names_that_look_alike_as_file_names_stay_apart(config: CoordinatorConfig, tmp_path: Path) -> None:
    for number, name in enumerate(("Klinik Süd", "Klinik S d", "klinik s-d", "東京病院")):
        config.members.enrol(_enrolment(config, tmp_path, name, keys=f"k{number}"))
    assert len(config.members.list()) == 4
    with pytest.raises(DocumentError, match="no name"):
        config.invite("../../etc/passwd")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"{" * 50_000, b'{"format": "fedpacs-invitation-1"}'])
def test_a_file_that_is_no_invitation_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.json").write_bytes(content)
    with pytest.raises(DocumentError, match="invitation"):
        Invitation.read(tmp_path / "i.json")


def test_the_two_kinds_of_file_are_not_confused(config: CoordinatorConfig, tmp_path: Path) -> None:
    config.invite("North").write(tmp_path / "i.json")
    with pytest.raises(DocumentError, match="enrolment"):
        Enrolment.read(tmp_path / "i.json")


def test_a_second_init_changes_nothing(config: CoordinatorConfig) -> None:
    before = config.keys().fingerprint
    with pytest.raises(SettingsError, match="exists already"):
        settings.create(config.root, name="Other", host="127.0.0.1", port=1)
    assert settings.load(config.root).keys().fingerprint == before


def test_lost_keys_are_told_and_never_replaced_silently(config: CoordinatorConfig) -> None:
    (config.storage.keys / "signing.pem").unlink()
    with pytest.raises(SettingsError, match="restore"):
        config.keys()
    assert not (config.storage.keys / "signing.pem").exists()


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("port = 9443", "port = 0", "network.port"),
        ("[storage]", "[storage]\nx = 1", "storage.x"),
        ("name", "naem", "name"),
    ],
)
def test_a_wrong_setting_is_named(config: CoordinatorConfig, old: str, new: str, names: str) -> None:
    config.path.write_text(config.path.read_text().replace(old, new, 1))
    with pytest.raises(SettingsError, match=names.replace(".", r"\.")):
        settings.load(config.root)
    with pytest.raises(SettingsError, match="does not exist"):
        settings.load(config.root / "none")


def test_the_certificate_is_good_for_the_host_and_loopback_and_nothing_else(config: CoordinatorConfig) -> None:
    server = x509.load_pem_x509_certificate(config.tls.certificate.read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    server.verify_directly_issued_by(x509.load_pem_x509_certificate(config.tls.authority.read_bytes()))
    for name in ("tls.key", "tls-ca.key"):
        assert stat.S_IMODE((config.storage.keys / name).stat().st_mode) == 0o600


def test_a_real_tls_client_connects_with_the_invitations_authority_and_not_without(config: CoordinatorConfig) -> None:
    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, lifespan="off", log_config=None, ws="none",
            ssl_certfile=str(config.tls.certificate), ssl_keyfile=str(config.tls.key),
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        url = f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        trusted = ssl.create_default_context(cadata=config.invite("North").ca_pem)
        trusted.verify_flags |= ssl.VERIFY_X509_STRICT
        assert httpx.get(url, verify=trusted, trust_env=False).status_code == 204
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, trust_env=False)
        assert reach(url, config.invite("North").ca_pem) > 0
        other = settings.create(config.root / "other", name="Other", host="127.0.0.1", port=9443)
        with pytest.raises(SignatureError, match="another certificate"):
            reach(url, other.invite("North").ca_pem)
    finally:
        server.should_exit = True
        thread.join(10)
    with pytest.raises(UnreachableError, match="does not answer") as caught:
        reach(url, config.invite("North").ca_pem)
    assert caught.value.exit_code == 6
