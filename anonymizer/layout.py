"""Remembers how the objects of a series are laid out, so that the next one is decided only where it differs.

Objects of one series have the same elements at the same places; a few short values differ. A `Layout` holds one such object's
header and what became of each of its elements. An object as long as it whose header differs from it in plain values alone is its
twin: every byte is compared, the elements are the layout's, and the differing ones are decided like any other. Whatever else
differs (a length, a sequence, the character set, the patient, a private creator, what identifies) makes it no twin, and it is
walked and decided as a whole, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anonymizer.model import Action
from anonymizer.plan import PATIENT_ID, Step
from anonymizer.walk import PIXEL_DATA, Element, Item, Items

if TYPE_CHECKING:
    from anonymizer.charset import Charset
    from anonymizer.identity import Told
    from anonymizer.rewrite import Rewriter
    from anonymizer.values import Values

Part = bytes | memoryview
LONGEST = 1 << 16  # bytes of header
_EACH, _ALL = 4, 128  # layouts of one length, and lengths
# what other decisions rest on: character set, SOP class, patient, issuer, study
_PIVOTS = frozenset([0x00080005, 0x00080016, PATIENT_ID, 0x00100021, 0x0020000D])


@dataclass
class Layout:
    """One object without its picture, byte by byte, and what became of each element; offsets are from the data set's start."""

    around: NDArray[np.uint8]  # what stands before the picture's value, and after it
    picture: int  # the index of its element
    owner: NDArray[np.int16]  # of each byte: the element whose plain value it belongs to, or -1
    elements: list[Element]
    top: dict[int, Element]
    made: list[bytes]  # of each element, with the additions before it; of the picture, the additions alone
    additions: dict[int, bytes]  # those before an element
    replaced: frozenset[int]
    told: dict[int, list[Told]]  # of the elements whose values may tell who is behind the object
    charset: Charset
    values: Values
    private: dict[int, Step]
    creators: set[bytes]
    done: dict[int, Step]
    actions: list[Action]
    uids: frozenset[str]
    face_cleaned: bool


class Twin(NamedTuple):
    """An object that is laid out like another one; ``changed`` are the indices of the elements whose values differ."""

    layout: Layout
    changed: list[int]


class Layouts:
    """The layouts met lately, under one profile and key."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[Layout]] = {}

    def find(self, syntax: str, body: memoryview) -> Twin | None:
        """The twin that a data set in this transfer syntax is, or None."""
        several = self._known.get((syntax, len(body)), [])
        for index, layout in enumerate(several):
            differing = np.flatnonzero(_around(body, layout.elements[layout.picture]) != layout.around)
            owners = set(layout.owner[differing].tolist())
            if -1 not in owners:
                several.insert(0, several.pop(index))  # neighbours of a series come together
                return Twin(layout, sorted(owners))
        return None

    def learn(self, rw: Rewriter) -> None:
        """Remember an object that came out clean, when one as long came before: a single one has no twin."""
        if not _can_be_learnt(rw):
            return
        key = rw.file.transfer_syntax, len(rw.data) - rw.file.start
        several = self._known.get(key)
        if several is None:
            if len(self._known) >= _ALL:
                self._known.pop(next(iter(self._known)))
            self._known[key] = []
            return
        several.insert(0, _layout(rw))
        del several[_EACH:]


def _around(body: memoryview, picture: Element) -> NDArray[np.uint8]:
    """The bytes of a data set but for its picture's value."""
    cells = np.frombuffer(body, np.uint8)
    return np.concatenate([cells[: picture[3]], cells[picture[4] :]])


def _can_be_learnt(rw: Rewriter) -> bool:
    tags = [el[0] for el in rw.file.elements]
    picture = rw.top.get(PIXEL_DATA)
    return (
        picture is not None
        and picture[5] is None
        and rw.file.elements[-1][4] == len(rw.data)  # nothing trails
        and len(rw.data) - rw.file.start - (picture[4] - picture[3]) <= LONGEST
        and all(a < b for a, b in pairwise(tags))
        and bool(rw.top_bytes(PATIENT_ID).strip(b" \0"))
        and not (rw.file.deflated or rw.picture_cleaned)
    )


def _layout(rw: Rewriter) -> Layout:
    start, elements = rw.file.start, rw.file.elements
    moved = [_moved(el, start) for el in elements]
    picture = next(index for index, el in enumerate(moved) if el[0] == PIXEL_DATA)
    around = _around(rw.data[start:], moved[picture])
    owner = np.full(len(rw.data) - start, -1, np.int16)
    private = rw.private.kept(elements, rw.data, rw.plan)
    additions = rw.additions()
    replaced = frozenset(tag for tag, _ in additions)
    made: list[bytes] = []
    before: dict[int, bytes] = {}
    told: dict[int, list[Told]] = {}
    for index, el in enumerate(elements):
        tag, _, _, value, stop, items = el
        while additions and additions[0][0] < tag:
            before[index] = before.get(index, b"") + additions.pop(0)[1]
        own = () if tag in replaced or tag == PIXEL_DATA else rw.rewritten(el, private)
        made.append(before.get(index, b"") + b"".join(own))
        if items is None and tag not in _PIVOTS and tag != PIXEL_DATA and not _creator(tag):
            owner[value - start : stop - start] = index
            if tag & 0x10000 or rw.plan.step(tag, el[1], 0).source:
                told[index] = rw.told(el)
    owner = np.delete(owner, slice(*moved[picture][3:5]))
    return Layout(
        around, picture, owner, moved, {el[0]: el for el in moved}, made, before, replaced, told, rw.charset, rw.values, private,
        set(rw.private.kept_creators), dict(rw.done), rw.actions(), frozenset(rw.values.uids), rw.face_cleaned,
    )  # fmt: skip


def _creator(tag: int) -> bool:
    return bool(tag & 0x10000) and tag & 0xFFFF <= 0xFF


def _moved(el: Element, by: int) -> Element:
    """The element, with what it holds, at its place from the data set's start."""
    tag, vr, start, value, stop, items = el
    if isinstance(items, Items):
        inner = [Item([_moved(one, by) for one in item.elements], item.undefined) for item in items.items]
        items = Items(inner, items.undefined, items.explicit)
    return tag, vr, start - by, value - by, stop - by, items


def same_patient(rw: Rewriter, twin: Twin) -> bool:
    """Whether the differing values tell nothing new that identifies, so that the layout's decisions hold."""
    elements, told = twin.layout.elements, twin.layout.told
    return all(index not in told or rw.told(elements[index]) == told[index] for index in twin.changed)


def rewrite_twin(rw: Rewriter, twin: Twin) -> list[Part]:
    """The data set of a twin: all before its picture in one piece, the picture, and all after it."""
    layout, elements = twin.layout, twin.layout.elements
    rw.done, rw.made_known, rw.private.kept_creators = layout.done, layout.actions, layout.creators
    made = layout.made.copy()
    for index in twin.changed:
        el = elements[index]
        own = () if el[0] in layout.replaced else rw.rewritten(el, layout.private)
        made[index] = layout.additions.get(index, b"") + b"".join(own)
    at = layout.picture
    picture = rw.rewritten(elements[at], layout.private)
    return [b"".join(made[: at + 1]), *picture, b"".join(made[at + 1 :])]
