"""Rewrites one object: collects what identifies, then applies the plan to every element, at every depth, in one pass.

Elements that are kept are appended as views of the input in runs as long as possible; nothing of the picture is copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from anonymizer.charset import Charset, charset
from anonymizer.content import AGE, DUMMIED, DUMMY_SEQUENCES, place_of
from anonymizer.documents import DOCUMENT
from anonymizer.errors import TooLarge
from anonymizer.identity import Source, Told, identity, sources_of
from anonymizer.layout import rewrite_twin, same_patient
from anonymizer.model import Action
from anonymizer.plan import PATIENT_ID, PATIENT_NAME, Planner, Step
from anonymizer.private import REMOVED, PrivateBlocks
from anonymizer.profile import OPTIONS, Profile
from anonymizer.pseudonym import Pseudonyms
from anonymizer.stream import clean_fragments, clean_native
from anonymizer.tables import keyword
from anonymizer.values import KEEP, REMEMBERED, Values, padded
from anonymizer.walk import ITEM, ITEM_END, PIXEL_DATA, SEQUENCE_END, UNDEFINED, Element, File, Fragments, Items

Part = bytes | memoryview
_ASCII = Charset(("",))
_STRUCTURAL = frozenset(["pixels", "sequence", "keep", "charset"])
_EACH_TIME = frozenset(["uid", "class_uid", "pixels", "charset"])  # these take note of something, or look elsewhere
METHOD = "fedpacs, PS3.15 Annex E"


class Rewriter:
    """One object on its way across; ``parts`` gives the new data set, ``pixel_parts`` the positions that hold pixels."""

    def __init__(self, file: File, profile: Profile, pseudonyms: Pseudonyms, planners: dict[str, Planner]) -> None:
        self.file, self.walker, self.profile, self.pseudonyms = file, file.walker, profile, pseudonyms
        self.data = memoryview(file.walker.data)
        self.twin = file.twin
        self.top = self.twin.layout.top if self.twin else {el[0]: el for el in reversed(file.elements)}
        self.picture: Part | None = None  # the native pixel value, a part of its own
        self.sop_class = self.top_text(0x00080016) or file.meta.get(0x00020002, b"").strip(b" \0").decode("latin-1")
        self.sop_uid = self.top_text(0x00080018) or file.meta.get(0x00020003, b"").strip(b" \0").decode("latin-1")
        self.plan = planners.get(self.sop_class) or planners.setdefault(
            self.sop_class, Planner(profile, self.sop_class)
        )
        self.done: dict[int, Step] = {}
        self.made_known: list[Action] | None = None  # the actions, where a twin's are known already
        self.private = PrivateBlocks(profile)
        self.picture_cleaned = self.face_cleaned = False
        self.charset = charset(self.top_bytes(0x00080005))
        self.values = self._values()

    def top_bytes(self, tag: int) -> bytes:
        """The raw value of a top-level attribute, b"" when it is absent."""
        el = self.top.get(tag)
        return b"" if el is None or el[5] is not None else bytes(self.data[el[3] : el[4]])

    def top_text(self, tag: int) -> str:
        return self.top_bytes(tag).strip(b" \0").decode("latin-1")

    def clean_fact(self, tag: int) -> str:
        """A term of the header as it stands in the output."""
        raw = self.top_bytes(tag)
        found = self.values.facts.get((tag, raw))
        if found is None:
            treated = self.values.term(tag, b"LO", raw, self.charset)
            clean = raw.strip(b" \0") if treated is KEEP else bytes(treated or b"").strip()
            found = self.values.facts[tag, raw] = clean.decode("latin-1")
        return found

    def top_number(self, tag: int, default: int = 0) -> int:
        """A top-level US, UL or IS value."""
        raw = self.top_bytes(tag)
        if not raw:
            return default
        el = self.top[tag]
        if el[1] in (b"US", b"UL") and len(raw) in (2, 4):
            return int.from_bytes(raw, "little" if self.walker.little else "big")
        text = raw.split(b"\\")[0].strip(b" \0")
        return int(text) if text.isdigit() else default

    # -- what identifies ---------------------------------------------------------------------------------------------

    def told(self, el: Element) -> list[Told]:
        """What one top-level element tells of the people and places behind the object."""
        found: list[Told] = []
        self._collect([el], self.charset, 0, found)
        return found

    def _values(self) -> Values:
        if self.twin is not None and same_patient(self, self.twin):
            known = self.twin.layout.values
            known.uids = set(self.twin.layout.uids)
            return known
        self.twin = None
        told: list[Told] = []
        self._collect(self.file.elements, self.charset, 0, told)
        key = (
            tuple(told),
            self.charset,
            self.top_bytes(PATIENT_ID),
            self.top_bytes(0x00100021),
            self.top_bytes(0x0020000D),
        )
        values = self.plan.contexts.get(key)
        if values is None or not key[2]:
            values = self._new_values(sources_of(told))
            if len(self.plan.contexts) >= 256:
                self.plan.contexts.clear()
            self.plan.contexts[key] = values
        values.uids = set()
        return values

    def _new_values(self, sources: frozenset[Source]) -> Values:
        patient_id = self.charset.decode(self.top_bytes(PATIENT_ID))[0].strip(" \0")
        issuer = self.top_text(0x00100021) if self.profile.issuer_matters else ""
        # without an id nobody can tell two studies' patients from one another: each study is its own patient
        basis = patient_id or "study:" + (self.top_text(0x0020000D) or self.top_text(0x00080018))
        month_first = not re.search(rb"ISO_IR (101|109|110|144|148)", self.top_bytes(0x00080005))
        days, patient = self.pseudonyms.date_shift_days(basis), self.pseudonyms.patient(basis, issuer)
        values = Values(self.pseudonyms, identity(sources), days, patient, month_first)
        values.patient_id = patient_id
        values.text_days = days if self.plan.dates == "shift" else None
        return values

    def _collect(self, elements: list[Element], chars: Charset, parent: int, told: list[Told]) -> None:
        step, steps = self.plan.step, self.plan.steps
        for tag, vr, _, start, stop, items in elements:
            if items is not None:
                if isinstance(items, Items):
                    for item in items.items:
                        inner = self._item_charset(item.elements, chars)
                        self._collect(item.elements, inner, place_of(tag, item.elements, self.data), told)
                continue
            if tag & 0x10000:
                kind = "name" if vr == b"PN" else ""
            else:
                kind = (steps.get((tag, vr, parent)) or step(tag, vr, parent)).source
            if kind and 1 < stop - start <= 1024:
                value = bytes(
                    self.data[start : start + 8 if kind == "day" else stop]
                )  # a date time differs from slice to slice
                told.append((kind, value, chars))

    def _item_charset(self, elements: list[Element], chars: Charset) -> Charset:
        for tag, _, _, start, stop, _ in elements:
            if tag >= 0x00080005:
                if tag == 0x00080005:
                    return charset(bytes(self.data[start:stop]), chars.declared)
                break
        return chars

    # -- the pass ----------------------------------------------------------------------------------------------------

    def parts(self) -> list[Part]:
        """The new data set in the input's encoding; raises an InputError when it cannot be made clean."""
        if self.twin is not None and not self.picture_cleaned and self.face_cleaned == self.twin.layout.face_cleaned:
            return rewrite_twin(self, self.twin)
        additions = self.additions()
        return self._dataset(self.file.elements, self.charset, 0, self.walker.explicit, additions)

    def rewritten(self, el: Element, private: dict[int, Step]) -> list[Part]:
        """What becomes of one top-level element, whole; ``private`` as PrivateBlocks.kept gave it."""
        tag, vr, begin, start, stop, items = el
        key, found = None, None
        if items is None and stop - start <= REMEMBERED and not tag & 0x10000:
            key = (tag, vr, bytes(self.data[start:stop]), 0, self.charset)
            found = self.values.met.get(key)
        _, treated = found or self._decided(el, self.charset, 0, self.walker.explicit, private, key)
        if treated is KEEP:
            return [self.data[begin:stop]]
        if isinstance(treated, bytes):
            return [self.walker.header(tag, vr, len(treated)), treated]
        return treated or []

    def _dataset(
        self,
        elements: list[Element],
        chars: Charset,
        parent: int,
        explicit: bool,
        additions: list[tuple[int, bytes]],
    ) -> list[Part]:
        out: list[Part] = []
        data, done, replaced = self.data, self.done, {tag for tag, _ in additions}
        run_start = run_end = -1
        private = self.private.kept(elements, data, self.plan)
        met, whole = self.values.met, explicit is self.walker.explicit
        for el in elements:
            tag, vr, _, start, stop, items = el
            while additions and additions[0][0] < tag:
                if run_end > run_start:
                    out.append(data[run_start:run_end])
                    run_start = run_end = -1
                out.append(additions.pop(0)[1])
            if tag in replaced:
                treated: Any = None
            else:
                key, found = None, None
                if items is None and whole and stop - start <= REMEMBERED and not tag & 0x10000:
                    key = (tag, vr, bytes(data[start:stop]), parent, chars)
                    found = met.get(key)
                step, treated = found or self._decided(el, chars, parent, explicit, private, key)
                if tag not in done or treated is not KEEP:
                    done[tag] = step
            if treated is KEEP:
                if run_end == el[2]:
                    run_end = el[4]
                    continue
                if run_end > run_start:
                    out.append(data[run_start:run_end])
                run_start, run_end = el[2], el[4]
                continue
            if run_end > run_start:
                out.append(data[run_start:run_end])
                run_start = run_end = -1
            if treated is None:
                continue
            if isinstance(treated, bytes):
                out.append(self.walker.header(tag, vr, len(treated), explicit) + treated)
            else:
                out.extend(treated)
        if run_end > run_start:
            out.append(data[run_start:run_end])
        out.extend(made for _, made in additions)
        return out

    def _decided(
        self, el: Element, chars: Charset, parent: int, explicit: bool, private: dict[int, Step], key: Any
    ) -> tuple[Step, Any]:
        """An element's step and what `_treat` makes of it; remembered under ``key`` where the same always follows."""
        tag, vr = el[0], el[1]
        step = private.get(tag, REMOVED) if tag & 0x10000 else self.plan.step(tag, vr, parent)
        if parent and step[0] == "pixels":
            return step, None
        decided = step, self._treat(el, step, chars, explicit, parent)
        if key is not None and step[0] not in _EACH_TIME:
            self.values.remember(key, decided)
        return decided

    def _treat(self, el: Element, step: Step, chars: Charset, explicit: bool, parent: int) -> Any:
        """KEEP, None, a new value, or the parts of a whole new element."""
        tag, vr, _, start, stop, items = el
        name = step[0]
        if name == "remove":
            return None
        if items is None and name not in _STRUCTURAL:
            return self.values.treat(name, tag, vr, bytes(self.data[start:stop]), chars)
        if name == "pixels":
            return self._pixels(el, explicit)
        if items is not None:
            if name == "empty":
                return self._sequence_parts(tag, vr, [], items, explicit)
            if name == "sequence" or (name == "dummy" and isinstance(items, Items)):
                dummied = parent >= DUMMIED or (step[1] == "D" and tag in DUMMY_SEQUENCES)
                return self._sequence(el, chars, explicit, DUMMIED if dummied else parent)
            return None
        if name == "sequence":
            return KEEP if start == stop else None
        if name == "keep":
            return KEEP
        if name == "charset":
            known = re.fullmatch(rb"[A-Za-z0-9_ .\\\-]*\0?", bytes(data)) if (data := self.data[start:stop]) else True
            return KEEP if known else b""
        return self.values.treat(name, tag, vr, bytes(self.data[start:stop]), chars)

    def _sequence(self, el: Element, chars: Charset, explicit: bool, parent: int) -> Any:
        tag, vr, _, _start, _, items = el
        if not isinstance(items, Items):
            return None
        made: list[tuple[list[Part], bool]] = []
        for item in items.items:
            inner = self._item_charset(item.elements, chars)
            place = parent if parent in (AGE, DUMMIED) else place_of(tag, item.elements, self.data)
            made.append((self._dataset(item.elements, inner, place, items.explicit, []), item.undefined))
        return self._sequence_parts(tag, vr, made, items, explicit)

    def _sequence_parts(
        self, tag: int, vr: bytes, made: list[tuple[list[Part], bool]], items: Any, explicit: bool
    ) -> list[Part]:
        out: list[Part] = []
        marker = self.walker.marker
        for parts, undefined in made:
            size = sum(map(len, parts))
            out.append(marker(ITEM, UNDEFINED if undefined else size))
            out.extend(parts)
            if undefined:
                out.append(marker(ITEM_END, 0))
        if isinstance(items, Items) and items.undefined:
            out.append(marker(SEQUENCE_END, 0))
            size = UNDEFINED
        else:
            size = sum(map(len, out))
        out.insert(0, self.walker.header(tag, vr, size, explicit))
        return out

    def _pixels(self, el: Element, explicit: bool) -> Any:
        tag, vr, _start, _value, _stop, items = el
        if isinstance(items, Fragments):
            parts = clean_fragments(self, el)
            return KEEP if parts is None else parts
        parts = clean_native(self, el) or [self.data[el[3] : el[4]]]
        size = sum(map(len, parts))
        if size >= UNDEFINED:
            raise TooLarge("The pixel data is larger than an element can be.")
        if tag == PIXEL_DATA:
            self.picture = parts[0]
        return [self.walker.header(tag, vr, size, explicit), *parts]

    # -- what is said about it ---------------------------------------------------------------------------------------

    def additions(self) -> list[tuple[int, bytes]]:
        """The elements that tell what was done (PS3.15 E.1.1, PS3.3 C.12.1.1.3 and C.7.1.1), sorted."""
        walker = self.walker
        missing = 0x00080018 not in self.top, PATIENT_NAME not in self.top, PATIENT_ID not in self.top
        cleaned = self.picture_cleaned, self.face_cleaned, DOCUMENT in self.top
        key = (walker.explicit, walker.little, cleaned, self.sop_uid if missing[0] else "", missing)
        made = self.values.additions.get(key)
        if made is None:
            made = self.values.additions[key] = self._additions_made()
        return list(made)

    def _additions_made(self) -> list[tuple[int, bytes]]:
        modified = {"keep": "UNMODIFIED", "shift": "MODIFIED", "remove": "REMOVED"}[self.plan.dates]
        patient = self.values.patient.encode()
        made = [
            (0x00120062, b"CS", b"YES"),
            (0x00120063, b"LO", f"{METHOD} {self.profile.edition} {self.profile.name}"[:64].encode()),
            (0x00280303, b"CS", modified.encode()),
        ]
        if self.picture_cleaned or DOCUMENT in self.top:
            made.append((0x00280301, b"CS", b"NO"))
        if self.face_cleaned:
            made.append((0x00280302, b"CS", b"NO"))
        if 0x00080018 not in self.top:
            made.append((0x00080018, b"UI", self.values.pseudonyms.uid(self.sop_uid).encode()))
        if PATIENT_NAME not in self.top:
            made.append((PATIENT_NAME, b"PN", patient))
        if PATIENT_ID not in self.top:
            made.append((PATIENT_ID, b"LO", patient))
        out = [(tag, self._element(tag, vr, value)) for tag, vr, value in made]
        out.append((0x00120064, b"".join(self._method_codes())))
        return sorted(out)

    def _element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        value = padded(value, vr)
        return self.walker.header(tag, vr, len(value)) + value

    def _method_codes(self) -> Iterator[bytes]:
        codes = [("113100", "Basic Application Confidentiality Profile")]
        codes += [OPTIONS[name] for name in OPTIONS if name in self.profile.options and name not in ("pixels", "faces")]
        if self.face_cleaned:
            codes.insert(1, OPTIONS["faces"])
        if self.picture_cleaned:
            codes.insert(1, OPTIONS["pixels"])
        items = b""
        for value, meaning in codes:
            item = (
                self._element(0x00080100, b"SH", value.encode())
                + self._element(0x00080102, b"SH", b"DCM")
                + self._element(0x00080104, b"LO", meaning.encode())
            )
            items += self.walker.marker(ITEM, len(item)) + item
        yield self.walker.header(0x00120064, b"SQ", len(items))
        yield items

    def actions(self) -> list[Action]:
        """What was done, one entry for each attribute met."""
        if self.made_known is not None:
            return self.made_known
        key = tuple(self.done.items())
        made = self.values.actions.get(key)
        if made is None:
            if len(self.values.actions) >= 64:
                self.values.actions.clear()
            made = self.values.actions[key] = [_action(tag, step) for tag, step in sorted(key)]
        return made


@lru_cache(maxsize=65536)
def _action(tag: int, step: Step) -> Action:
    return Action(f"{tag:08X}", keyword(tag), step.action, step.why)
