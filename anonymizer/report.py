"""The readable report beside the JSON lines: for each study what was done, by attribute and rule, and what was set aside.

It holds new UIDs, counts, attributes, actions and rules; nothing of what was removed, and no file name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from anonymizer.model import Action
from anonymizer.profile import OPTIONS, Profile

_WORDS = {
    "K": "kept",
    "X": "removed",
    "Z": "emptied",
    "D": "replaced by a dummy or pseudonym",
    "C": "cleaned",
    "U": "given new UIDs",
}
_NO_STUDY = "Files without a study"


@dataclass
class _Study:
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    actions: Counter[Action] = field(default_factory=Counter)


class Report:
    """Gathers outcomes; ``text`` renders them as Markdown."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._studies: dict[str, _Study] = {}

    def add(self, study_instance_uid: str, status: str, reason: str, actions: Iterable[Action]) -> None:
        """One instance: ``study_instance_uid`` is the new one, "" when it is not known."""
        study = self._studies.setdefault(study_instance_uid or _NO_STUDY, _Study())
        study.statuses[status] += 1
        if reason:
            study.reasons[reason] += 1
        study.actions.update(actions)

    def text(self) -> str:
        """The whole report."""
        options = [OPTIONS[name][1] for name in OPTIONS if name in self.profile.options]
        lines = [
            "# De-identification report",
            "",
            f"Profile {self.profile.name}: PS3.15 Annex E, Table E.1-1 of edition {self.profile.edition}.",
            "Options: " + (", ".join(options) or "none") + ".",
            f"{sum(s.statuses.total() for s in self._studies.values())} files; nothing of what was removed is told here.",
        ]
        for uid, study in sorted(self._studies.items()):
            lines += ["", f"## {uid if uid == _NO_STUDY else 'Study ' + uid}", "", _counts(study.statuses) + "."]
            lines += [f"- {count} × {reason}" for reason, count in study.reasons.most_common()]
            lines += _table(study.actions)
        return "\n".join(lines) + "\n"


def _counts(statuses: Counter[str]) -> str:
    return ", ".join(f"{statuses[name]} {name}" for name in ("ok", "quarantined", "rejected") if statuses[name])


def _table(actions: Counter[Action]) -> list[str]:
    if not actions:
        return []
    rows = ["", "| attribute | what was done | rule | files |", "|---|---|---|---|"]
    for action, count in sorted(actions.items()):
        tag = f"({action.tag[:4]},{action.tag[4:]}) {action.keyword}".rstrip()
        rows.append(f"| {tag} | {_WORDS.get(action.action, action.action)} | {action.rule} | {count} |")
    return rows
