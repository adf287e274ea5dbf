"""`fedpacs project`: write and sign a project; read it in plain words, approve it, take the approval back."""

from __future__ import annotations

import re
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError

app = typer.Typer(help="Projects: write, sign, read, approve, reject, withdraw.", no_args_is_help=True)
FileOrDigest = Annotated[
    str, typer.Argument(metavar="FILE|DIGEST", help="A project file, or the beginning of a digest known here.")
]
By = Annotated[str, typer.Option("--by", help="Name of the person who decides.")]
Role = Annotated[str, typer.Option("--role", help="Their role, e.g. data-protection officer.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Draft to write (TOML).")],
    name: Annotated[str, typer.Option("--name", help="The project's name.")] = "chest-xray",
) -> None:
    """Write a commented draft to edit and sign."""
    from aggregator_client.draft import write
    from aggregator_client.errors import ProjectError

    if file.exists():
        raise ProjectError(f"{file} exists already: choose another name, or edit that file.")
    try:
        file.write_text(write(name), encoding="utf-8")
    except OSError as error:
        raise ProjectError(f"{file} cannot be written ({error.strerror}): choose another place.") from None
    print(f"Wrote {file}. Edit it, then: fedpacs project sign {file} --coordinator DIR --out project.json")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The draft (TOML).")],
    out: Annotated[Path, typer.Option("--out", help="File to write for the hospitals (JSON).")],
    coordinator: Annotated[
        Path, typer.Option("--coordinator", help="The coordinator's folder.", envvar="FEDPACS_COORDINATOR")
    ] = Path(),
    references: Annotated[
        list[Path] | None,
        typer.Option("--reference", help="Reference studies of an ensemble: de-identified DICOM files or folders."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a draft with the coordinator's key; what hospitals receive, show and approve."""
    from aggregator_client.coordinator import settings
    from aggregator_client.coordinator.reference import adopt
    from aggregator_client.coordinator.strategies import choose
    from aggregator_client.decentral.settings import ALGORITHM as DECENTRALISED
    from aggregator_client.invitations import write_file
    from aggregator_client.project import ProjectDocument, read_draft, sign, validated
    from trainer import networks

    config = settings.load(coordinator)
    draft, keys = read_draft(file), config.keys()
    # a network or an algorithm that cannot be made is found here, not at a site
    networks.build(draft.network.name, draft.network.args)
    if draft.algorithm.name != DECENTRALISED:  # which no coordinator runs
        choose(draft.algorithm.name, draft.algorithm.args)
    who = {"name": config.name, **keys.public_base64()}
    values = {**draft.model_dump(), "coordinator": who}
    if references:
        values["reference"] = {"digests": adopt(config.root / "reference", references)}
    if draft.privacy.summed and not draft.privacy.secure_aggregation.sites:
        enrolled = {one.name: one.enrolment.signing_public for one in config.members.list()}
        values["privacy"]["secure_aggregation"]["sites"] = enrolled
    if draft.algorithm.name == DECENTRALISED and not draft.peers.sites:
        values["peers"]["sites"] = {
            one.name: {"signing_public": one.enrolment.signing_public, "sealing_public": one.enrolment.sealing_public}
            for one in config.members.list()
        }
    document = validated(ProjectDocument, values, f"project draft {file}")
    signed = sign(document, keys.signing)
    write_file(out, signed.file_bytes())
    out.chmod(0o644)
    if as_json:
        print_json({"file": str(out), "digest": signed.digest, "fingerprint": keys.fingerprint})
        return
    print(f"Signed {document.name} version {document.version} as {out}.\nDigest:      {signed.digest}")
    print(f"Fingerprint: {keys.fingerprint} (of your keys; hospitals see it too)")


@app.command()
def show(project: FileOrDigest, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a project in plain words; at a hospital also how many patients qualify and what changed since approval."""
    from aggregator_client.project import read_draft
    from aggregator_client.sheet import plain_words

    node = _node_or_none(config)
    if project.endswith(".toml"):
        draft = read_draft(Path(project))
        sheet = plain_words(draft)
        print_json(
            {"signed": False, "project": draft.model_dump(mode="json"), "plain_words": sheet}
        ) if as_json else print(sheet, end="")
        return
    signed = resolve(project, node)
    facts: dict[str, Any] = {"signed": True, "digest": signed.digest, "project": signed.payload}
    facts |= {
        "fingerprint": signed.document.coordinator.fingerprint,
        "plain_words": plain_words(signed.document, signed.digest),
    }
    if node is not None:
        facts |= _at_this_hospital(node, signed)
    if as_json:
        print_json(facts)
        return
    print(facts["plain_words"], end="")
    if node is not None:
        _print_hospital(facts)


@app.command()
def check(
    project: FileOrDigest,
    config: ConfigOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for check.html, the same with pictures.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how many patients here pass the project's data contract and why the others fail; with --out in pictures."""
    from aggregator_client.contract_check import check as check_contract
    from aggregator_client.contract_check import landmarks
    from aggregator_client.contract_page import page
    from aggregator_client.invitations import write_file
    from aggregator_client.project import read_draft
    from trainer.evaluation.subgroups import SMALLEST_CELL

    node = find_config(config)
    draft = read_draft(Path(project)) if project.endswith(".toml") else resolve(project, node).document
    found = check_contract(node, draft)
    file = None
    if out is not None:
        file = out / "check.html"
        write_file(file, page(draft, found, node.storage.dataset).encode())
    facts = {
        "project": draft.name,
        "version": draft.version,
        "passing": len(found.passing),
        "failing": len(found.failing),
        "reasons": [asdict(reason) for reason in found.reasons],
        **asdict(found.readiness),
        "landmarks": landmarks(found, max(SMALLEST_CELL, draft.cohort_rule.min_patients)),
        "page": None if file is None else str(file),
    }
    if as_json:
        print_json(facts)
        return
    print(f"{facts['passing']} of {facts['passing'] + facts['failing']} patients pass {draft.name} {draft.version}.")
    rows = [(reason.why, len(reason.studies), len(reason.patients)) for reason in found.reasons]
    if rows:
        print_table("Why the others fail", ("reason", "studies", "patients"), rows)
    for fault in found.readiness.faults:
        print(f"Not enough: {fault}")
    if file is not None:
        print(f"Pictures: {file}")


@app.command("list")
def list_projects(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the projects known here and what was decided about each."""
    from dicom_node.projects import Projects

    node = find_config(config)
    with closing(Projects(node.storage.catalogue)) as projects:
        known = projects.list()
    if as_json:
        shown = [{key: value for key, value in asdict(one).items() if key != "document"} for one in known]
        print_json({"projects": shown})
        return
    rows = [
        (one.digest[:12], one.name, one.version, one.state, one.decided_by, one.role, _when(one.decided_at), one.reason)
        for one in known
    ]
    print_table("Projects", ("digest", "name", "version", "state", "by", "role", "when", "reason"), rows)


@app.command()
def approve(project: FileOrDigest, by: By, config: ConfigOption = None, role: Role = "", reason: Reason = "") -> None:
    """Approve exactly this file: the node takes part from now on."""
    _decide(project, "approved", by, role, reason, config)


@app.command()
def reject(project: FileOrDigest, by: By, config: ConfigOption = None, role: Role = "", reason: Reason = "") -> None:
    """Decline a project."""
    _decide(project, "rejected", by, role, reason, config)


@app.command()
def suspend(project: FileOrDigest, by: By, config: ConfigOption = None, role: Role = "", reason: Reason = "") -> None:
    """Take no part until it is approved again."""
    _decide(project, "suspended", by, role, reason, config)


@app.command()
def withdraw(project: FileOrDigest, by: By, config: ConfigOption = None, role: Role = "", reason: Reason = "") -> None:
    """Take an approval back; no further round uses this hospital's data."""
    _decide(project, "withdrawn", by, role, reason, config)


def _decide(project: str, state: str, by: str, role: str, reason: str, path: Path | None) -> None:
    from aggregator_client.approvals import Decision, decide

    node = find_config(path)
    signed = resolve(project, node)
    record = decide(node, signed, Decision(signed.digest, state, by, role, reason))
    print(f"{record.name} version {record.version} (digest {record.digest[:12]}) is {record.state} here, by {by}.")


def resolve(project: str, node: NodeConfig | None) -> Any:
    """The signed project named by a file or by the beginning of a digest known to this node."""
    from aggregator_client.project import SignedProject
    from dicom_node.projects import Projects

    file = Path(project)
    if node is not None and not file.exists() and re.fullmatch("[0-9a-f]{6,64}", project):
        with closing(Projects(node.storage.catalogue)) as projects:
            return SignedProject.read(projects.find(project).document)
    return SignedProject.read(file)


def _node_or_none(path: Path | None) -> NodeConfig | None:
    """A coordinator reads projects too and has no node: only a configuration that was named must exist."""
    try:
        return find_config(path)
    except ConfigError:
        if path is not None:
            raise
        return None


def _at_this_hospital(node: NodeConfig, signed: Any) -> dict[str, Any]:
    from aggregator_client import approvals
    from aggregator_client.contract import at_hospital
    from aggregator_client.errors import FederationError

    record = approvals.offer(node, signed)
    earlier = approvals.differences(node, signed)
    try:
        approvals.require_known_coordinator(node, signed)
        stranger = ""
    except FederationError as error:
        stranger = str(error)
    return {
        "state": record.state,
        "decided_by": record.decided_by,
        "coordinator_problem": stranger,
        "changes": None if earlier is None else {"since": earlier[0], "what": earlier[1]},
        "cohort": asdict(at_hospital(node, signed.document)),
        "privacy": _forecast(node, signed.document),
    }


def _forecast(node: NodeConfig, document: Any) -> dict[str, Any] | None:
    """What one whole run would spend of a patient's budget here; None without differential privacy."""
    from aggregator_client import private
    from aggregator_client.errors import RefusedError

    terms = document.privacy.dp
    if terms is None:
        return None
    facts = {"allowed": terms.epsilon, "delta": terms.delta, "unit": terms.unit}
    try:
        return facts | {"epsilon": private.forecast(node, document), "problem": ""}
    except RefusedError as error:
        return facts | {"epsilon": None, "problem": str(error)}


def _print_hospital(facts: dict[str, Any]) -> None:
    cohort = facts["cohort"]
    print("\nAt this hospital")
    print(f"  - It is {facts['state']} here{' by ' + facts['decided_by'] if facts['decided_by'] else ''}.")
    print(
        f"  - {cohort['patients']} patients with {cohort['studies']} studies qualify now; images: {_listed(cohort['images'])}."
    )
    if cohort["failures"]:
        print(f"  - Studies that do not fit: {_listed(cohort['failures'])}.")
    if (privacy := facts["privacy"]) is not None:
        print(f"  - {_privacy_line(privacy)}")
    for fault in cohort["faults"]:
        print(f"  - Not enough: {fault}")
    if facts["changes"]:
        print(f"  - CHANGED since the version approved here ({facts['changes']['since'][:12]}):")
        for change in facts["changes"]["what"]:
            print(f"      {change}")
    if facts["coordinator_problem"]:
        print(f"  - WARNING: {facts['coordinator_problem']}")


def _privacy_line(facts: dict[str, Any]) -> str:
    if facts["epsilon"] is None:
        return f"Privacy: {facts['problem']}"
    short = " The later rounds would be refused." if facts["epsilon"] > facts["allowed"] else ""
    return (
        f"All rounds would bring a patient's privacy loss to epsilon {facts['epsilon']:.2f} of {facts['allowed']:g}"
        f" at delta {facts['delta']:g}.{short}"
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{count} {name}" if not name[:1].isdigit() else f"{count} × {name}" for name, count in counts.items()
    )


def _when(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
