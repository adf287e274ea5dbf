"""An evidence bundle proves model, project and who sent what; a bundle changed in any way proves nothing and says so."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator_client import messages
from aggregator_client.coordinator import evidence, overview, receipts, settings
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.coordinator.state import RunState, SiteFacts, SiteRound
from aggregator_client.errors import DocumentError, RefusedError, SignatureError
from aggregator_client.invitations import accept
from aggregator_client.keys import node_keys
from aggregator_client.messages import COORDINATOR, Message
from aggregator_client.project import ProjectDocument, SignedProject, sign
from aggregator_client.sealing import Context
from dicom_node.cli import run as fedpacs

PROJECT: dict[str, Any] = {
    "name": "chest",
    "version": "1",
    "purpose": "Tell pneumonia from normal on chest X-rays.",
    "rounds": 2,
    "task": {"classes": ["normal", "viral"], "label": "finding"},
    "cohort": {},
    "network": {"name": "small_resnet"},
}
SITES = ("North", "South")


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    config = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    for site in SITES:
        config.members.enrol(accept(config.invite(site), node_keys(tmp_path / site)))
    return config


@pytest.fixture
def signed(config: CoordinatorConfig) -> SignedProject:
    who = {"name": config.name, **config.keys().public_base64()}
    return sign(ProjectDocument.model_validate({**PROJECT, "coordinator": who}), config.keys().signing)


@pytest.fixture
def folder(config: CoordinatorConfig, signed: SignedProject, tmp_path: Path) -> Path:
    """A run of one finished round, with real sealed answers of two sites."""
    folder = config.run_folder(signed.digest)
    folder.mkdir(parents=True)
    (folder / "project.json").write_bytes(signed.file_bytes())
    with closing(RunState(folder)) as state:
        state.start(signed.digest, "chest", "fedavg", 2)
        for number in (0, 1):
            state.open_round(number)
            state.close_round(number, {"w": np.full((3,), number, np.float32)})
        for site, auc in zip(SITES, (0.9, 0.7), strict=True):
            context = Context(signed.digest, 1, site, COORDINATOR, "update")
            signer, public = node_keys(tmp_path / site).signing, config.keys().sealing_public
            message = messages.wrap(
                Message({"kind": "update"}, {"model": b"m"}), context, recipient_public=public, signer=signer
            )
            receipts.keep(folder, message)
            weakest = {"attribute": "sex", "value": "F", "cases": 12, "metric": auc - 0.09}
            figures = {"auc": auc, "worst_subgroup": weakest}
            state.put(SiteRound(1, site, "accepted", cases=10, loss=0.5, metrics=figures, bytes_in=len(message)))
        state.put(SiteRound(2, "North", "away", reason="it is away"))
        state.see([SiteFacts(site, True, 5.0) for site in SITES])
    return folder


def test_a_bundle_verifies_and_tells_what_it_proves(config: CoordinatorConfig, folder: Path, tmp_path: Path) -> None:
    made = evidence.export(config, folder, tmp_path / "e.zip")
    assert evidence.verify(tmp_path / "e.zip", config.keys().fingerprint) == made
    assert (made.project, made.round, made.rounds, made.receipts) == ("chest version 1", 1, 2, 2)
    assert set(made.participants) == set(SITES)
    with zipfile.ZipFile(tmp_path / "e.zip") as bundle:
        assert hashlib.sha256(bundle.read("model.safetensors")).hexdigest() == made.model_sha256
        everything = b"".join(bundle.read(name) for name in bundle.namelist())
    for member in config.members.list():
        assert member.enrolment.token.encode() not in everything


def test_the_bundle_unzipped_is_a_model_folder(config: CoordinatorConfig, folder: Path, tmp_path: Path) -> None:
    from trainer.errors import WeightsError
    from trainer.modelcard import load_model, read_card

    out = tmp_path / "bundle.zip"
    found = evidence.export(config, folder, out)
    with zipfile.ZipFile(out) as bundle:
        bundle.extractall(tmp_path / "model")
    card = read_card(tmp_path / "model")
    assert card.sha256 == found.model_sha256 and card.task.classes
    with pytest.raises(
        WeightsError, match="lack the array"
    ):  # digest and card hold; this run's arrays are no network's
        load_model(tmp_path / "model")


def test_every_flipped_byte_is_noticed(config: CoordinatorConfig, folder: Path, tmp_path: Path) -> None:
    """Except where a zip file holds bytes that mean nothing to anybody: the content read must then be the same."""
    file = tmp_path / "e.zip"
    made = evidence.export(config, folder, file)
    data = file.read_bytes()
    before = _contents(data)
    unseen = 0
    for place in range(0, len(data), 37):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x04]) + data[place + 1 :])
        try:
            assert evidence.verify(file) == made
        except (DocumentError, SignatureError):
            continue
        unseen += 1
        assert _contents(file.read_bytes()) == before
    assert unseen < 20


def _contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()}


def _rewrite(file: Path, config: CoordinatorConfig, **changed: Any) -> None:
    """What a dishonest coordinator can do: change a file and sign the manifest anew."""
    files = _contents(file.read_bytes())
    manifest = json.loads(files.pop("manifest.json"))["manifest"]
    for name, change in changed.items():
        name = name.replace("_", ".")
        files[name] = change(json.loads(files[name])) if name.endswith("json") else change(files[name])
        files[name] = json.dumps(files[name]).encode() if name.endswith("json") else files[name]
    facts = {key: manifest[key] for key in ("digest", "round", "created_at")}
    file.write_bytes(evidence._packed(config, files, facts))


def test_even_the_coordinator_cannot_invent_a_hospitals_message(
    config: CoordinatorConfig, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "e.zip"
    evidence.export(config, folder, file)

    def later(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found[0]["context"]["round"] = 2
        return found

    _rewrite(file, config, receipts_json=later)
    with pytest.raises(SignatureError, match="not signed by"):
        evidence.verify(file)


def test_another_model_under_the_same_rounds_is_refused(
    config: CoordinatorConfig, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "e.zip"
    evidence.export(config, folder, file)
    _rewrite(file, config, model_safetensors=lambda data: data[:-1] + b"x")
    with pytest.raises(SignatureError, match="not that of round 1"):
        evidence.verify(file)


def test_another_coordinators_signature_is_refused(config: CoordinatorConfig, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.zip"
    evidence.export(config, folder, file)
    other = settings.create(tmp_path / "other", name="University", host="127.0.0.1", port=9443)
    _rewrite(file, other)
    with pytest.raises(SignatureError, match="not signed by the coordinator"):
        evidence.verify(file)
    evidence.export(config, folder, file)
    with pytest.raises(SignatureError, match="another's"):
        evidence.verify(file, other.keys().fingerprint)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"x" * 500])
def test_what_is_no_bundle_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.zip").write_bytes(content)
    with pytest.raises(DocumentError, match="not an evidence bundle"):
        evidence.verify(tmp_path / "e.zip")
    with pytest.raises(DocumentError, match="does not exist"):
        evidence.verify(tmp_path / "none.zip")


def test_nothing_is_exported_before_the_first_round(
    config: CoordinatorConfig, signed: SignedProject, tmp_path: Path
) -> None:
    folder = config.run_folder(signed.digest)
    folder.mkdir(parents=True)
    (folder / "project.json").write_bytes(signed.file_bytes())
    with closing(RunState(folder)) as state:
        state.start(signed.digest, "chest", "fedavg", 2)
    with pytest.raises(RefusedError, match="no round yet"):
        evidence.export(config, folder, tmp_path / "e.zip")


def test_a_torn_receipt_is_skipped_and_the_next_one_kept(folder: Path) -> None:
    file = folder / receipts.NAME
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert [one["context"]["sender"] for one in receipts.read(folder)] == ["North"]
    message = json.loads(whole.splitlines()[1])
    assert message["context"]["sender"] == "South"


def test_the_overview_shows_figures_stalls_mean_and_worst(config: CoordinatorConfig, folder: Path) -> None:
    found = overview.overview(folder)
    assert (found["state"], found["running"], found["round"], found["rounds"]) == ("stopped", False, 1, 2)
    assert "resume" in found["reason"]
    north, south = found["sites"]
    assert (north["state"], north["reason"], north["metric"]) == ("away", "it is away", 0.9)
    assert (south["state"], south["cases"], south["online"]) == ("accepted", 10, False)
    (first,) = found["history"]
    assert (first["accepted"], first["cases"], first["worst_site"], first["worst_metric"]) == (2, 20, "South", 0.7)
    assert first["mean_metric"] == pytest.approx(0.8)


def test_a_run_is_seen_running_while_a_process_holds_it(folder: Path) -> None:
    import fcntl

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert overview.is_running(folder) and overview.overview(folder)["state"] == "running"
    assert not overview.is_running(folder)


def test_the_command_line_shows_exports_and_verifies(
    config: CoordinatorConfig, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--dir", str(config.root)]
    assert fedpacs(["coordinator", "status", *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["digest"] == folder.name
    assert fedpacs(["coordinator", "status", *at]) == 0
    assert "South" in capsys.readouterr().out
    out = str(tmp_path / "e.zip")
    assert fedpacs(["coordinator", "export", folder.name[:8], *at, "--out", out]) == 0
    assert fedpacs(["coordinator", "verify", out, "--fingerprint", config.keys().fingerprint]) == 0
    assert fedpacs(["coordinator", "verify", out, "--fingerprint", "0000-0000-0000-0000-0000"]) == 8
    assert fedpacs(["coordinator", "export", "ffff0000", *at, "--out", out]) == 4
    assert fedpacs(["coordinator", "status", "--dir", str(tmp_path / "nowhere")]) == 3
    assert fedpacs(["coordinator", "run", str(tmp_path / "none.json"), *at]) == 4
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and all(line.startswith("fedpacs: ") for line in told)


def test_retraining_is_one_command(config: CoordinatorConfig, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    at = ["--dir", str(config.root), "--out", str(out), "--sign-only"]
    assert fedpacs(["coordinator", "retrain", folder.name[:8], "--version", "1", *at]) == 4
    assert fedpacs(["coordinator", "retrain", folder.name[:8], "--version", "2", *at]) == 0
    earlier, new = SignedProject.read(folder / "project.json"), SignedProject.read(out)
    assert new.digest != earlier.digest and new.document.version == "2"  # so that every hospital is asked again
    assert new.payload == {**earlier.payload, "version": "2"}
    with closing(RunState(folder, readonly=True)) as state:
        assert state.last_checkpoint() == 1  # the earlier run is untouched


def test_replaced_receipts_count_once(folder: Path) -> None:
    again = json.loads((folder / receipts.NAME).read_bytes().splitlines()[0])
    with (folder / receipts.NAME).open("ab") as file:
        file.write(json.dumps(again).encode() + b"\n")
    assert len(receipts.read(folder)) == 2
    assert replace(Context(**again["context"])).sender == "North"
