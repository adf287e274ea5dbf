"""The evidence bundle of a run: the model with everything that shows where it comes from, checkable by anybody.

A zip file of

    model.safetensors    the global model: of the last round, or of the best one, as the project says
    model.json           what `fedpacs model predict` needs to use it
    card.json            the model card: purpose, task, algorithm, and figures by site with the worst and the spread
    project.json         the signed project the hospitals approved
    participants.json    each hospital's name, public keys and fingerprint
    rounds.json          every round's checkpoint digest and figures, site by site
    receipts.json        for each message that counted: its context, digest, size and the hospital's signature
    votes.json           each candidate model that was voted on, and the hospitals' signed ballots
    successions.json     how the coordinator's keys were replaced, if they were (aggregator_client.rotation)
    manifest.json        SHA-256 of each file above, signed by the coordinator (Ed25519)

`verify` needs nothing but the file; whose keys these are is told by the fingerprint, compared with a known one. A hospital finds
the `sha256` of its own receipts in its audit log (`fedpacs audit show --kind egress`). The signatures show that each hospital
sent what the coordinator says it sent, not that the coordinator averaged it rightly.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aggregator_client import rotation
from aggregator_client.coordinator.card import card
from aggregator_client.coordinator.evidence_votes import check_votes, votes_of
from aggregator_client.coordinator.receipts import read as read_receipts
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.coordinator.state import RunState
from aggregator_client.errors import DocumentError, RefusedError, SignatureError
from aggregator_client.invitations import write_file
from aggregator_client.messages import COORDINATOR
from aggregator_client.project import CoordinatorIdentity, SignedProject, canonical
from aggregator_client.roster import Member
from aggregator_client.rotation import Pair, Succession, as_values
from aggregator_client.sealing import Context, Receipt
from trainer.modelcard import ModelCard

FORMAT = "fedpacs-evidence-1"
_FILES = ("model.safetensors", "card.json", "project.json", "participants.json", "rounds.json", "receipts.json")
_LATER = ("successions.json", "model.json", "votes.json")
"""What a bundle made by an earlier version need not hold."""
_SIGN = b"fedpacs evidence v1\x00"
_MAX_BYTES = 1 << 34


@dataclass(frozen=True)
class Evidence:
    """What a bundle proves once it is verified."""

    digest: str
    project: str
    round: int
    rounds: int
    coordinator: str
    fingerprint: str
    participants: dict[str, str]
    """Fingerprint by hospital."""
    receipts: int
    model_sha256: str


def export(config: CoordinatorConfig, folder: Path, out: Path) -> Evidence:
    """Write the bundle of the run in `folder`. Raises RefusedError before the first round is done, StateError."""
    signed = SignedProject.read(folder / "project.json")
    with closing(RunState(folder, readonly=True)) as state:
        kept = state.kept_model(signed.document.stop.keep)
        if state.last_checkpoint() < 1:
            raise RefusedError(
                f"The run of {signed.document.name} has finished no round yet: nothing is there to export."
            )
        state.model(kept)  # raises when its file is damaged
        model = state.checkpoint_file(kept).read_bytes()
        facts = card(signed.document, signed.digest, state)
        rounds = {
            "rounds": [asdict(one) for one in state.rounds()],
            "sites": [asdict(one) for one in state.table()],
        }
        votes = votes_of(state)
        taken = {one.site for one in state.table() if one.state == "accepted"}
    document, digest = signed.document, hashlib.sha256(model).hexdigest()
    usable = ModelCard(
        name=document.name[:60], version=document.version, network=document.network, task=document.task, sha256=digest
    )
    receipts = read_receipts(folder)
    people = _people(config, taken)
    files = {
        "model.safetensors": model,
        "model.json": _json(usable.model_dump(mode="json")),
        "card.json": _json(facts),
        "project.json": signed.file_bytes(),
        "participants.json": _json(people),
        "rounds.json": _json(rounds),
        "receipts.json": _json(receipts),
        "votes.json": _json(votes),
        "successions.json": _json([json.loads(one) for one in config.keys().introductions]),
    }
    write_file(out, _packed(config, files, {"digest": signed.digest, "round": kept, "created_at": time.time()}))
    out.chmod(0o644)
    return verify(out)


def _people(config: CoordinatorConfig, taken: set[str]) -> list[dict[str, Any]]:
    """The participants with every key they signed with: the present membership, else the last; `former` ones beside it."""
    gone = config.members.revocations()
    found = []
    for site in sorted(taken):
        held: list[dict[str, Any]] = [
            {**_person(one.member), "revoked": {"at": one.at, "reason": one.reason}}
            for one in gone
            if one.member.name == site
        ]
        held += [_person(member) for member in config.members.list() if member.name == site]
        if held:
            found.append({**held[-1], "former": held[:-1]})
    return found


def _person(member: Member) -> dict[str, Any]:
    return {
        "site": member.name,
        "signing_public": member.enrolment.signing_public,
        "sealing_public": member.enrolment.sealing_public,
        "flower_public": member.enrolment.flower_public,
        "fingerprint": member.fingerprint,
        "successions": as_values(member.successions),
    }


def _packed(config: CoordinatorConfig, files: dict[str, bytes], facts: dict[str, Any]) -> bytes:
    keys = config.keys()
    manifest = {
        "format": FORMAT,
        **facts,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    signature = keys.signing.sign(_SIGN + hashlib.sha256(canonical(manifest)).digest())
    whole = {"manifest": manifest, "signature": base64.b64encode(signature).decode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in {**files, "manifest.json": _json(whole)}.items():
            bundle.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def verify(file: Path, fingerprint: str = "") -> Evidence:
    """What the bundle proves. Raises DocumentError when it is none, SignatureError when anything in it does not fit.

    `fingerprint`, when given, must be the coordinator's: without it, anybody's bundle is consistent with itself.
    """
    files = _read(file)
    manifest, signature = _manifest(file, files.pop("manifest.json"))
    if set(files) != set(manifest["files"]):
        raise SignatureError(f"{file} holds other files than its manifest names: ask for the bundle again.")
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
            raise SignatureError(f"{name} in {file} was changed after the bundle was made: ask for the bundle again.")
    signed = SignedProject.read(files["project.json"])
    who = signed.document.coordinator
    chain = rotation.read(json.loads(files.get("successions.json", b"[]")))
    to_sign = _SIGN + hashlib.sha256(canonical(manifest)).digest()
    if not any(_signs(pair.signing, signature, to_sign) for pair in _lineage(who, chain)):
        raise SignatureError(f"{file} is not signed by the coordinator of its project ({who.name}): ask for it again.")
    if fingerprint and fingerprint.strip().lower() != who.fingerprint:
        raise SignatureError(
            f"{file} is by keys with fingerprint {who.fingerprint}, not {fingerprint}: it is another's."
        )
    if manifest["digest"] != signed.digest:
        raise SignatureError(f"{file} holds another project than its manifest names: ask for it again.")
    people = {str(one["site"]): one for one in json.loads(files["participants.json"])}
    receipts = json.loads(files["receipts.json"])
    _check_receipts(file, receipts, people, signed.digest)
    _check_rounds(file, json.loads(files["rounds.json"]), manifest)
    keys = {name: _keys_of(person) for name, person in people.items()}
    check_votes(file, json.loads(files.get("votes.json", b"[]")), json.loads(files["rounds.json"]), signed, keys)
    return Evidence(
        digest=signed.digest,
        project=f"{signed.document.name} version {signed.document.version}",
        round=int(manifest["round"]),
        rounds=signed.document.rounds,
        coordinator=who.name,
        fingerprint=who.fingerprint,
        participants={name: str(one["fingerprint"]) for name, one in sorted(people.items())},
        receipts=len(receipts),
        model_sha256=manifest["files"]["model.safetensors"],
    )


def _signs(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _lineage(who: CoordinatorIdentity, chain: Sequence[Succession]) -> list[Pair]:
    """The keys a project names and those that followed them; the bundle's chain may begin earlier."""
    start = Pair(who.signing_key, who.sealing_key)
    return rotation.follow(start, rotation.extended(start, (), chain, COORDINATOR), COORDINATOR)


def _keys_of(person: dict[str, Any]) -> list[Pair]:
    """Every pair of keys a participant had, from its enrolment on."""
    found: list[Pair] = []
    for held in (*person.get("former", []), person):
        start = Pair(base64.b64decode(held["signing_public"]), base64.b64decode(held["sealing_public"]))
        found += rotation.follow(start, rotation.read(held.get("successions", [])), str(person["site"]))
    return found


def _verify(receipt: Receipt, keys: Sequence[Pair]) -> None:
    """Raises SignatureError when none of the keys signed it."""
    for pair in keys[:-1]:
        with suppress(SignatureError):
            return receipt.verify(pair.signing)
    return receipt.verify(keys[-1].signing)


def _check_receipts(file: Path, receipts: list[dict[str, Any]], people: dict[str, Any], digest: str) -> None:
    keys = {name: _keys_of(person) for name, person in people.items()}
    for one in receipts:
        context = Context(**one["context"])
        if context.project_digest != digest or context.sender not in people:
            raise SignatureError(f"{file} holds a receipt of another project or of no participant: ask for it again.")
        receipt = Receipt(context, str(one["body_sha256"]), str(one["signature"]))
        _verify(receipt, keys[context.sender])


def _check_rounds(file: Path, rounds: dict[str, Any], manifest: dict[str, Any]) -> None:
    """The model in the bundle is the one its round closed with."""
    closed = {int(one["number"]): str(one["sha256"]) for one in rounds["rounds"]}
    if closed.get(int(manifest["round"])) != manifest["files"]["model.safetensors"]:
        raise SignatureError(f"The model in {file} is not that of round {manifest['round']}: ask for it again.")


def _read(file: Path) -> dict[str, bytes]:
    """The bundle's files by name. A bundle holds exactly the known files, stored, each once."""
    names, later = {*_FILES, "manifest.json"}, {*_FILES, *_LATER, "manifest.json"}
    try:
        with zipfile.ZipFile(file) as bundle:
            infos = bundle.infolist()
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
            found = sorted(info.filename for info in infos)
            known = names <= set(found) <= later and len(set(found)) == len(found)
            if stored and known and sum(info.file_size for info in infos) <= _MAX_BYTES:
                return {info.filename: bundle.read(info) for info in infos}
    except FileNotFoundError:
        raise DocumentError(f"{file} does not exist: check the path.") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        pass
    raise DocumentError(f"{file} is not an evidence bundle made by `fedpacs coordinator export` (or is damaged).")


def _manifest(file: Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        whole = json.loads(data)
        manifest, signature = whole["manifest"], base64.b64decode(whole["signature"], validate=True)
        if manifest["format"] == FORMAT and set(_FILES) <= set(manifest["files"]) <= {*_FILES, *_LATER}:
            return manifest, signature
    except (ValueError, KeyError, TypeError):
        pass
    raise DocumentError(f"The manifest of {file} is damaged or of another version: ask for the bundle again.")


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
