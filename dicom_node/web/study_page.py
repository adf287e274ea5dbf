"""A study as its data manager may see it: before and after, with the action and rule for every attribute.

The received object is de-identified once more, as the worker did it, and both sides are laid beside each other. This looks over
the wall, so it needs the role data-manager and is written to the audit log; nothing of it is kept on disk.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom import dcmread

from anonymizer import Deidentifier, load_profile
from dicom_node.audit import AuditLog
from dicom_node.comparison import HeaderRow, compare, picture
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, RefusedError
from dicom_node.spool import Spool, StoredInstance
from dicom_node.vault import Vault

_WIDEST = 480


@dataclass(frozen=True)
class Comparison:
    """One instance of a study on both sides. `rules` tells for a tag what was done and by which rule."""

    number: int
    of: int
    rows: list[HeaderRow]
    rules: dict[str, str]
    before: bytes | None  # PNG; None where the pixels cannot be shown
    after: bytes | None
    counts: dict[str, int] = field(default_factory=dict)


class Comparer:
    """Compares studies of one node; for one thread at a time."""

    def __init__(self, config: NodeConfig, vault: Vault) -> None:
        self._config, self._vault = config, vault
        self._deid: Deidentifier | None = None

    def compare(self, study_uid: str, number: int, by: str) -> Comparison:
        """Instance `number` (from 0) of a de-identified study, beside what was received.

        Raises RefusedError when the received bytes are erased or cannot be shown, InputError for an instance that is not there.
        """
        spool = Spool(self._config.storage.spool)
        try:
            instances = self._received(spool, study_uid)
            if not instances:
                raise RefusedError(
                    "What was received of this study is erased already: only what is de-identified remains."
                )
            if not 0 <= number < len(instances):
                raise InputError(
                    f"The study has {len(instances)} instances: ask for one from 0 to {len(instances) - 1}."
                )
            data = spool.read(instances[number])
        finally:
            spool.close()
        audit = AuditLog(self._config.storage.audit)
        try:
            audit.append("study.compared", study=study_uid, instance=number, by=by)
        finally:
            audit.close()
        return self._compared(data, number, len(instances))

    def _received(self, spool: Spool, study_uid: str) -> list[StoredInstance]:
        originals = set(self._vault.originals("study", study_uid))
        keys = [study.study_key for study in spool.studies() if study.study_uid in originals]
        return [instance for key in keys for instance in spool.instances(key)]

    def _compared(self, data: bytes, number: int, of: int) -> Comparison:
        outcome = self._deidentifier().deidentify(data)
        if outcome.output is None:
            raise RefusedError(f"This instance is set aside ({outcome.reason}): it has no other side.")
        before, after = dcmread(io.BytesIO(data), force=True), dcmread(io.BytesIO(outcome.output))
        rows = compare(before, after)
        rules = {f"({a.tag[:4]},{a.tag[4:]})".upper(): f"{a.action}: {a.rule}" for a in outcome.actions}
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.change] = counts.get(row.change, 0) + 1
        return Comparison(number, of, rows, rules, _picture(before), _picture(after), counts)

    def _deidentifier(self) -> Deidentifier:
        if self._deid is None:
            profile = load_profile(self._config.deid.profile)
            self._deid = Deidentifier(profile, key=self._vault.pseudonym_key, uid_root=self._config.deid.uid_root)
        return self._deid


def _picture(data: Any) -> bytes | None:
    if "PixelData" not in data:
        return None
    show: Callable[..., bytes] = picture
    try:
        return show(data, _WIDEST)
    except Exception:  # noqa: BLE001 - pydicom's decoders raise what they like; a page without its picture is still a page
        return None
