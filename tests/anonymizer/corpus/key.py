"""The answer key's vocabulary: what must be true of each output, and how it is judged."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pydicom
from pydicom.dataset import Dataset

Judge = Callable[["Seen"], bool]


@dataclass
class Seen:
    """An output as the judge sees it: None when the input was withheld, and the original beside it."""

    raw: bytes | None
    original: Dataset
    context: Context

    def __post_init__(self) -> None:
        self.ds = None if self.raw is None else pydicom.dcmread(io.BytesIO(self.raw))

    def at(self, path: tuple[Any, ...]) -> Any:
        """The element's value at ("Keyword", index, "Keyword"...) or a tag; None when it is not there."""
        here: Any = self.ds
        for step in path:
            if here is None:
                return None
            if isinstance(step, int) and not isinstance(here, Dataset):
                here = here[step] if step < len(here) else None
            else:
                here = here[step].value if step in here else None
        return here


@dataclass
class Context:
    """What holds across files: the UID map and the date shift of each patient, as the outputs show them."""

    uids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    shifts: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


@dataclass
class Check:
    category: str
    side: str  # "privacy" or "retention"
    judge: Judge
    note: str = ""


@dataclass
class Case:
    """One input file with its checks."""

    name: str
    data: bytes
    checks: list[Check]
    withheld_ok: bool = False


@dataclass
class Score:
    privacy: float
    retention: float
    leaking: list[str]
    failed: list[tuple[str, str, str, str]]
    checks: int
    categories: dict[tuple[str, str], tuple[int, int]]


def score(cases: Iterable[Case], run: Callable[[bytes], bytes | None]) -> Score:
    """Macro averages over categories, the files with any failed privacy check, and every failed check.

    A withheld file passes its privacy checks and fails its retention checks unless the key allows withholding it.
    """
    context, tally, leaking, failed, total = Context(), defaultdict(lambda: [0, 0]), [], [], 0
    for case in cases:
        raw = run(case.data)
        seen = Seen(raw, pydicom.dcmread(io.BytesIO(case.data), force=True), context)
        for check in case.checks:
            if raw is None:
                good = check.side == "privacy" or case.withheld_ok
            else:
                good = check.judge(seen)
            total += 1
            tally[check.side, check.category][0] += good
            tally[check.side, check.category][1] += 1
            if not good:
                failed.append((case.name, check.side, check.category, check.note))
                if check.side == "privacy" and case.name not in leaking:
                    leaking.append(case.name)
    side = {
        s: [good / count for (which, _), (good, count) in tally.items() if which == s] for s in ("privacy", "retention")
    }
    mean = {s: 100 * sum(v) / len(v) for s, v in side.items()}
    return Score(
        mean["privacy"], mean["retention"], leaking, failed, total, {k: (v[0], v[1]) for k, v in tally.items()}
    )


# -- judges ------------------------------------------------------------------------------------------------------------


def gone(text: str) -> Judge:
    """The text stands nowhere in the file, in any case and any of many encodings."""
    forms = {text, text.lower(), text.upper(), text.title()}
    codecs = ("utf-8", "utf-16-le", "utf-16-be", "latin-1", "gb18030", "shift_jis", "euc_kr", "iso8859_5", "iso2022_jp")
    raws = set()
    for form in forms:
        for codec in codecs:
            try:
                raws.add(form.encode(codec))
            except UnicodeEncodeError:
                continue

    def judge(seen: Seen) -> bool:
        assert seen.raw is not None
        texts = [] if seen.ds is None else _texts(seen.ds)
        folded = text.casefold()
        return not any(raw in seen.raw for raw in raws) and not any(folded in t.casefold() for t in texts)

    return judge


def _texts(ds: Dataset) -> list[str]:
    out = []
    for element in ds.iterall():
        if element.VR != "SQ" and not isinstance(element.value, bytes):
            values = (
                element.value if isinstance(element.value, (list, pydicom.multival.MultiValue)) else [element.value]
            )
            out += [str(v) for v in values]
    return out


def removed(*path: Any) -> Judge:
    """The attribute is not there, or empty."""
    return lambda seen: seen.at(path) in (None, "", b"") or len(str(seen.at(path))) == 0


def keeps(words: str, *path: Any) -> Judge:
    """Every word is still in the attribute."""

    def judge(seen: Seen) -> bool:
        value = seen.at(path)
        text = "" if value is None else "\\".join(map(str, value)) if _multi(value) else str(value)
        return all(word.casefold() in text.casefold() for word in words.split())

    return judge


def _multi(value: Any) -> bool:
    return isinstance(value, (list, pydicom.multival.MultiValue))


def lacks(text: str, *path: Any) -> Judge:
    return lambda seen: text.casefold() not in str(seen.at(path) or "").casefold()


def equal(value: Any, *path: Any) -> Judge:
    def judge(seen: Seen) -> bool:
        got = seen.at(path)
        return (list(got) if _multi(got) else got) == value or str(got) == str(value)

    return judge


def present(*path: Any) -> Judge:
    return lambda seen: seen.at(path) not in (None, "")


def new_uid(original: str, *path: Any) -> Judge:
    """A valid new UID, the same wherever the original stood, and no two originals share one."""

    def judge(seen: Seen) -> bool:
        value = str(seen.at(path) or "")
        if not value or value == original or len(value) > 64 or not pydicom.uid.UID(value).is_valid:
            return False
        seen.context.uids[original].add(value)
        clash = any(value in found for key, found in seen.context.uids.items() if key != original)
        return len(seen.context.uids[original]) == 1 and not clash

    return judge


def pseudonym(patient_id: str) -> Judge:
    def judge(seen: Seen) -> bool:
        value = str(seen.at(("PatientID",)) or "")
        if not value or patient_id in value:
            return False
        seen.context.ids[patient_id].add(value)
        clash = any(value in found for key, found in seen.context.ids.items() if key != patient_id)
        return len(seen.context.ids[patient_id]) == 1 and not clash

    return judge


def shifted(patient_id: str, original: str, *path: Any) -> Judge:
    """The date (first eight digits) moved by this patient's one whole-day shift, the rest of the value kept."""
    import datetime

    def day(text: str) -> datetime.date:
        return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8]))

    def judge(seen: Seen) -> bool:
        value = str(seen.at(path) or "")
        if len(value) < 8 or value[8:] != original[8:]:
            return False
        try:
            delta = (day(value) - day(original)).days
        except ValueError:
            return False
        seen.context.shifts[patient_id].add(delta)
        return delta != 0 and len(seen.context.shifts[patient_id]) == 1

    return judge


def same_pixels(seen: Seen) -> bool:
    return seen.ds is not None and bytes(seen.ds.PixelData) == bytes(seen.original.PixelData)
