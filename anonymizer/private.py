"""Decides on private attributes: kept and cleaned only when their creator's safe list names them (PS3.15 E.3.10).

An attribute is known by its creator, group and low byte; the block number, which moves from file to file, does not count.
"""

from __future__ import annotations

from anonymizer.plan import BULK, NUMBERS, TEXT, Planner, Step
from anonymizer.profile import Profile
from anonymizer.tables import safe_private
from anonymizer.walk import Element

_CREATOR = Step("keep", "K", "creator of a safe private block", "")
REMOVED = Step("remove", "X", "a private attribute that no safe list names", "")


class PrivateBlocks:
    """The private part of a profile."""

    def __init__(self, profile: Profile) -> None:
        self.kept_creators: set[bytes] = set()
        self.level = profile.private if "safe_private" in profile.options else "none"

    def kept(self, elements: list[Element], data: memoryview, plan: Planner) -> dict[int, Step]:
        """{tag: step} of one data set's private elements that are kept; any other goes."""
        if self.level == "none":
            return {}
        table = safe_private()
        creators: dict[int, tuple[int, str]] = {}
        kept: dict[int, Step] = {}
        for tag, _, _, start, stop, _ in elements:
            if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF and stop - start <= 64:
                name = bytes(data[start:stop]).strip(b" \0").decode("latin-1")
                if name in table:
                    creators[tag >> 16 << 8 | tag & 0xFF] = (tag, name)
        if not creators:
            return {}
        for el in elements:
            tag = el[0]
            if tag & 0x10000 and tag & 0xFFFF > 0xFF:
                creator = creators.get(tag >> 16 << 8 | tag >> 8 & 0xFF)
                if creator is not None:
                    self._one(el, creator, table[creator[1]], plan, kept)
        return kept

    def _one(
        self,
        el: Element,
        creator: tuple[int, str],
        rows: dict[int, tuple[bytes, bool]],
        plan: Planner,
        kept: dict[int, Step],
    ) -> None:
        tag = el[0]
        row = rows.get((tag >> 16) << 8 | tag & 0xFF)
        if row is None or not self._safe(row):
            return
        handler = self._handler(el[1], row[0], plan)
        if handler == "remove":
            return
        kept[tag] = Step(handler, "C", f"safe private attribute of {creator[1]}", "")
        kept[creator[0]] = _CREATOR
        self.kept_creators.add(creator[1].encode("latin-1"))

    def _safe(self, row: tuple[bytes, bool] | None) -> bool:
        return row is not None and (row[1] or self.level == "knowledge-base")

    def _handler(self, vr: bytes, listed: bytes, plan: Planner) -> str:
        if vr == b"UN":
            vr = listed
        if vr in BULK or (vr not in NUMBERS and (listed in BULK or listed == b"UN")):
            return "remove"
        if vr in TEXT or (listed in TEXT and vr not in NUMBERS):
            return "text"
        if vr in NUMBERS:
            return "number"
        simple = {b"UI": "uid", b"SQ": "sequence", b"DS": "decimal", b"IS": "decimal", b"AS": "age", b"CS": "term"}
        if vr in (b"DA", b"DT", b"TM"):
            return plan._temporal(vr)
        return simple.get(vr, "remove")
