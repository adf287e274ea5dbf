"""The commands that replace and revoke keys: `fedpacs federation rotate|revoke` and `fedpacs coordinator rotate|revoke`."""

from __future__ import annotations

import getpass
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json
from dicom_node.config import NodeConfig

CompromisedOption = Annotated[
    bool,
    typer.Option("--compromised", help="The old keys may be in other hands: trust nothing they sign, begin anew."),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept, and told to whoever is refused.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decides [default: the user of this system].")]
DirOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.", envvar="FEDPACS_COORDINATOR")
]


def rotate_node(
    config: ConfigOption = None,
    compromised: CompromisedOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Enrolment to write, with --compromised.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also when a running project names the old key.")] = False,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace this node's signing and sealing keys. The old key introduces the new one to the coordinator by itself.

    With --compromised the new keys are strangers: send the enrolment, and ask the coordinator to revoke the old ones.
    """
    from aggregator_client import invitations, rotation
    from aggregator_client.approvals import audit, invitation_of
    from aggregator_client.errors import DocumentError
    from aggregator_client.keys import node_keys

    node = find_config(config)
    invitation, before = invitation_of(node), node_keys(node.storage.keys)
    if compromised and out is None:
        raise DocumentError(
            "With --compromised the coordinator needs your new keys: give --out FILE for the enrolment."
        )
    if not anyway and not compromised:
        _require_unnamed(node, before.signing_public)
    who = by or getpass.getuser()
    audit(node, "keys.replacing", fingerprint=before.fingerprint, compromised=compromised, by=who)
    rotation.replace(node.storage.keys, invitation.site, compromised)
    keys = node_keys(node.storage.keys)
    audit(
        node,
        "keys.replaced",
        before=before.fingerprint,
        fingerprint=keys.fingerprint,
        generation=keys.generation,
        compromised=compromised,
        by=who,
    )
    if compromised and out is not None:
        invitations.accept(invitation, keys).write(out)
    if as_json:
        print_json({"generation": keys.generation, "fingerprint": keys.fingerprint, "before": before.fingerprint})
        return
    print(f"The node's keys are replaced (generation {keys.generation}). Fingerprint: {keys.fingerprint}")
    if compromised:
        print(
            f"Send {out} to the coordinator, read the fingerprint to them, approve your projects again, restart the node."
        )
    else:
        print(
            "The coordinator learns of it from the next answer; nothing else is to be done. Copy the key folder again."
        )


def _require_unnamed(node: NodeConfig, signing_public: bytes) -> None:
    """Raises RefusedError when an approved project names the key about to go, as secure aggregation does."""
    from aggregator_client.errors import RefusedError
    from aggregator_client.project import SignedProject
    from dicom_node.projects import Projects

    with closing(Projects(node.storage.catalogue)) as projects:
        approved = [SignedProject.read(one.document) for one in projects.list() if one.state == "approved"]
    naming = [
        one.document.name for one in approved if signing_public in one.document.privacy.secure_aggregation.keys.values()
    ]
    if naming:
        raise RefusedError(
            f"The approved project {naming[0]} names this key for its secure aggregation, and this hospital drops out of it"
            " with another: ask the coordinator to sign a new version afterwards, and give --anyway."
        )


def revoke_coordinator(
    reason: ReasonOption, config: ConfigOption = None, by: ByOption = None, as_json: JsonOption = False
) -> None:
    """Refuse every key of the coordinator from now on, until a new invitation with new keys is accepted."""
    from aggregator_client import trust
    from aggregator_client.approvals import invitation_of
    from dicom_node.audit import AuditLog

    node = find_config(config)
    with closing(AuditLog(node.storage.audit)) as log:
        known = trust.revoke(node, invitation_of(node), reason, by or getpass.getuser(), log)
    if as_json:
        print_json({"revoked": [one.fingerprint for one in known.revoked]})
        return
    print(f"Nothing signed by {known.invitation.coordinator!r} ({known.present.fingerprint}) is used any more.")
    print("To come back: ask for an invitation with new keys, then `fedpacs federation join --replace`.")


def rotate_coordinator(
    folder: DirOption = Path(), compromised: CompromisedOption = False, as_json: JsonOption = False
) -> None:
    """Replace the coordinator's signing and sealing keys; used from the next `run` or `resume` on.

    Hospitals learn of it from the first request. With --compromised they need new invitations, and projects a new signature.
    """
    from aggregator_client import rotation
    from aggregator_client.coordinator import settings
    from aggregator_client.messages import COORDINATOR
    from dicom_node.audit import AuditLog

    config = settings.load(folder)
    before = config.keys()
    with closing(AuditLog(config.root / "audit.db")) as log:
        log.append("keys.replacing", fingerprint=before.fingerprint, compromised=compromised, by=getpass.getuser())
        keys = rotation.replace(config.storage.keys, COORDINATOR, compromised)
        log.append(
            "keys.replaced",
            before=before.fingerprint,
            fingerprint=keys.fingerprint,
            generation=keys.generation,
            compromised=compromised,
            by=getpass.getuser(),
        )
    if as_json:
        print_json({"generation": keys.generation, "fingerprint": keys.fingerprint, "before": before.fingerprint})
        return
    print(f"The coordinator's keys are replaced (generation {keys.generation}). Fingerprint: {keys.fingerprint}")
    print(f"Copy {config.storage.keys} elsewhere again. A run that is going on uses the old keys until it is resumed.")
    if compromised:
        print("Call each hospital: `fedpacs federation revoke`, then a new invitation; sign your projects again.")


def revoke_member(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The hospital whose keys are refused.")],
    reason: ReasonOption,
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Refuse a hospital's keys from now on, also in a round that is going on. What it sent before still verifies."""
    from aggregator_client.coordinator import settings

    members = settings.load(folder).members
    gone = members.revoke(site, reason)
    revision, digest = members.revision()
    if as_json:
        print_json({"site": site, "fingerprint": gone.member.fingerprint, "revision": revision, "roster": digest})
        return
    print(f"The keys of {site!r} ({gone.member.fingerprint}) are refused from now on; roster revision {revision}.")
    print(f"To let it back in with new keys: fedpacs coordinator invite {site!r} --out FILE, and compare fingerprints.")
