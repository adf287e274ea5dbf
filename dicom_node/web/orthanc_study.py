"""What the node knows of one study of Orthanc, for the plugin's page; and its patient's opt-out.

The patient's number is read from Orthanc when it is needed and handed to the opt-out at once; it is in no answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, RefusedError
from dicom_node.optout import OptOuts, opt_in, opt_out
from dicom_node.orthanc_reader.client import GoneError, OrthancStudy
from dicom_node.orthanc_reader.connect import open_client
from dicom_node.spool import study_key
from dicom_node.vault import Vault
from dicom_node.web.view import NodeView


@dataclass(frozen=True)
class StudyState:
    """States: unknown, waiting, receiving, complete, eligible, excluded, quarantined, withdrawn (docs/orthanc.md)."""

    orthanc_id: str
    state: str
    reason: str = ""
    patient_excluded: bool = False
    rounds: int = 0


def fetch(config: NodeConfig, orthanc_id: str) -> OrthancStudy | None:
    """The study as Orthanc shows it, None when it has none. Blocks; raises UnreachableError, ConfigError, RefusedError."""
    if not config.orthanc.url:
        raise RefusedError(f"{config.path}: [orthanc] url is not set, so this node follows no Orthanc; set it.")
    client = open_client(config)
    try:
        return client.study(orthanc_id)
    except GoneError:
        return None
    finally:
        client.close()


def state(view: NodeView, vault: Vault, optouts: OptOuts, orthanc_id: str, study: OrthancStudy | None) -> StudyState:
    """Where the study stands, from ledger, spool and catalogue."""
    if study is None:
        return StudyState(orthanc_id, "unknown", "Orthanc has no such study")
    excluded = optouts.contains(study.patient_id)
    key = study_key(study.study_uid, study.patient_id)
    row = view.spool.db.execute("SELECT state, reason FROM studies WHERE study_key = ?", (key,)).fetchone()
    if row is None:
        entry = view.ledger.get(orthanc_id) if view.ledger else None
        return StudyState(orthanc_id, "waiting" if entry else "unknown", entry.reason if entry else "", excluded)
    pseudonyms = vault.pseudonyms("study", study.study_uid)
    record = view.catalogue.study(pseudonyms[0]) if pseudonyms else None
    if row[0] in ("deidentified", "excluded") and record is not None:
        return StudyState(
            orthanc_id, record.state, record.reason, excluded, len(view.catalogue.rounds_of(record.study_uid))
        )
    return StudyState(orthanc_id, str(row[0]), str(row[1]), excluded)


def exclude(config: NodeConfig, orthanc_id: str, by: str) -> int:
    """Opt the study's patient out, for all studies past and future; -> how many studies were withdrawn."""
    return opt_out(config, _patient(config, orthanc_id), by)


def include(config: NodeConfig, orthanc_id: str, by: str) -> int:
    """Take the opt-out back; -> how many studies are eligible again."""
    return opt_in(config, _patient(config, orthanc_id), by)


def _patient(config: NodeConfig, orthanc_id: str) -> str:
    study = fetch(config, orthanc_id)
    if study is None:
        raise InputError("Orthanc has no such study; open the page again from the study itself.")
    return study.patient_id
