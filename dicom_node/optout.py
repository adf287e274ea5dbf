"""Patients who do not take part: kept by keyed hash of their Patient ID, honoured for studies past and future."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.database import connect
from dicom_node.errors import InputError
from dicom_node.records import Catalogue, migrations
from dicom_node.vault import Vault


@dataclass(frozen=True)
class OptOut:
    """``token`` is the keyed hash of the Patient ID; whoever lacks the vault key cannot tell whose it is."""

    token: str
    at: float
    by: str


class OptOuts:
    """The opt-outs table of catalogue.db."""

    def __init__(self, catalogue: Path, vault: Vault) -> None:
        self._db, self._vault = connect(catalogue, migrations), vault

    def close(self) -> None:
        self._db.close()

    def contains(self, patient_id: str) -> bool:
        token = self._vault.token("opt-out", patient_id)
        return self._db.execute("SELECT 1 FROM optouts WHERE token = ?", (token,)).fetchone() is not None

    def list(self) -> list[OptOut]:
        return [
            OptOut(row["token"], row["at"], row["by"]) for row in self._db.execute("SELECT * FROM optouts ORDER BY at")
        ]

    def _insert(self, patient_id: str, by: str) -> str:
        token = self._vault.token("opt-out", patient_id)
        self._db.execute("INSERT OR IGNORE INTO optouts VALUES(?, ?, ?)", (token, time.time(), by))
        return token

    def _delete(self, patient_id: str) -> tuple[str, bool]:
        token = self._vault.token("opt-out", patient_id)
        return token, self._db.execute("DELETE FROM optouts WHERE token = ?", (token,)).rowcount > 0


def opt_out(config: NodeConfig, patient_id: str, by: str) -> int:
    """Exclude a patient from now on; returns how many catalogued studies were withdrawn. Raises InputError when empty."""
    patient_id = _checked(patient_id)
    vault = Vault.open(config)
    optouts, catalogue, audit = (
        OptOuts(config.storage.catalogue, vault),
        Catalogue(config.storage.catalogue),
        AuditLog(config.storage.audit),
    )
    try:
        token = optouts._insert(patient_id, by)
        withdrawn = sum(catalogue.withdraw_patient(name) for name in vault.pseudonyms("patient", patient_id))
        audit.append("patient.optout", token=token[:16], studies_withdrawn=withdrawn, by=by)
        return withdrawn
    finally:
        for part in (optouts, catalogue, audit, vault):
            part.close()


def opt_in(config: NodeConfig, patient_id: str, by: str) -> int:
    """Take an opt-out back; returns how many studies became eligible again. Raises InputError when there was none."""
    patient_id = _checked(patient_id)
    vault = Vault.open(config)
    optouts, catalogue, audit = (
        OptOuts(config.storage.catalogue, vault),
        Catalogue(config.storage.catalogue),
        AuditLog(config.storage.audit),
    )
    try:
        token, existed = optouts._delete(patient_id)
        if not existed:
            raise InputError("That Patient ID has not opted out: see `fedpacs node optout list`.")
        readmitted = sum(catalogue.readmit_patient(name) for name in vault.pseudonyms("patient", patient_id))
        audit.append("patient.optin", token=token[:16], studies_readmitted=readmitted, by=by)
        return readmitted
    finally:
        for part in (optouts, catalogue, audit, vault):
            part.close()


def _checked(patient_id: str) -> str:
    if not patient_id.strip():
        raise InputError("The Patient ID is empty: give it as the PACS shows it.")
    return patient_id.strip()
