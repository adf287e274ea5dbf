"""Decides on private attributes: kept and cleaned only when their creator's safe list names them (PS3.15 E.3.10).

An attribute is known by its creator, group and low byte; the block number, which moves from file to file, does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anonymizer.plan import BULK, NUMBERS, TEXT, Planner, Step
from anonymizer.profile import Profile
from anonymizer.tables import safe_private
from anonymizer.walk import Element

if TYPE_CHECKING:
    Blocks = dict[tuple[int, int], tuple[str, bool]]

_REMOVED = Step("remove", "X", "a private attribute that no safe list names", "")


class PrivateBlocks:
    """The private part of a profile."""

    def __init__(self, profile: Profile) -> None:
        self.kept_creators: set[bytes] = set()
        self.level = profile.private if "safe_private" in profile.options else "none"

    def blocks(self, elements: list[Element], data: memoryview) -> Blocks | None:
        """{(group, block): (creator, some element of it is kept)} of one data set; None when nothing private is kept."""
        if self.level == "none":
            return None
        found: Blocks = {}
        table = safe_private()
        for tag, _, _, start, stop, _ in elements:
            if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF and stop - start <= 64:
                name = bytes(data[start:stop]).strip(b" \0").decode("latin-1")
                found[tag >> 16, tag & 0xFFFF] = (name, False)
        for tag, *_ in elements:
            if tag >> 16 & 1 and tag & 0xFFFF > 0xFF:
                key = (tag >> 16, tag >> 8 & 0xFF)
                name = found.get(key, ("", False))[0]
                if self._safe(table.get(name, {}).get((tag >> 16) << 8 | tag & 0xFF)):
                    found[key] = (name, True)
                    self.kept_creators.add(name.encode("latin-1"))
        return found

    def _safe(self, row: tuple[bytes, bool] | None) -> bool:
        return row is not None and (row[1] or self.level == "knowledge-base")

    def step(self, el: Element, blocks: Blocks | None, plan: Planner) -> Step:
        """The decision for one private element."""
        tag, vr = el[0], el[1]
        if blocks is None:
            return _REMOVED
        if 0x10 <= tag & 0xFFFF <= 0xFF:
            used = blocks.get((tag >> 16, tag & 0xFFFF), ("", False))[1]
            return Step("keep", "K", "creator of a safe private block", "") if used else _REMOVED
        name = blocks.get((tag >> 16, tag >> 8 & 0xFF), ("", False))[0]
        row = safe_private().get(name, {}).get((tag >> 16) << 8 | tag & 0xFF)
        if row is None or not self._safe(row):
            return _REMOVED
        handler = self._handler(vr, row[0], plan)
        if handler == "remove":
            return Step("remove", "X", "a private attribute whose content cannot be read", "")
        return Step(handler, "C", f"safe private attribute of {name}", "")

    def _handler(self, vr: bytes, listed: bytes, plan: Planner) -> str:
        if vr == b"UN":
            vr = listed
        if vr in BULK or listed in BULK or listed == b"UN":
            return "remove"
        if vr in TEXT or (listed in TEXT and vr not in NUMBERS):
            return "text"
        if vr in NUMBERS:
            return "number"
        simple = {b"UI": "uid", b"SQ": "sequence", b"DS": "decimal", b"IS": "decimal", b"AS": "age", b"CS": "term"}
        if vr in (b"DA", b"DT", b"TM"):
            return plan._temporal(vr)
        return simple.get(vr, "remove")
