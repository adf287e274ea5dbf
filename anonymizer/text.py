"""Takes what identifies out of free text and keeps the clinical words (PS3.15 E.3.6 Clean Descriptors).

Names, identifiers and places known from the object's own attributes go wherever they stand; dates are moved with the
patient's shift (or removed); what has the form of an identifier (`forms`), a person (`persons`) or a place (`places`) goes.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache

from anonymizer.everyday import everyday_names, short_names
from anonymizer.forms import Span, forms
from anonymizer.identity import Identity, identity
from anonymizer.persons import Page
from anonymizer.places import places
from anonymizer.shift import dates_read, shifted
from anonymizer.words import fold

PIECE = 1500  # characters looked at together: patterns take more than their share of time on longer texts
LONGEST = 1 << 20  # characters; a longer text is no note of a person, and is emptied


def clean_text(text: str, identity: Identity, days: int | None, month_first: bool = True) -> str:
    """The text without what identifies; unchanged (the same object) when nothing does; "" when it is longer than LONGEST."""
    if len(text) <= PIECE:
        cleaned = _clean(text, identity, days, month_first)
    elif len(text) > LONGEST:
        return ""
    else:
        cleaned = "".join(_clean(piece, identity, days, month_first) + blank for piece, blank in _pieces(text, PIECE))
    return text if cleaned == text else cleaned


@cache
def warm() -> None:
    """Load the word lists and compile the patterns, so that no file is charged with it and forked processes share them."""
    _clean("seen by Dr. Smith on the fifteenth of March 2019 in Boston, MA", identity(frozenset()), 0, True)


def _pieces(text: str, size: int) -> Iterator[tuple[str, str]]:
    """(piece, the blank after it) of a long text, cut at line ends, else at sentences, else at blanks."""
    pos = 0
    while pos < len(text):
        end = min(pos + size, len(text))
        if end < len(text):
            cuts = (text.rfind(mark, pos + size // 2, end) for mark in ("\n", ". ", " "))
            end = next((cut for cut in cuts if cut > 0), end - 1) + 1
        piece = text[pos:end]
        core = piece.rstrip()
        yield core, piece[len(core) :]
        pos = end


@lru_cache(maxsize=16384)
def _clean(text: str, identity: Identity, days: int | None, month_first: bool) -> str:
    folded, origin = fold(text)
    capital = [char.isupper() for char in text]
    if origin is not None:
        capital = [capital[index] for index in origin]
    spans: list[Span] = [(start, end, "") for start, end in identity.spans(folded) + _written(text, identity, origin)]
    if identity.everyday:
        spans += [(start, end, "") for start, end in everyday_names(folded, capital, identity.everyday)]
    if identity.short:
        spans += [(start, end, "") for start, end in short_names(folded, capital, identity.short)]
    spans += _dates(folded, identity, days, month_first)
    spans += forms(folded)
    if _CODED.search(text) and origin is None:
        spans += [(*match.span(), "") for match in _CODED.finditer(text) if _coded_words(match[0])]
    spans += [(start, end, "") for start, end in places(folded, capital) + Page(folded, capital).spans()]
    return _cut(text, spans, origin) if spans else text


_CODED = re.compile(r"(?<![\w+/])(?=[A-Za-z+/]*\d)(?:[A-Za-z0-9+/]{16,}={0,2}|(?:[0-9A-Fa-f]{2}){6,})(?![\w+/=])")


def _coded_words(run: str) -> bool:
    """Whether a run of letters and digits is words in hexadecimal or base 64."""
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text + "=" * (-len(text) % 4), validate=True)):
        try:
            words = decode(run)
        except ValueError:
            continue
        if (
            len(words) >= 6
            and all(32 <= byte < 127 for byte in words)
            and sum(chr(b).isalpha() for b in words) > len(words) / 2
        ):
            return True
    return False


def clean_tokens(text: str, identity: Identity) -> str:
    """Only the object's own tokens taken out: for codes and terms whose form is fixed."""
    folded, origin = fold(text)
    spans = [(start, end, "") for start, end in identity.spans(folded) + _written(text, identity, origin)]
    return _cut(text, spans, origin) if spans else text


def _written(text: str, identity: Identity, origin: list[int] | None) -> list[tuple[int, int]]:
    """Spans (of the folded text) of names as they were written, for letters beyond ASCII.

    "Groß" folds to the everyday word "gross", which is left alone; as it stands in the patient's name it is the name.
    """
    # names in ideographs have a search of their own, since no space ends them
    words = [word for word in identity.spelled if max(word) < "\u2e80"]
    if origin is None or not words:
        return []
    names = "|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word))))
    starts = {index: at for at, index in reversed(list(enumerate(origin)))}
    ends = {index: at + 1 for at, index in enumerate(origin)}
    found = re.finditer(rf"[^\W\d_]*(?:{names})[^\W\d_]*", text, re.IGNORECASE)
    return [(starts[m.start()], ends[m.end() - 1]) for m in found if m.start() in starts and m.end() - 1 in ends]


def _dates(folded: str, identity: Identity, days: int | None, month_first: bool) -> list[Span]:
    """Dates with their replacement; a birth date is not moved but removed."""
    found = dates_read(folded, days, month_first)
    births = identity.birth_dates
    turned = {form for day in births for form in (day, day[:4] + day[6:] + day[4:6])}
    out = [(start, end, "" if same in turned else text) for start, end, text, same in found]
    if births or identity.days:
        out += [
            (*m.span(), _short_day(m[0], identity, days)) for m in _SHORT_DAY.finditer(folded) if _known(m[0], identity)
        ]
    return out


_SHORT_DAY = re.compile(r"(?<![\d.\-/])(?:\d{6}|[0-3]\d[/.\-][0-3]\d)(?![\d%]|[.\-/]\d)")


def _written_short(day: str) -> dict[str, str]:
    """{a day as it is written without its century or year: how} of one YYYYMMDD."""
    y, m, d = day[2:4], day[4:6], day[6:]
    return {y + m + d: "ymd", d + m + y: "dmy", m + d + y: "mdy", d + m: "dm", m + d: "md"}


def _known(text: str, identity: Identity) -> bool:
    digits = re.sub(r"\D", "", text)
    return any(digits in _written_short(day) for day in identity.birth_dates | identity.days)


def _short_day(text: str, identity: Identity, days: int | None) -> str:
    """A day without its century, or its year, that the object's own dates explain: moved; the birth date is removed."""
    digits = re.sub(r"\D", "", text)
    if days is None or any(digits in _written_short(day) for day in identity.birth_dates):
        return ""
    day = next(day for day in sorted(identity.days) if digits in _written_short(day))
    moved = shifted(int(day[:4]), int(day[4:6]), int(day[6:]), days)
    if moved is None:
        return ""
    part = {"y": f"{moved:%y}", "m": f"{moved:%m}", "d": f"{moved:%d}"}
    mark = text[2] if len(text) == 5 else ""
    return mark.join(part[letter] for letter in _written_short(day)[digits])


def _cut(text: str, spans: list[Span], origin: list[int] | None) -> str:
    """Replace the spans (in folded positions), the longest first where they overlap, and mend the blanks left."""
    merged: list[Span] = []
    for start, end, new in sorted(spans, key=lambda s: (s[0], -s[1])):
        if merged and start < merged[-1][1]:
            last = merged[-1]
            if end > last[1]:
                merged[-1] = (last[0], end, "")
            continue
        merged.append((start, end, new))
    out, pos = [], 0
    for start, end, new in merged:
        if origin is not None:
            start, end = origin[start], origin[end - 1] + 1
            # a mark belongs to the letter before it, also one of the half-width kana
            while end < len(text) and (unicodedata.category(text[end]) in ("Mn", "Mc") or text[end] in "ﾞﾟ"):
                end += 1
        out.append(text[pos:start])
        out.append(new)
        pos = max(pos, end)
    out.append(text[pos:])
    return _tidy("".join(out))


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t]{2,}", " ", text)
    text = re.sub(r"\(\s*\)|\[\s*\]", "", text)
    text = re.sub(r" +([,.;:])", r"\1", text)
    text = re.sub(r"([_\-]){2,}", r"\1", text)
    return text.strip(" ,;^_-")
