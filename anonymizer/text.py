"""Takes what identifies out of free text and keeps the clinical words (PS3.15 E.3.6 Clean Descriptors).

Names, identifiers and places known from the object's own attributes go wherever they stand; dates are moved with the
patient's shift (or removed); what has the form of an identifier (`forms`), a person (`persons`) or a place (`places`) goes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from anonymizer.forms import Span, forms
from anonymizer.identity import Identity
from anonymizer.persons import Page
from anonymizer.places import places
from anonymizer.shift import dates_in
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
    spans += _dates(folded, identity, days, month_first)
    spans += forms(folded)
    spans += [(start, end, "") for start, end in places(folded, capital) + Page(folded, capital).spans()]
    return _cut(text, spans, origin) if spans else text


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
    found = dates_in(folded, days, month_first)
    if not identity.birth_dates:
        return found
    plain = {(s, e): dates_in(folded[s:e], 0, month_first) for s, e, _ in found}
    out = []
    for start, end, text in found:
        same = plain[start, end]
        digits = re.sub(r"\D", "", same[0][2]) if same else ""
        birth = any(
            b in (digits, digits[4:] + digits[:4], digits[4:] + digits[2:4] + digits[:2]) for b in identity.birth_dates
        )
        out.append((start, end, "" if birth else text))
    for match in re.finditer(r"(?<!\d)\d{6}(?!\d)", folded):
        if any(match[0] in (b[2:], b[4:] + b[2:4], b[6:] + b[4:6] + b[2:4]) for b in identity.birth_dates):
            out.append((*match.span(), ""))
    return out


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
            while end < len(text) and (unicodedata.category(text[end]) == "Mn" or text[end] in "ﾞﾟ"):
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
