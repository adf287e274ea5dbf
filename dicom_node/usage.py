"""Which past rounds used a patient: from the catalogue's list of uses, proven by the audit log (left of the wall)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from dicom_node.audit import AuditLog, AuditRecord
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError
from dicom_node.projects import Projects
from dicom_node.records import Catalogue
from dicom_node.records.usage import usage_digest
from dicom_node.vault import Vault

PROVEN, CHANGED, UNPROVEN = "proven", "changed", "unproven"


@dataclass(frozen=True)
class Use:
    """One round that used the patient.

    `proof`: "proven" when the studies listed for the round are those the audit log commits to, "changed" when they are not,
    "unproven" when the round was recorded by a version that did not commit to them. `left`: hex SHA-256 of each byte string that
    left the hospital for this round.
    """

    project: str
    name: str
    round: int
    at: float
    studies: int
    proof: str
    left: tuple[str, ...]


def rounds_of_patient(
    config: NodeConfig, *, by: str, reason: str, patient_id: str = "", pseudonym: str = ""
) -> list[Use]:
    """Every round that used any study of a patient, oldest first. The question is in the audit log before it is answered.

    Raises InputError without a reason, with both or neither identifier, or for a patient nothing is known of.
    """
    patient_id, pseudonym = patient_id.strip(), pseudonym.strip()
    if bool(patient_id) == bool(pseudonym):
        raise InputError("Say who is meant: give --patient with the Patient ID, or --pseudonym, and not both.")
    if not reason.strip():
        raise InputError("The question needs a reason: give one with --reason.")
    names = [pseudonym]
    if patient_id:
        with closing(Vault.open(config)) as vault:
            names = vault.pseudonyms("patient", patient_id)
    with closing(Catalogue(config.storage.catalogue)) as catalogue, closing(AuditLog(config.storage.audit)) as log:
        studies = [one.study_uid for one in catalogue.studies() if one.patient in names]
        uses = _uses(config, catalogue, log, studies)
        log.append(
            "patient.rounds_asked",
            pseudonyms=names if studies else len(names),
            studies=len(studies),
            rounds=len(uses),
            by=by,
            reason=reason.strip(),
        )
    if not studies:
        raise InputError("No study of that patient is or was catalogued here: check the identifier.")
    return uses


def _uses(config: NodeConfig, catalogue: Catalogue, log: AuditLog, studies: Sequence[str]) -> list[Use]:
    found: dict[tuple[str, int], int] = {}
    for study in studies:
        for key in catalogue.rounds_of(study):
            found[key] = found.get(key, 0) + 1
    trained: dict[tuple[str, int], AuditRecord] = {}
    for record in log.records("round.trained"):  # the last of a round counts: it commits to all studies up to then
        trained[str(record.facts.get("project")), int(record.facts.get("round", 0))] = record
    left: dict[tuple[str, int], list[str]] = {}
    for record in log.records("egress"):
        key = str(record.facts.get("project")), int(record.facts.get("round", 0))
        if record.facts.get("what") not in ("refused", "metrics"):
            left.setdefault(key, []).append(str(record.facts.get("sha256")))
    with closing(Projects(config.storage.catalogue)) as projects:
        names = {one.digest: f"{one.name} {one.version}" for one in projects.list()}
    made = []
    for (project, number), count in found.items():
        at, proof = _proof(catalogue, trained.get((project, number)), project, number)
        made.append(
            Use(project, names.get(project, ""), number, at, count, proof, tuple(left.get((project, number), ())))
        )
    return sorted(made, key=lambda use: (use.at, use.project, use.round))


def _proof(catalogue: Catalogue, record: AuditRecord | None, project: str, number: int) -> tuple[float, str]:
    """(when, whether the list of the round's studies is the one its audit record commits to)."""
    if record is None:
        return 0.0, CHANGED
    if "used" not in record.facts:
        return record.at, UNPROVEN
    same = record.facts["used"] == usage_digest(catalogue.used_in(project, number))
    return record.at, PROVEN if same else CHANGED
