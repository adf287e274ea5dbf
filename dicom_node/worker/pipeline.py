"""Takes one complete study across the wall: read, de-identify, judge, file, record, audit. Safe to kill and to repeat.

Everything is written in an order in which a kill at any point leaves work that the next pass finishes with the same
result: files (durable, renamed whole) → crosswalk → catalogue (one transaction) → audit → the spool's state. Repeating a
pass writes the same bytes to the same names, and the catalogue says whether anything changed.

An instance that cannot be read, cannot be proven clean or breaks the anonymizer is set aside in quarantine/ with its
reason; the rest of the study goes on without it, and the study's record says how many are missing and why. A study of
which nothing is left, or whose instances disagree about the patient, is quarantined as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.errors import StorageError
from dicom_node.labels import SOURCE
from dicom_node.optout import OptOuts
from dicom_node.policy import excluded_because
from dicom_node.records import Catalogue, LabelRecord, StudyRecord
from dicom_node.spool import Spool, StoredInstance, StudyRow
from dicom_node.vault import Vault
from dicom_node.worker.assemble import Clean, Crossing, instance_record, study_record, with_earlier
from dicom_node.worker.heads import Heads
from dicom_node.worker.limits import SECONDS, SECONDS_PER_MB, time_limit
from dicom_node.worker.output import StudyWriter, quarantine_file, release_quarantine

OPTED_OUT = "the patient opted out"
_READ_ATTEMPTS = 3


class Deid(Protocol):
    """What the pipeline needs of anonymizer.Deidentifier."""

    def deidentify(self, data: bytes) -> Any: ...

    def uid(self, original: str) -> str: ...


@dataclass(frozen=True)
class Verdict:
    """Where a study ended: deidentified, excluded or quarantined, with the reason ("" for none)."""

    state: str
    reason: str = ""


class Pipeline:
    """The parts of a node that one worker process needs; for one thread."""

    def __init__(self, config: NodeConfig, deid: Deid, vault: Vault, spool: Spool) -> None:
        self.config, self.deid, self.vault, self.spool = config, deid, vault, spool
        self.catalogue = Catalogue(config.storage.catalogue, config.storage.dataset)
        self.optouts = OptOuts(config.storage.catalogue, vault)
        self.audit = AuditLog(config.storage.audit)
        self.seconds = SECONDS  # for one object, and more for a large one

    def close(self) -> None:
        for part in (self.catalogue, self.optouts, self.audit):
            part.close()

    def process(self, study: StudyRow, attempt: int = 1, progress: Callable[[], None] = lambda: None) -> Verdict:
        """Take the study as it stands in the spool through; raises StorageError when it should be tried again."""
        if self.optouts.contains(study.patient_id):
            return self._opted_out(study)
        writer = StudyWriter(self.config.storage.dataset, self.deid.uid(study.study_uid))
        try:
            crossing = self._cross(study, writer, attempt, progress)
            if len({item.patient for item in crossing.clean}) > 1:
                return self._nothing(study, writer, "its instances disagree about the patient")
            if not crossing.clean:
                return self._nothing(study, writer, crossing.reason or "it holds no instance")
            writer.commit()
        finally:
            writer.abandon()
        return self._record(study, writer, crossing)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _cross(self, study: StudyRow, writer: StudyWriter, attempt: int, progress: Callable[[], None]) -> Crossing:
        crossing, aside = Crossing(), set()
        heads = Heads(self.config.storage.spool / "faces" / study.study_key)
        for instance in self.spool.instances(study.study_key):
            progress()
            data, reason = self._read(instance, attempt)
            outcome, reason = self._deidentify(data, reason)
            if outcome is None:
                crossing.set_aside[reason] += 1
                aside.add(instance.id)
                quarantine_file(self.config.storage.quarantine, study.study_key, instance.id, data, reason)
                continue
            if getattr(outcome, "face", ""):
                heads.add(instance, outcome)
            else:
                crossing.clean.append(_written(writer, outcome, outcome.output, outcome.facts))
        earlier = {i.series_uid for i in self.spool.instances(study.study_key, "purged")}
        for head in heads.defaced(earlier, self.seconds, progress):
            if head.reason:
                crossing.set_aside[head.reason] += 1
                aside.add(head.instance.id)
                data = self.spool.read(head.instance)
                quarantine_file(self.config.storage.quarantine, study.study_key, head.instance.id, data, head.reason)
            else:
                crossing.clean.append(_written(writer, head.outcome, head.data, head.facts))
        release_quarantine(self.config.storage.quarantine, study.study_key, aside)
        return crossing

    def _read(self, instance: StoredInstance, attempt: int) -> tuple[bytes, str]:
        try:
            return self.spool.read(instance), ""
        except StorageError:
            if attempt < _READ_ATTEMPTS:  # the disk may have hiccuped
                raise
            return b"", "its bytes in the spool are damaged"

    def _deidentify(self, data: bytes, reason: str) -> tuple[Any, str]:
        """(outcome, "") of a clean instance, or (None, why it is set aside)."""
        if reason:
            return None, reason
        try:
            with time_limit(self.seconds + SECONDS_PER_MB * len(data) / 1e6):
                outcome = self.deid.deidentify(data)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a hostile file does to a parser, its study's rest goes on
            # the type alone: the text of an error may quote the data
            return None, f"the anonymizer failed on it ({type(error).__name__})"
        if outcome.status != "ok":
            return None, str(outcome.reason or outcome.status)
        return outcome, ""

    # -- verdicts -----------------------------------------------------------------------------------------------------

    def _record(self, study: StudyRow, writer: StudyWriter, crossing: Crossing) -> Verdict:
        new = [instance_record(item) for item in crossing.clean]
        purged = {self.deid.uid(i.sop_uid) for i in self.spool.instances(study.study_key, "purged")}
        instances = with_earlier(new, self.catalogue.instances(writer.study_uid), purged)
        patient = crossing.clean[0].patient
        # before the opt-out is asked: an opt-out from here on finds the pseudonym and withdraws what we are about to add
        self.vault.remember("patient", study.patient_id, patient)
        self.vault.remember("study", study.study_uid, writer.study_uid)
        if study.accession:
            self.vault.remember("accession", study.accession, writer.study_uid)
        labels = self.spool.labels(study.accession) if study.accession else {}
        judged = study_record(crossing.clean, instances)
        rule = excluded_because(
            self.config.policy,
            judged,
            instances,
            labelled=is_labelled(labels),
            opted_out=self.optouts.contains(study.patient_id),
            burned_in=any(item.facts.get("burned_in") for item in crossing.clean),
        )
        if rule == OPTED_OUT:
            return self._opted_out(study)
        record = study_record(
            crossing.clean,
            instances,
            "excluded" if rule else "eligible",
            "; ".join(filter(None, (rule, crossing.reason))),
        )
        changed = self.catalogue.add_study(record, instances)
        self.catalogue.set_labels([LabelRecord(record.study_uid, n, v, SOURCE) for n, v in labels.items()])
        writer.keep_only(r.path for r in instances)
        self._audit(
            "study.excluded" if rule else "study.deidentified", record, changed, sum(crossing.set_aside.values())
        )
        return Verdict("excluded" if rule else "deidentified", record.reason)

    def _nothing(self, study: StudyRow, writer: StudyWriter, reason: str) -> Verdict:
        """Quarantine the study; what an earlier pass had catalogued of it is taken back."""
        writer.abandon()
        writer.keep_only(())
        earlier = self.catalogue.study(writer.study_uid)
        if earlier is not None:
            self.catalogue.add_study(
                StudyRecord(writer.study_uid, earlier.patient, earlier.modality, state="excluded", reason=reason), []
            )
        self.audit.append("study.quarantined", study=writer.study_uid, reason=reason, instances=study.instances)
        return Verdict("quarantined", reason)

    def _opted_out(self, study: StudyRow) -> Verdict:
        """No file, no record: only that a study was left out."""
        uid = self.deid.uid(study.study_uid)
        StudyWriter(self.config.storage.dataset, uid).keep_only(())
        if self.catalogue.study(uid) is not None:
            self.catalogue.set_state(uid, "withdrawn", OPTED_OUT)
        self.audit.append("study.excluded", study=uid, reason=OPTED_OUT, instances=study.instances)
        return Verdict("excluded", OPTED_OUT)

    def _audit(self, kind: str, record: StudyRecord, changed: bool, set_aside: int) -> None:
        """One audit record for each content a study has had, also when a kill came between catalogue and audit."""
        facts = {"study": record.study_uid, "content_hash": record.content_hash}
        if not changed and any(
            facts.items() <= r.facts.items() and r.facts.get("reason") == record.reason
            for r in self.audit.records(kind)
        ):
            return
        self.audit.append(
            kind,
            **facts,
            patient=record.patient,
            modality=record.modality,
            instances=record.instances,
            set_aside=set_aside,
            reason=record.reason,
            profile=self.config.deid.profile,
        )


def _written(writer: StudyWriter, outcome: Any, output: bytes, facts: Mapping[str, Any]) -> Clean:
    path = writer.write(outcome.sop_instance_uid, output)
    digest = hashlib.sha256(output).hexdigest()
    return Clean(outcome.sop_instance_uid, writer.study_uid, outcome.patient, path, digest, facts)


def is_labelled(labels: dict[str, str]) -> bool:
    """Whether a study has a label to learn from; `partition` only says on which side of the split it stands."""
    return any(name != "partition" and value for name, value in labels.items())
