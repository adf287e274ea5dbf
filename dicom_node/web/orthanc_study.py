"""What the node knows of one study of Orthanc, for the plugin's page; and its patient's opt-out.

The patient's number is read from Orthanc when it is needed and handed to the opt-out at once; it is in no answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, NodeError, RefusedError
from dicom_node.optout import OptOuts, opt_in, opt_out
from dicom_node.orthanc_reader.client import GoneError, OrthancStudy
from dicom_node.orthanc_reader.connect import open_clients
from dicom_node.results import Returned
from dicom_node.spool import study_key
from dicom_node.vault import Vault
from dicom_node.web.view import NodeView


@dataclass(frozen=True)
class StudyState:
    """States: unknown, withheld, waiting, receiving, complete, eligible, excluded, quarantined, withdrawn (docs/orthanc.md).

    rounds: in how many rounds of training it was used. study_uid: the de-identified one, "" before there is one.
    """

    orthanc_id: str
    state: str
    reason: str = ""
    patient_excluded: bool = False
    rounds: int = 0
    study_uid: str = ""
    results: list[Returned] = field(default_factory=list)


def fetch(config: NodeConfig, orthanc_id: str) -> OrthancStudy | None:
    """The study as the first Orthanc that has it shows it, None when none has.

    Blocks. Raises RefusedError when the node follows no Orthanc; UnreachableError or ConfigError when one that might have the
    study does not answer and no other has it.
    """
    if not config.orthanc.sources:
        raise RefusedError(f"{config.path}: [orthanc] url is not set, so this node follows no Orthanc; set it.")
    silent: NodeError | None = None
    for client in open_clients(config):
        try:
            return client.study(orthanc_id)
        except GoneError:
            pass
        except NodeError as error:
            silent = error
        finally:
            client.close()
    if silent is not None:
        raise silent
    return None


def state(view: NodeView, vault: Vault, optouts: OptOuts, orthanc_id: str, study: OrthancStudy | None) -> StudyState:
    """Where the study stands, from ledger, spool and catalogue."""
    if study is None:
        return StudyState(orthanc_id, "unknown", "Orthanc has no such study")
    excluded = optouts.contains(study.patient_id)
    key = study_key(study.study_uid, study.patient_id)
    results = view.results.of_study(key)
    row = view.spool.db.execute("SELECT state, reason FROM studies WHERE study_key = ?", (key,)).fetchone()
    if row is None:
        entry = next(filter(None, (ledger.get(orthanc_id) for ledger in view.ledgers)), None)
        if entry is None:
            return StudyState(orthanc_id, "unknown", "", excluded)
        return StudyState(orthanc_id, "withheld" if entry.withheld else "waiting", entry.reason, excluded)
    pseudonyms = vault.pseudonyms("study", study.study_uid)
    record = view.catalogue.study(pseudonyms[0]) if pseudonyms else None
    if row[0] in ("deidentified", "excluded") and record is not None:
        rounds = len(view.catalogue.rounds_of(record.study_uid))
        return StudyState(orthanc_id, record.state, record.reason, excluded, rounds, record.study_uid, results)
    return StudyState(orthanc_id, str(row[0]), str(row[1]), excluded, results=results)


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
