"""Carries a plan out, study by study, inside the hours and at the rate allowed; done is what the spool holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from datetime import time as day_time
from typing import Any

from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, NodeError
from dicom_node.optout import OptOuts
from dicom_node.retrieve.plan import Plan, Planned
from dicom_node.retrieve.selection import Selection
from dicom_node.retrieve.source import Source
from dicom_node.spool import Spool
from dicom_node.vault import Vault

# Megabytes an instance takes, roughly: PACS do not tell sizes, and a plan should say what is coming.
_MEGABYTES = {"CT": 0.53, "MR": 0.3, "PT": 0.1, "CR": 8.0, "DX": 14.0, "MG": 28.0, "US": 1.0, "XA": 20.0, "NM": 1.0}
_ELSE = 1.0
_ARRIVAL_SECONDS = 10.0  # C-MOVE's last instance may be in the receiver's hands still


@dataclass(frozen=True)
class Window:
    """Hours of the day in which to retrieve, local time; may span midnight."""

    start: day_time
    end: day_time

    @classmethod
    def parse(cls, text: str) -> Window:
        """From "22:00-06:00". Raises InputError."""
        try:
            start, end = (day_time.fromisoformat(part.strip()) for part in text.split("-"))
        except ValueError:
            raise InputError(f"--hours {text!r} is no span of hours: write it as 22:00-06:00.") from None
        return cls(start, end)

    def opens_in(self, now: datetime) -> float:
        """Seconds until it is open; 0 while it is."""
        at = now.time()
        inside = self.start <= at < self.end if self.start < self.end else at >= self.start or at < self.end
        if inside or self.start == self.end:
            return 0.0
        opens = datetime.combine(now.date(), self.start)
        return ((opens if opens > now else opens + timedelta(days=1)) - now).total_seconds()


@dataclass
class Summary:
    """What a plan comes to; nothing identified."""

    studies: int = 0
    instances: int = 0
    megabytes_estimated: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    held: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def summarise(studies: Iterable[Planned]) -> Summary:
    out = Summary()
    for study in studies:
        out.studies += 1
        out.instances += study.instances
        each = max((_MEGABYTES.get(one, _ELSE) for one in study.modalities), default=_ELSE)
        out.megabytes_estimated += each * study.instances
        out.states[study.state] = out.states.get(study.state, 0) + 1
        out.held += study.held
        if study.reason:
            out.reasons[study.reason] = out.reasons.get(study.reason, 0) + 1
    out.megabytes_estimated = round(out.megabytes_estimated, 1)
    return out


class Pull:
    """One pull of a selection from a PACS. `tell(event, facts)` hears of progress."""

    def __init__(
        self,
        config: NodeConfig,
        source: Source,
        selection: Selection,
        *,
        per_minute: float = 0.0,
        window: Window | None = None,
        tell: Callable[[str, dict[str, Any]], None] = lambda event, facts: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config, self._source, self._selection = config, source, selection
        self._per_minute, self._window = per_minute, window
        self._tell, self._sleep = tell, sleep
        self.spool = Spool(config.storage.spool)
        self.plan = Plan(config.storage.spool, selection.digest(source.name))

    def close(self) -> None:
        self.plan.close()
        self.spool.close()

    def prepare(self) -> Summary:
        """Ask the PACS and bring the plan up to date. Raises UnreachableError, RefusedError."""
        vault = Vault.open(self._config)
        optouts = OptOuts(self._config.storage.catalogue, vault)
        try:
            for found in self._source.find(self._selection):
                self.plan.add(found, optouts.contains(found.patient_id))
        finally:
            optouts.close()
            vault.close()
        return summarise(self.plan.studies())

    def run(self) -> Summary:
        """Retrieve everything that waits; returns when nothing does. Killed and run again, it goes on where it was."""
        while waiting := self.plan.studies("waiting"):
            self._await_hours()
            study = self.plan.due()
            if study is None:
                self._sleep(1.0)
                continue
            began = time.monotonic()
            self._retrieve(study)
            self._tell("studies", {"left": len(waiting) - 1})
            if self._per_minute:
                self._sleep(max(0.0, 60.0 / self._per_minute - (time.monotonic() - began)))
        return summarise(self.plan.studies())

    def _await_hours(self) -> None:
        while self._window is not None and (seconds := self._window.opens_in(datetime.now())):
            self._tell("outside the hours", {"seconds": round(seconds)})
            self._sleep(min(seconds, 60.0))

    def _retrieve(self, study: Planned) -> None:
        held, reason = 0, ""
        try:
            there = self._source.instances(study.study_uid)
            missing = self._missing(there)
            if missing:
                left = {uid: there[uid] for uid in missing}
                self._source.fetch(study.study_uid, left, self.spool, lambda: self._tell("instance", {}))
                missing = self._arrived(missing)
            held = len(there) - len(missing)
            if missing:
                reason = f"{len(missing)} instances did not arrive"
            elif not there:
                reason = "the PACS names no instance of it"
        except NodeError as error:
            reason = str(error)
        if reason:
            state = self.plan.failed(study, held, reason)
            self._tell("failed" if state == "failed" else "again later", {"reason": reason})
        else:
            self.plan.done(study, held)

    def _missing(self, uids: Iterable[str]) -> set[str]:
        return {uid for uid in uids if not self.spool.find(uid) and not self._purged(uid)}

    def _purged(self, uid: str) -> bool:
        """Received before, and erased since as node.toml asks: it is not fetched again."""
        return self.spool.db.execute("SELECT 1 FROM instances WHERE sop_uid=? LIMIT 1", (uid,)).fetchone() is not None

    def _arrived(self, missing: set[str]) -> set[str]:
        end = time.monotonic() + _ARRIVAL_SECONDS
        while (missing := self._missing(missing)) and self._source.arrives_later and time.monotonic() < end:
            time.sleep(0.1)
        return missing
