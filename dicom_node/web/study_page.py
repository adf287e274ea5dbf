"""A study as its data manager may see it: before and after, with the action and rule for every attribute.

The received object is de-identified once more, as the worker did it, and both sides are laid beside each other. A head lost its
face together with its series: of it the instance in the dataset is shown, and the surface of the whole series on both sides.
This looks over the wall, so it needs the role data-manager and is written to the audit log; nothing of it is kept on disk.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import dcmread

from anonymizer import Deidentifier, load_profile
from anonymizer.errors import PixelError
from dicom_node.audit import AuditLog
from dicom_node.comparison import HeaderRow, compare, picture
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, RefusedError
from dicom_node.records import Catalogue
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
    head: bool = False  # its series has a surface to be seen on both sides


class Comparer:
    """Compares studies of one node; for one thread at a time."""

    def __init__(self, config: NodeConfig, vault: Vault) -> None:
        self._config, self._vault = config, vault
        self._deid: Deidentifier | None = None

    def compare(self, study_uid: str, number: int, by: str) -> Comparison:
        """Instance `number` (from 0) of a de-identified study, beside what was received.

        Raises RefusedError when the received bytes are erased or cannot be shown, InputError for an instance that is not there.
        """
        with closing(Spool(self._config.storage.spool)) as spool:
            instances = self._received(spool, study_uid)
            data = spool.read(_chosen(instances, number))
        self._note(study_uid, number, by, "instance")
        return self._compared(study_uid, data, number, len(instances))

    def surface(self, study_uid: str, number: int, by: str) -> bytes:
        """The surface of instance `number`'s whole series as PNG, as received (above) and de-identified (below).

        Raises RefusedError when the series has no surface to be drawn or is not there any more on both sides.
        """
        from anonymizer.faces.preview import previews

        with closing(Spool(self._config.storage.spool)) as spool:
            instances = self._received(spool, study_uid)
            series = _chosen(instances, number).series_uid
            taken = self._dataset(study_uid)
            pairs = [
                (instance, taken[uid])
                for instance in instances
                if instance.series_uid == series and (uid := self._deidentifier().uid(instance.sop_uid)) in taken
            ]
            self._note(study_uid, number, by, "surface")
            try:
                before = [partial(spool.read, instance) for instance, _ in pairs]
                return previews(before, [path.read_bytes for _, path in pairs])[0]
            except PixelError as error:
                raise RefusedError(str(error)) from error

    def _note(self, study_uid: str, number: int, by: str, what: str) -> None:
        with closing(AuditLog(self._config.storage.audit)) as audit:
            audit.append("study.compared", study=study_uid, instance=number, by=by, what=what)

    def _dataset(self, study_uid: str) -> dict[str, Path]:
        """{SOP Instance UID: file} of a study in the dataset."""
        storage = self._config.storage
        with closing(Catalogue(storage.catalogue, storage.dataset, readonly=True)) as catalogue:
            return {one.sop_uid: storage.dataset / one.path for one in catalogue.instances(study_uid)}

    def _received(self, spool: Spool, study_uid: str) -> list[StoredInstance]:
        originals = set(self._vault.originals("study", study_uid))
        keys = [study.study_key for study in spool.studies() if study.study_uid in originals]
        return [instance for key in keys for instance in spool.instances(key)]

    def _compared(self, study_uid: str, data: bytes, number: int, of: int) -> Comparison:
        outcome = self._deidentifier().deidentify(data)
        if outcome.output is None:
            raise RefusedError(f"This instance is set aside ({outcome.reason}): it has no other side.")
        output = self._without_face(study_uid, outcome.sop_instance_uid) if outcome.face else outcome.output
        before, after = dcmread(io.BytesIO(data), force=True), dcmread(io.BytesIO(output))
        rows = compare(before, after)
        rules = {f"({a.tag[:4]},{a.tag[4:]})".upper(): f"{a.action}: {a.rule}" for a in outcome.actions}
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.change] = counts.get(row.change, 0) + 1
        return Comparison(number, of, rows, rules, _picture(before), _picture(after), counts, bool(outcome.face))

    def _without_face(self, study_uid: str, sop_uid: str) -> bytes:
        path = self._dataset(study_uid).get(sop_uid)
        if path is None:
            raise RefusedError("This instance shows a head and is not in the dataset: its face could not be taken off.")
        return path.read_bytes()

    def _deidentifier(self) -> Deidentifier:
        if self._deid is None:
            profile = load_profile(self._config.deid.profile)
            root = self._config.deid.uid_root
            self._deid = Deidentifier(profile, key=self._vault.pseudonym_key, uid_root=root, series=True)
        return self._deid


def _chosen(instances: list[StoredInstance], number: int) -> StoredInstance:
    if not instances:
        raise RefusedError("What was received of this study is erased already: only what is de-identified remains.")
    if not 0 <= number < len(instances):
        raise InputError(f"The study has {len(instances)} instances: ask for one from 0 to {len(instances) - 1}.")
    return instances[number]


def _picture(data: Any) -> bytes | None:
    if "PixelData" not in data:
        return None
    show: Callable[..., bytes] = picture
    try:
        return show(data, _WIDEST)
    except Exception:  # noqa: BLE001 - pydicom's decoders raise what they like; a page without its picture is still a page
        return None
