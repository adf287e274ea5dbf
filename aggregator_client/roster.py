"""The hospitals of a federation as their coordinator knows them: invited, enrolled, with replaced keys, revoked.

DIR/invited/*.json    who may enrol, and by which token
DIR/members/*.json    who is enrolled: the enrolment, and the successions its keys have gone through since
DIR/revoked/*.json    whose keys are refused, since when and why; such a file outlives the membership
DIR/audit.db          each change, as `roster.changed` with the roster's revision and digest, before it takes effect
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator_client import rotation
from aggregator_client.errors import DocumentError, RefusedError
from aggregator_client.invitations import SITE_NAME, Enrolment, write_file
from aggregator_client.keys import fingerprint
from aggregator_client.rotation import Pair, Succession
from dicom_node.audit import AuditLog

CHANGED = "roster.changed"


class Member(BaseModel):
    """One hospital as its coordinator knows it. The keys are the present ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enrolment: Enrolment
    enrolled_at: float
    successions: tuple[Succession, ...] = ()

    @property
    def name(self) -> str:
        return self.enrolment.site

    @property
    def enrolled(self) -> Pair:
        """The keys it enrolled with."""
        return Pair(self.enrolment.signing_key, self.enrolment.sealing_key)

    @property
    def generations(self) -> list[Pair]:
        """Every pair of keys it has had, the present one last. Raises SignatureError when they do not follow each other."""
        return rotation.follow(self.enrolled, self.successions, self.name)

    @property
    def present(self) -> Pair:
        return self.successions[-1].after if self.successions else self.enrolled

    @property
    def signing_public(self) -> bytes:
        return self.present.signing

    @property
    def sealing_public(self) -> bytes:
        return self.present.sealing

    @property
    def flower_public(self) -> bytes:
        return self.enrolment.flower_public.encode()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_public, self.sealing_public, self.flower_public)


class Revocation(BaseModel):
    """Keys that are refused from now on, with everything they went through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: Member
    at: float
    reason: str

    def touches(self, pairs: Sequence[Pair], flower: bytes = b"") -> bool:
        """Whether one of these keys is revoked."""
        gone = self.member.generations
        signing, sealing = {one.signing for one in gone}, {one.sealing for one in gone}
        return flower == self.member.flower_public or any(p.signing in signing or p.sealing in sealing for p in pairs)

    def sentence(self) -> str:
        when = time.strftime("%Y-%m-%d", time.gmtime(self.at))
        return (
            f"The keys of {self.member.name!r} ({self.member.fingerprint}) were revoked on {when} ({self.reason}):"
            " it can come back with new ones, by an invitation."
        )


class Members:
    """The hospitals invited, enrolled and revoked, one small file each below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def invited(self) -> list[str]:
        """Names of all invited hospitals, enrolled or not."""
        return sorted(str(_facts(file)["site"]) for file in (self.folder / "invited").glob("*.json"))

    def expect(self, site: str) -> str:
        """The token that `site` must bring; asking again gives the same, so that an invitation can be made anew."""
        if not re.fullmatch(SITE_NAME, site):
            raise DocumentError(
                f"{site!r} is no name for a hospital: 1 to 64 characters, no slash or control character."
            )
        file = self._file("invited", site)
        if not file.exists():
            facts = {"site": site, "token": secrets.token_urlsafe(24), "at": time.time()}
            write_file(file, json.dumps(facts).encode())
        return str(_facts(file)["token"])

    def enrol(self, enrolment: Enrolment, replace: bool = False) -> Member:
        """Take a hospital in. Raises RefusedError for one not invited, for revoked keys, or when it is enrolled with others."""
        site = enrolment.site
        self._require_invited(enrolment)
        member = Member(enrolment=enrolment, enrolled_at=time.time())
        for gone in self.revocations():
            if gone.touches([member.enrolled], member.flower_public):
                raise RefusedError(gone.sentence())
        known = next((one for one in self.list() if one.name == site), None)
        if known is not None and known.fingerprint == enrolment.fingerprint:
            return known
        if known is not None and not replace:
            raise RefusedError(
                f"{site!r} is enrolled with other keys ({known.fingerprint}): call the hospital, compare fingerprints, and"
                " enrol it with --replace when it made new ones."
            )
        for other in self.list():
            if other.name != site and other.flower_public == member.flower_public:
                raise RefusedError(f"{site!r} brings the keys of {other.name!r}: each hospital needs its own.")
        if known is not None:
            self.revoke(site, "replaced by new keys")
            write_file(self._file("invited", site), json.dumps({"site": site, "token": enrolment.token}).encode())
        self._write("enrolled", member)
        return member

    def introduced(self, site: str, told: Sequence[Any]) -> Member:
        """The member, with its newer keys when `told` (a message's introductions) leads to them; what is learnt is kept.

        Raises RefusedError for a revoked or unknown site, DocumentError and SignatureError for statements that do not hold.
        """
        member = self.get(site)
        if not told:
            return member
        chain = tuple(rotation.extended(member.enrolled, member.successions, rotation.read(told), site))
        if chain == member.successions:
            return member
        newer = member.model_copy(update={"successions": chain})
        for gone in self.revocations():
            if gone.touches(newer.generations):
                raise RefusedError(gone.sentence())
        self._write("keys replaced", newer)
        return newer

    def revoke(self, site: str, reason: str) -> Revocation:
        """Refuse a hospital's keys from now on, and void its invitation. Raises RefusedError for an unknown name."""
        if not reason.strip():
            raise DocumentError("A revocation needs a reason: give one with --reason.")
        gone = Revocation(member=self.get(site), at=time.time(), reason=reason.strip()[:300])
        self._note("revoked", gone.member, reason=gone.reason)
        # this file alone makes it effective (`list` leaves out who stands in it); the rest is tidying
        place = self.folder / "revoked" / f"{hashlib.sha256(gone.member.signing_public).hexdigest()[:16]}.json"
        write_file(place, gone.model_dump_json(indent=1).encode() + b"\n")
        self._file("members", site).unlink(missing_ok=True)
        self._file("invited", site).unlink(missing_ok=True)
        return gone

    def revocations(self) -> list[Revocation]:
        """Every revocation, oldest first. Raises DocumentError for a damaged file: nobody is let in by damage."""
        found = []
        for file in (self.folder / "revoked").glob("*.json"):
            try:
                found.append(Revocation.model_validate_json(file.read_bytes()))
            except (OSError, ValidationError):
                raise DocumentError(f"{file} is damaged: restore it from your copy.") from None
        return sorted(found, key=lambda gone: gone.at)

    def list(self) -> list[Member]:
        """Every enrolled hospital that is not revoked, by name. Raises DocumentError for a damaged file."""
        gone = {one.member.enrolment.signature for one in self.revocations()}
        found = [_member(file) for file in (self.folder / "members").glob("*.json")]
        return sorted((one for one in found if one.enrolment.signature not in gone), key=lambda member: member.name)

    def get(self, site: str) -> Member:
        """One enrolled hospital. Raises RefusedError for an unknown or revoked name, with the reason."""
        file, gone = self._file("members", site), self.revocations()
        member = _member(file) if file.exists() else None
        if member is not None and member.enrolment.signature not in {one.member.enrolment.signature for one in gone}:
            return member
        for one in reversed(gone):
            if one.member.name == site:
                raise RefusedError(one.sentence())
        raise RefusedError(
            f"{site!r} is not enrolled: send it an invitation, then `fedpacs coordinator enrol` its answer."
        )

    def remove(self, site: str) -> None:
        """Take a hospital out, enrolled or only invited, and void its invitation. Raises RefusedError for an unknown name."""
        if not self._file("invited", site).exists() or self._file("members", site).exists():
            self._note("removed", self.get(site))
        self._file("members", site).unlink(missing_ok=True)
        self._file("invited", site).unlink(missing_ok=True)

    def revision(self) -> tuple[int, str]:
        """How many changes the roster has seen, and the digest of its names and fingerprints as they are now."""
        if not (self.folder / "audit.db").exists():
            return 0, _digest(self.list())
        with closing(AuditLog(self.folder / "audit.db")) as log:
            return sum(1 for _ in log.records(CHANGED)), _digest(self.list())

    def _require_invited(self, enrolment: Enrolment) -> None:
        invited = self._file("invited", enrolment.site)
        token = str(_facts(invited)["token"]) if invited.exists() else ""
        if not token or not secrets.compare_digest(token, enrolment.token):
            raise RefusedError(
                f"{enrolment.site!r} brings no invitation of this coordinator: make one with `fedpacs coordinator invite`."
            )

    def _write(self, change: str, member: Member) -> None:
        self._note(change, member)
        write_file(self._file("members", member.name), member.model_dump_json(indent=1).encode() + b"\n")

    def _note(self, change: str, member: Member, **more: str) -> None:
        others = [one for one in self.list() if one.name != member.name]
        stays = change not in ("revoked", "removed")
        with closing(AuditLog(self.folder / "audit.db")) as log:
            log.append(
                CHANGED,
                change=change,
                site=member.name,
                fingerprint=member.fingerprint,
                roster=_digest([*others, member] if stays else others),
                revision=1 + sum(1 for _ in log.records(CHANGED)),
                **more,
            )

    def _file(self, kind: str, site: str) -> Path:
        """The name is hashed into the file name, so that any name is a safe one and no two collide."""
        plain = re.sub(r"[^a-z0-9]+", "-", site.lower()).strip("-")[:40]
        return self.folder / kind / f"{plain}-{hashlib.sha256(site.encode()).hexdigest()[:8]}.json"


def _digest(members: Sequence[Member]) -> str:
    """Hex SHA-256 of who is in it under which keys."""
    body = json.dumps(sorted([one.name, one.fingerprint] for one in members), ensure_ascii=True)
    return hashlib.sha256(b"fedpacs roster v1\x00" + body.encode()).hexdigest()


def _member(file: Path) -> Member:
    try:
        member = Member.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise DocumentError(f"{file} is damaged: enrol that hospital again.") from None
    member.enrolment.verify(str(file))
    for link in member.successions:
        link.verify()
    rotation.follow(member.enrolled, member.successions, member.name)
    return member


def _facts(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found, dict) and {"site", "token"} <= found.keys():
            return found
    except (OSError, ValueError):
        pass
    raise DocumentError(f"{file} is damaged: remove it and invite that hospital again.")
