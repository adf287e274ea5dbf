"""Compiles a profile into one decision per attribute: which handler treats its value, and whether its value is a search token."""

from __future__ import annotations

from typing import NamedTuple

from anonymizer.profile import Profile, Rule
from anonymizer.tables import dictionary_vr
from anonymizer.walk import PIXEL_DATA

TEXT = frozenset((b"LO", b"SH", b"ST", b"LT", b"UT", b"UC"))
NUMBERS = {b"US": 2, b"SS": 2, b"UL": 4, b"SL": 4, b"FL": 4, b"FD": 8, b"AT": 4, b"UV": 8, b"SV": 8}
BULK = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV"))
PATIENT_NAME, PATIENT_ID = 0x00100010, 0x00100020
# UIDs that name a class, a scheme or a resource, not an object
CLASS_UIDS = frozenset(
    (
        524310,
        528720,
        528721,
        524314,
        524315,
        524556,
        524567,
        524568,
        524576,
        267536,
        267538,
        131074,
        131088,
        131090,
        536578,
        536577,
        2654176,
    )
)
# Terms with a fixed form: only the object's own tokens are taken out of them
TERMS = frozenset(
    (
        524400,
        528528,
        1576992,
        1577488,
        524544,
        524546,
        524547,
        524565,
        524566,
        1576982,
        1576985,
        524569,
        524577,
        524562,
        1572900,
        1577552,
        1577553,
        2629632,
        1609733,
        1572899,
        1576984,
        524296,
        2659616,
    )
)
PLACES = frozenset(
    (
        524416,
        524417,
        528448,
        528449,
        524434,
        1052736,
        1057104,
        1057106,
        3280947,
        3670784,
        3671040,
        4194321,
        4194881,
        4194882,
        4194883,
        1179696,
        1179697,
        1179664,
        528400,
        1057264,
        3280928,
        4202504,
        4235386,
        4198402,
        1183760,
    )
)
PERSONS = frozenset((0x00101005, 0x00101060, 0x00101001, 0x00102297))
BIRTH_DATE = 0x00100030
ICON, OVERLAY_GROUPS, CURVE_GROUPS = 0x00880200, 0x6000, 0x5000


class Step(NamedTuple):
    """``handler`` names a method of Values ("keep" and "remove" need none)."""

    handler: str
    action: str
    why: str
    source: str  # "name", "id", "place", "date" or ""


def source_kind(tag: int, vr: bytes, rule: Rule | None, described: bool) -> str:
    """What kind of search token an attribute's value gives ("" for none)."""
    if vr == b"PN" or tag in PERSONS:
        return "name"
    if tag == BIRTH_DATE:
        return "date"
    if rule is None or rule.action not in ("X", "Z", "D"):
        return ""
    if tag in PLACES:
        return "place"
    if vr in (b"LO", b"SH", b"AE", b"ST", b"UC") and not described:
        return "id"
    return ""


class Planner:
    """Decisions for one profile and SOP class, remembered by (tag, VR, parent sequence)."""

    def __init__(self, profile: Profile, sop_class: str) -> None:
        self.profile, self.sop_class = profile, sop_class
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
        if tag in (PATIENT_NAME, PATIENT_ID):
            return Step("patient", "D", "keyed pseudonym", source)
        if tag == ICON and (rule is None or rule.action != "K"):
            return Step("remove", "X", rule.why if rule else "icons repeat the picture", "")
        if rule is None:
            if not known:
                return Step("remove", "X", "the data dictionary does not know it", "")
            return self._unlisted(tag, vr, effective, source)
        return Step(self._handler(tag, vr, effective, rule.action), rule.action, rule.why, source)

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
        return Step(handler, action.get(handler, "C"), why, source)

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
