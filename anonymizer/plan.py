"""Compiles a profile into one decision per attribute: which handler treats its value, and whether its value is a search token."""

from __future__ import annotations

from typing import Any, NamedTuple

from anonymizer import content, documents
from anonymizer.profile import Profile, Rule
from anonymizer.tables import dictionary_vr, required
from anonymizer.walk import PIXEL_DATA

TEXT = frozenset((b"LO", b"SH", b"ST", b"LT", b"UT", b"UC"))
NUMBERS = {b"US": 2, b"SS": 2, b"UL": 4, b"SL": 4, b"FL": 4, b"FD": 8, b"AT": 4, b"UV": 8, b"SV": 8}
BULK = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV"))
PATIENT_NAME, PATIENT_ID, MANUFACTURER = 0x00100010, 0x00100020, 0x00080070
# UIDs that name a class, a scheme or a resource, not an object
CLASS_UIDS = frozenset(
    [
        0x00080016,
        0x00081150,
        0x00081151,
        0x0008001A,
        0x0008001B,
        0x0008010C,
        0x00080117,
        0x00080118,
        0x00080120,
        0x00041510,
        0x00041512,
        0x00020002,
        0x00020010,
        0x00020012,
        0x00083002,
        0x00083001,
        0x00287FE0,
    ]
)
# Terms with a fixed form: only the object's own tokens are taken out of them
TERMS = frozenset(
    [
        0x00080070,
        0x00081090,
        0x00181020,
        0x00181210,
        0x00080100,
        0x00080102,
        0x00080103,
        0x00181016,
        0x00181019,
        0x00080119,
        0x00080121,
        0x00080112,
        0x00180024,
        0x00181250,
        0x00181251,
        0x00282000,
        0x00189005,
        0x00180023,
        0x00181018,
        0x00080008,
        0x00289520,
    ]
)
PLACES = frozenset(
    [
        0x00080080,
        0x00080081,
        0x00081040,
        0x00081041,
        0x00080092,
        0x00101040,
        0x00102150,
        0x00102152,
        0x00321033,
        0x00380300,
        0x00380400,
        0x00400011,
        0x00400241,
        0x00400242,
        0x00400243,
        0x00120030,
        0x00120031,
        0x00120010,
        0x00081010,
        0x001021F0,
        0x00321020,
        0x00402008,
        0x0040A07A,
        0x00401002,
        0x00121010,
    ]
)
PERSONS = frozenset(
    [
        0x00101005,
        0x00101060,
        0x00101001,
        0x00102297,
    ]
)
BIRTH_DATE, CODE_MEANING, PERSON_CODES = 0x00100030, 0x00080104, 0x00401101
ICON, OVERLAY_GROUPS, CURVE_GROUPS = 0x00880200, 0x6000, 0x5000


class Step(NamedTuple):
    """``handler`` names a method of Values ("keep" and "remove" need none)."""

    handler: str
    action: str
    why: str
    source: str  # "name", "id", "place", "birth", "day" or ""


def source_kind(tag: int, vr: bytes, rule: Rule | None, described: bool) -> str:
    """What kind of search token an attribute's value gives ("" for none)."""
    if rule is not None and rule.action == "K":
        return ""
    if vr == b"PN" or tag in PERSONS:
        return "name"
    if tag == BIRTH_DATE:
        return "birth"
    if rule is not None and vr in (b"DA", b"DT"):
        return "day"
    if rule is None or rule.action not in ("X", "Z", "D"):
        return ""
    if tag in PLACES:
        return "place"
    if vr in (b"LO", b"SH", b"AE", b"ST", b"UC") and not described:
        return "id"
    return ""


_STATED = frozenset((b"PN", b"DA", b"DT", b"TM", b"AS", b"DS", b"IS"))
_FILLED = {name: f"{name}_required" for name in ("text", "term", "person", "date", "datetime", "time", "age")}


def _filled(tag: int, handler: str) -> str:
    """The handler that leaves a dummy rather than nothing, for an attribute that some IOD requires."""
    return _FILLED.get(handler, handler) if tag in required() else handler


class Planner:
    """Decisions for one profile and SOP class, remembered by (tag, VR, parent sequence)."""

    def __init__(self, profile: Profile, sop_class: str) -> None:
        self.profile, self.sop_class = profile, sop_class
        self.contexts: dict[object, Any] = {}  # values already treated, by patient
        self.steps: dict[tuple[int, bytes, int], Step] = {}
        options = profile.options
        self.dates = "keep" if "dates_full" in options else "shift" if "dates_modified" in options else "remove"
        self.structured = "structured" in options

    def step(self, tag: int, vr: bytes, parent: int) -> Step:
        """The decision for a standard attribute."""
        key = (tag, vr, parent)
        found = self.steps.get(key)
        if found is None:
            found = self.steps[key] = self._step(tag, vr, parent)
        return found

    def _step(self, tag: int, vr: bytes, parent: int) -> Step:
        known = dictionary_vr(tag)
        if tag & 0xFFFF == 0 or tag in (0xFFFCFFFC, 0xFFFAFFFA):
            return Step("remove", "X", "group lengths, padding and signatures do not survive a change", "")
        if tag >> 24 in (0x50, 0x60):
            return Step("remove", "X", "overlays and curves may hold identifying graphics", "")
        if tag == 0x00080005:
            return Step("charset", "K", "declares the character set", "")
        rule = self.profile.rule(tag, self.sop_class, parent)
        effective = vr if known in (b"", b"UN") or (vr in BULK and known in BULK) else known
        row = self.profile.row(tag)
        source = source_kind(tag, vr if vr == b"PN" else effective, rule, bool(row and "descriptors" in row[1]))
        if tag == documents.DOCUMENT:
            return Step("document", "D", rule.why if rule else "documents cannot be proven clean", "")
        if tag == documents.DOCUMENT_LENGTH:
            return Step("remove", "X", "the document is replaced", "")
        dummied = parent == content.DUMMIED and rule is None and tag not in TERMS and tag != CODE_MEANING
        if (
            parent == PERSON_CODES and effective in TEXT and tag != 0x00080102
        ):  # the designator of the scheme says of no one
            return Step("dummy", "D", "codes a person", "name" if tag == CODE_MEANING else "id")
        if dummied and (effective in TEXT or effective in _STATED):
            return Step("dummy", "D", "stands in a sequence that Table E.1-1 replaces", source or "id")
        if parent > 0xFFFFFFFF and (tag in content.VALUES or tag == content.NUMERIC_VALUE):
            return self._content(tag, parent)
        if tag in (PATIENT_NAME, PATIENT_ID):
            return Step("patient_value", "D", "keyed pseudonym", source)
        if tag == ICON and (rule is None or rule.action != "K"):
            return Step("remove", "X", rule.why if rule else "icons repeat the picture", "")
        if rule is None:
            if not known:
                return Step("remove", "X", "the data dictionary does not know it", "")
            return self._unlisted(tag, vr, effective, source)
        return Step(_filled(tag, self._handler(tag, vr, effective, rule.action)), rule.action, rule.why, source)

    def _content(self, tag: int, parent: int) -> Step:
        """A value in an SR content item whose concept says that it identifies."""
        why = "PS3.15 E.3.4: the content item's concept identifies"
        if parent == content.AGE:
            return Step("age_number" if tag == content.NUMERIC_VALUE else "text_required", "C", why, "")
        return Step("keep" if tag == content.NUMERIC_VALUE else "dummy", "D", why, content.SOURCES.get(parent, ""))

    def _handler(self, tag: int, vr: bytes, effective: bytes, action: str) -> str:
        if action == "X":
            return "remove"
        if effective == b"SQ":
            return "empty" if action == "Z" else "sequence"
        if action == "Z":
            return "empty"
        if action == "D":
            return "uid" if effective == b"UI" else "dummy"
        if action == "U":
            return "uid"
        if action == "C" and effective in (b"DA", b"DT", b"TM"):
            return self._temporal(effective)
        if action == "K" and effective in (b"DA", b"DT", b"TM") and "dates_full" in self.profile.options:
            return "temporal_full"
        if action == "K" and effective == b"UI":
            return "keep"
        if action == "K" and (effective in TEXT or effective in (b"AE", b"UR", b"PN", b"CS")):
            return "retained"
        if action in ("C", "K"):
            return self._by_vr(tag, vr, effective)
        return "remove"

    def _temporal(self, effective: bytes) -> str:
        kind = {b"DA": "date", b"DT": "datetime", b"TM": "time"}[effective]
        if self.dates == "keep":
            return "temporal_full"
        return kind if self.dates == "shift" else "empty"

    def _unlisted(self, tag: int, vr: bytes, effective: bytes, source: str) -> Step:
        why = f"not listed in Table E.1-1 ({self.profile.edition}); its value is held to its VR"
        handler = self._by_vr(tag, vr, effective)
        action = {"remove": "X", "empty": "Z", "uid": "U", "keep": "K", "number": "K", "binary": "K", "sequence": "K"}
        if handler == "empty" and tag in required():
            handler = "dummy"
        return Step(_filled(tag, handler), action.get(handler, "C"), why, source)

    def _by_vr(self, tag: int, vr: bytes, effective: bytes) -> str:
        """The handler of an attribute that is to be kept as far as it is clean."""
        if tag in CLASS_UIDS:
            return "class_uid"
        if effective in TEXT or effective == b"CS":
            return "term" if effective == b"CS" or tag in TERMS or tag >> 16 == 0x0028 else "text"
        if effective in NUMBERS:
            return "number" if vr in (effective, b"UN") or vr in NUMBERS else "text"
        if effective in (b"DA", b"DT", b"TM"):
            return self._temporal(effective)
        if effective in BULK:
            if tag in (PIXEL_DATA, 0x7FE00008, 0x7FE00009):
                return "pixels"
            return "binary" if vr in BULK or vr == b"UN" or vr in NUMBERS else "remove"
        simple = {b"UI": "uid", b"PN": "person", b"SQ": "sequence", b"DS": "decimal", b"IS": "decimal", b"AS": "age"}
        return simple.get(effective, "remove")  # AE, UR and UN: nothing says they are harmless
