"""What a worker does between studies: land labels, follow a changed policy and changed opt-outs, forget in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.labels import land
from dicom_node.policy import excluded_because
from dicom_node.quarantine import Quarantine
from dicom_node.results.outbox import take_in
from dicom_node.worker.pipeline import OPTED_OUT, Pipeline, is_labelled

_BURNED_IN = "policy.exclude_burned_in"


@dataclass
class Chores:
    """Each chore is idempotent, so that several workers may do the same one."""

    pipeline: Pipeline
    clock: Callable[[], float] = time.time
    landed_until: float = 0.0

    def all(self) -> None:
        self.land_labels()
        self.follow_opt_ins()
        self.forget()
        self.forget_set_aside()
        self.take_results()

    def take_results(self) -> int:
        """Give what models made of studies its original identity, for the way back to the PACS; -> how many."""
        return take_in(self.pipeline.config)

    def land_labels(self) -> int:
        """Put imported labels on the studies that are catalogued already; -> how many studies have theirs.

        By accession number through the vault's crosswalk, so that it works after the received bytes are gone.
        """
        spool, vault, catalogue = self.pipeline.spool, self.pipeline.vault, self.pipeline.catalogue
        rows = spool.db.execute(
            "SELECT DISTINCT accession FROM labels WHERE imported_at >= ? ORDER BY accession", (self.landed_until,)
        ).fetchall()
        if not rows:
            return 0
        newest = spool.db.execute("SELECT max(imported_at) FROM labels").fetchone()[0]
        landed = 0
        for (accession,) in rows:
            landed += land(vault, catalogue, accession, spool.labels(accession))
            for study_uid in vault.pseudonyms("accession", accession):
                self.judge(study_uid)  # a label may be what the policy waited for
        self.landed_until = newest + 1e-6  # strictly after the newest seen
        return landed

    def judge_all(self) -> int:
        """Judge every catalogued study by the policy as it stands now (at start: it may have been edited); -> changed."""
        return sum(
            self.judge(s.study_uid)
            for state in ("eligible", "excluded")
            for s in self.pipeline.catalogue.studies(state)
        )

    def judge(self, study_uid: str) -> bool:
        """Move one catalogued study between eligible and excluded as the policy says; -> whether it moved."""
        catalogue, policy = self.pipeline.catalogue, self.pipeline.config.policy
        study, instances = catalogue.study(study_uid), catalogue.instances(study_uid)
        if study is None or study.state not in ("eligible", "excluded") or not instances:
            return False
        labels = {label.name: label.value for label in catalogue.labels(study_uid)}
        # whether text was burned in was seen when the pixels were; it is not looked at again
        burned_in = study.reason.startswith(_BURNED_IN)
        rule = excluded_because(policy, study, instances, labelled=is_labelled(labels), burned_in=burned_in)
        aside = "; ".join(part for part in study.reason.split("; ") if " set aside: " in part)
        state, reason = ("excluded" if rule else "eligible"), "; ".join(filter(None, (rule, aside)))
        if (state, reason) == (study.state, study.reason):
            return False
        catalogue.set_state(study_uid, state, reason)
        self.pipeline.audit.append(f"study.{state}", study=study_uid, reason=reason, content_hash=study.content_hash)
        return True

    def follow_opt_ins(self) -> int:
        """Send studies left out for an opt-out that was taken back through the workers again; -> how many."""
        spool, optouts = self.pipeline.spool, self.pipeline.optouts
        back = [
            s for s in spool.studies("excluded")
            if s.reason == OPTED_OUT and s.patient_id and not optouts.contains(s.patient_id)
        ]  # fmt: skip
        for study in back:
            spool.reopen(study.study_key)
        return len(back)

    def forget(self) -> int:
        """Erase the received bytes of studies done with for longer than storage.keep_identified_hours; -> how many."""
        spool = self.pipeline.spool
        before = self.clock() - self.pipeline.config.storage.keep_identified_hours * 3600
        old = spool.db.execute(
            """SELECT study_key, generation FROM studies WHERE state IN ('deidentified', 'excluded') AND last_at <= ?
               AND EXISTS (SELECT 1 FROM instances i WHERE i.study_key = studies.study_key AND i.state <> 'purged')""",
            (before,),
        ).fetchall()
        erased = [spool.purge(study_key, generation) for study_key, generation in old]
        if any(erased):
            self.pipeline.audit.append("identified.erased", studies=sum(map(bool, erased)), instances=sum(erased))
        return sum(map(bool, erased))

    def forget_set_aside(self) -> int:
        """Erase identified bytes that lie in quarantine for longer than retention.quarantine_hours; -> how many instances."""
        config = self.pipeline.config
        hours = config.retention.quarantine_hours
        if not hours:
            return 0
        with Quarantine(config) as quarantine:
            return quarantine.expire(self.clock() - hours * 3600)
