"""What happens to each attribute: Table E.1-1 under a profile's options, a site's own rules on top, resolved by Type.

Actions (PS3.15 E.3): K keep, X remove, Z empty, D dummy, C clean, U new UID; for sequences K, C, D and U mean "clean the items".
"""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydicom.datadict import tag_for_keyword

from anonymizer.errors import ProfileError
from anonymizer.tables import attribute_type, dictionary_vr, keyword, table_e1_1

NAMED = ("basic", "tcia", "federated-default")
OPTIONS = {  # in the order in which they override each other; codes of CID 7050
    "pixels": ("113101", "Clean Pixel Data Option"),
    "faces": ("113102", "Clean Recognizable Visual Features Option"),
    "graphics": ("113103", "Clean Graphics Option"),
    "structured": ("113104", "Clean Structured Content Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "dates_full": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "dates_modified": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "safe_private": ("113111", "Retain Safe Private Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
}
_FALLBACK = {"Z/D": "ZD", "X/Z": "XZ", "X/D": "XD", "X/Z/D": "XZD", "X/Z/U*": "XZU"}
_SETTINGS = {"name", "base", "options", "private", "pixels", "issuer_matters", "trust_burned_in_no", "actions"}


class Rule(NamedTuple):
    """An action and the rule it comes from."""

    action: str
    why: str


class Profile:
    """A named set of options and site rules; immutable after loading and safe to share between processes."""

    def __init__(
        self,
        name: str,
        options: frozenset[str],
        actions: dict[int, str],
        private: str = "none",
        pixels: str = "withhold",
        issuer_matters: bool = False,
        trust_burned_in_no: bool = False,
    ) -> None:
        self.name, self.options, self.actions = name, options, actions
        self.private, self.pixels, self.issuer_matters = private, pixels, issuer_matters
        self.trust_burned_in_no = trust_burned_in_no
        self.edition = str(table_e1_1()["edition"])
        self._rows: dict[str, dict[str, str]] = table_e1_1()["rows"]
        self.rule = lru_cache(maxsize=16384)(self._rule)

    def __reduce__(self) -> tuple[object, ...]:
        settings = (self.private, self.pixels, self.issuer_matters, self.trust_burned_in_no)
        return Profile, (self.name, self.options, self.actions, *settings)

    def row(self, tag: int) -> tuple[str, dict[str, str]] | None:
        """(key, row) of Table E.1-1 for a tag, repeating groups included; None when the table does not list it."""
        key = f"{tag:08X}"
        repeating = key[:2] + "xx" + key[4:]
        for candidate in (key, repeating, key[:2] + "xxxxxx"):
            if candidate in self._rows:
                return candidate, self._rows[candidate]
        return None

    def _rule(self, tag: int, sop_class: str = "", parent: int = 0) -> Rule | None:
        """The rule of a standard attribute; None when neither the site nor the table names it."""
        if tag in self.actions:
            return Rule(self.actions[tag], f"profile {self.name}")
        found = self.row(tag)
        if found is None:
            return None
        row = found[1]
        for option in OPTIONS:
            if option in self.options and option in row:
                return Rule(row[option], f"{OPTIONS[option][1]} of Table E.1-1 ({self.edition})")
        basic = row["basic"]
        if "/" not in basic:
            return Rule(basic, f"Table E.1-1 ({self.edition})")
        kind = attribute_type(sop_class, tag, parent)
        return Rule(resolve(basic, kind), f"{basic} of Table E.1-1 ({self.edition}), Type {kind or 'unknown'} here")

    def explain(self, tag: int) -> str:
        """In plain words what happens to a tag and why."""
        name = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword(tag) or 'private or unknown'}"
        if tag >> 16 & 1:
            if "safe_private" in self.options:
                return (
                    f"{name}: kept and cleaned only if its creator's safe list names it, else removed ({self.private})."
                )
            return f"{name}: removed, as every private attribute (profile {self.name})."
        rule = self.rule(tag)
        if rule is None and not dictionary_vr(tag):
            return f"{name}: removed, the data dictionary does not know it."
        if rule is None:
            return (
                f"{name}: not listed in Table E.1-1 ({self.edition}); kept if its value fits its VR, texts are cleaned."
            )
        words = {
            "K": "kept",
            "X": "removed",
            "Z": "emptied",
            "D": "replaced by a dummy",
            "C": "cleaned",
            "U": "given new UIDs",
        }
        return f"{name}: {words[rule.action]} [{rule.action}], {rule.why}; profile {self.name}."


def resolve(basic: str, kind: str) -> str:
    """The action of a conditional form for an attribute's Type ("" or "3" when it may be absent)."""
    allowed = _FALLBACK[basic]
    wanted = {"1": "D", "2": "Z"}.get(kind[:1], "X")
    if wanted == "D" and "U" in allowed:
        return "U"
    for action in {"X": "XZD", "Z": "ZD", "D": "DZ"}[wanted]:
        if action in allowed:
            return action
    return "X"


def load_profile(name: str | Path) -> Profile:
    """A named profile, or a site's TOML file; raises ProfileError naming the file, the key and the mend.

    A site's file may say ``base = "federated-default"`` and then only what differs; ``[actions]`` is keyed by tag or keyword.
    """
    path = Path(name)
    if str(name) in NAMED:
        path = Path(__file__).parent / "profiles" / f"{name}.toml"
    elif path.suffix != ".toml":
        raise ProfileError(f"There is no profile '{name}'; use {', '.join(NAMED)} or the path of a .toml file.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"The profile {path} cannot be read ({error}); mend the file or name another.") from None
    unknown = document.keys() - _SETTINGS
    if unknown:
        raise ProfileError(f"{path}: unknown setting '{min(unknown)}'; known are {', '.join(sorted(_SETTINGS))}.")
    base = load_profile(document["base"]) if "base" in document else Profile("", frozenset(), {})
    options = frozenset(document.get("options", base.options))
    if options - OPTIONS.keys():
        raise ProfileError(
            f"{path}: unknown option '{min(options - OPTIONS.keys())}'; known are {', '.join(sorted(OPTIONS))}."
        )
    return Profile(
        str(document.get("name", path.stem)),
        options,
        {**base.actions, **_actions(path, document.get("actions", {}))},
        _choice(path, document, "private", base.private, ("none", "dicom", "knowledge-base")),
        _choice(path, document, "pixels", base.pixels, ("withhold", "clean", "trust")),
        bool(document.get("issuer_matters", base.issuer_matters)),
        bool(document.get("trust_burned_in_no", base.trust_burned_in_no)),
    )


def _choice(path: Path, document: dict[str, object], key: str, default: str, known: tuple[str, ...]) -> str:
    value = str(document.get(key, default))
    if value not in known:
        raise ProfileError(f"{path}: {key} must be one of {', '.join(known)}.")
    return value


def parse_tag(text: str) -> int:
    """A tag from "00100010", "(0010,0010)", "0010,0010" or a keyword; raises ProfileError."""
    digits = re.sub(r"[(),\s]", "", text)
    if re.fullmatch(r"[0-9A-Fa-f]{8}", digits):
        return int(digits, 16)
    tag = tag_for_keyword(text.strip())
    if tag is None:
        raise ProfileError(f"'{text}' is neither a tag such as 00100010 nor a DICOM keyword.")
    return tag


def _actions(path: Path, table: dict[str, str]) -> dict[int, str]:
    actions = {}
    for key, action in table.items():
        if action not in ("K", "X", "Z", "D", "C", "U"):
            raise ProfileError(f"{path}: [actions] {key} must be one of K, X, Z, D, C, U.")
        actions[parse_tag(key)] = action
    return actions
