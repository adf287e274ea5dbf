"""Takes what identifies out of free text and keeps the clinical words (PS3.15 E.3.6 Clean Descriptors).

Names, identifiers and places known from the object's own attributes go wherever they stand; dates are moved with the
patient's shift (or removed); telephone numbers, addresses, identifiers behind a cue, people behind a title and institutions
are recognised by their form. Eponyms ("Hodgkin lymphoma") stay.
"""

# ruff: noqa: E501 - patterns and word lists read better whole
from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

from anonymizer.identity import Identity
from anonymizer.shift import dates_in
from anonymizer.words import EPONYMS, common_words, first_names, fold, last_names, used_as_eponym, vocabulary

_CONTACTS = re.compile(
    r"[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+"  # e-mail
    r"|(?:https?|ftp)://\S+|www\.[\w\-]+\.\S+"
    r"|(?:tel|phone|telephone|fax|mobile|cell|handy|telefon|pager|call|ph|ext|contact)\b\.?\s*(?:no\.?|nr\.?|number|at|#)?[:.]?\s*\+?[\d(][\d\s().\-/]{4,}\d"
    r"|(?<![\d.])\+\d{1,3}[\s.\-]?\(?\d{1,4}\)?(?:[\s.\-]\d{2,4}){1,4}(?!\d)"
    r"|(?<![\d.])(?:\+?1[\s.\-])?\(\d{3}\)\s?\d{3}[\s.\-]\d{4}(?!\d)"
    r"|(?<![\d.])(?:1[\s.\-])?\d{3}[\s.\-]\d{3}[\s.\-]\d{4}(?!\d)"
    r"|(?<![\d.])\d{3}-\d{4}(?:-\d{1,4})?(?!\d)|(?<![a-z])ext\.?\s?\d{3,5}(?!\d)"
    r"|(?<![\d.])\d{3}-\d{2}-\d{4}(?!\d)"  # social security
    r"|(?<![\d.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])"  # IP address
    r"|(?<![0-9a-f])(?:[0-9a-f]{2}[:\-]){5}[0-9a-f]{2}(?![0-9a-f])"
    r"|[a-z]:\\[^\s\"]+|\\\\[\w.\-]+\\[^\s\"]+|(?<![\w/])/(?:home|users|mnt|data|export|var)/[^\s\"]+",
)
_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){5,}(?![\d.])")
_ADDRESS = re.compile(
    r"(?<!\d)\d{1,5}[a-z]?\s+(?:[nsew]\.?\s+)?(?:[a-z'.\-]+\s+){1,3}(?:street|st|avenue|ave|road|rd|boulevard|blvd|drive|dr|lane|ln|way|court|ct|"
    r"place|pl|square|sq|terrace|highway|hwy|parkway|pkwy|strasse|str|rue|calle|via|weg|allee)\b\.?"
    r"(?:,?\s*(?:apt|suite|unit|#)\.?\s*\w+)?(?:,\s*[a-z][a-z .\-]+)?(?:,?\s*[a-z]{2}\s+\d{5}(?:-\d{4})?)?"
    r"|[a-z]+(?:strasse|straße|gasse|platz|allee|weg)\s+\d{1,4}[a-z]?(?:,?\s*\d{4,5}\s+[a-z]+)?"
    r"|\b(?:p\.?\s?o\.?\s?box)\s+\d+"
    r"|\b[a-z][a-z .]+,\s*[a-z]{2}\s+\d{5}(?:-\d{4})?\b"
)
_ID_CUE = re.compile(
    r"(?<![a-z])(?:mrn|m\.r\.n\.|medical record(?: number| no)?|pat(?:ient)?[\s\-.]*(?:id|no|nr|number)|pid|acc(?:ession)?(?:\s?(?:no|nr|number|#))?|account(?: number| no)?"
    r"|adm(?:ission)?[\s\-.]*(?:id|no|number)|ssn|social security(?: number)?|nhs(?: number| no)?|insurance(?: number| no| id)?|policy(?: number| no)?|visit(?: number| no)?|order(?: number| no)?"
    r"|case(?: number| no| id)|study\s?id|id|no\.|nr\.|badge|license|licence|passport|serial(?: number| no)?|s/n|sn|dob|d\.o\.b\.|born(?: on)?|geb\.?(?:oren)?|icn|csn|fin|ssno|user(?: ?name| ?id)?|login)"
    r"(?:\s+(?:is|was))?\s?[:#=.\-]*\s{0,2}(?P<v>(?=[a-z\-/.]*\d)[a-z0-9][a-z0-9\-/.]{2,})"
)
_LONG_NUMBER = re.compile(r"(?<![\d.])\d{7,}(?![\d.]*\d)|(?<![a-z0-9])[a-z]{1,4}-?\d{6,}(?![a-z0-9])")
_AGE = re.compile(
    r"(?<!\d)(?P<a>9\d|1[0-3]\d)(?=[\s\-]?(?:y/?o|yo|yrs?|years?|jahre|ans|años|-year)(?![a-z])|\s?y\b)|(?:aged?|age of)[\s:]+(?P<b>9\d|1[0-3]\d)(?!\d)"
)
_NAME = r"[^\W\d_][^\W\d_'’\-]*(?:[\-'’][^\W\d_]+)*"
_PERSON = rf"(?:[^\W\d_]\.?\s?){{0,2}}{_NAME}(?:[\s^,]{{1,2}}(?:[^\W\d_]\.\s?)?(?:(?:van|von|de|der|den|la|le|del|di|da|dos|bin|al|el|ter)\s)*{_NAME}){{0,2}}"
_TITLE = re.compile(
    rf"(?<![^\W_])(?P<t>dr|doctor|prof|professor|mr|mrs|ms|miss|mister|herr|herrn|frau|mme|monsieur|madame|sr|sra|sig|signora|dott|pr)\.?\s+"
    rf"(?:(?:med|dr|h\.c|priv)\.?\s+)*(?P<n>{_PERSON})"
)
_BY = re.compile(
    rf"(?<![^\W_])(?:performed|read|reported|dictated|signed|reviewed|ordered|referred|requested|approved|verified|interpreted|scanned|acquired|electronically signed|transcribed|operated|done|seen|discussed|consulted)"
    rf"\s+(?:by|with|to)[\s:]+(?:dr\.?\s+|prof\.?\s+|tech(?:nologist|nician)?\.?\s+|rad\.?\s+)?(?P<n>{_PERSON})"
)
_LABEL = re.compile(
    rf"(?<![^\W_])(?:patient|pt|pat|patient name|pat name|name|operator|technologist|technician|tech|radiologist|physician|referring(?: physician)?|attending|"
    rf"surgeon|resident|nurse|mother|father|husband|wife|daughter|son|spouse|guardian|contact|next of kin|relative|observer|author|ref|cc|attn)\s?(?:name)?\s?[:=]\s?"
    rf"(?P<n>{_PERSON})"
)
_ROLE = re.compile(
    rf"(?<![^\W_])(?:nurse|technologist|technician|tech|radiologist|sonographer|physician|surgeon|resident|attending|consultant|rn|"
    rf"mother|father|husband|wife|daughter|son|brother|sister|spouse|guardian|uncle|aunt|neighbou?r|by|with)\s+(?P<n>{_PERSON})"
)
_CREDENTIAL = re.compile(
    rf"(?P<n>(?:[^\W\d_]\.\s?)?{_NAME}(?:[\s^]+(?:[^\W\d_]\.\s?)?{_NAME}){{0,2}}),?\s+(?:m\.?d\.?|d\.?o\.?|r\.?n\.?|ph\.?d\.?|rt\(r\)|r\.?t\.?)(?![^\W_])"
)
_CARET = re.compile(rf"{_NAME}\^{_NAME}(?:\^[^\s,;]*)*")
_PLACE = re.compile(
    r"(?:[^\W\d_][^\W\d_.'’\-]*[.]?[\s\-]+){1,4}?(?P<head>hospital|hosp|clinic|klinik|klinikum|krankenhaus|medical cent(?:er|re)|university|universitat|universität|universitatsklinikum|infirmary|"
    r"health(?:care)? (?:system|cent(?:er|re)|services)|imaging cent(?:er|re)|radiology associates|institute|hospice|nursing home|foundation|trust)(?![^\W_])(?:\s+of\s+[^\W\d_]+(?:\s[^\W\d_]+)?)?"
    r"|(?:hospital|clinic|klinikum|klinik|krankenhaus|university|universität|universitat|h[oô]pital|ospedale|clinica|institute|chu|centre hospitalier)\s+(?:of |de |di |du |del |general |universitario |am |st\.? )*"
    r"[^\W\d_][\w'’\-]+"
)
_CJK_PLACE = re.compile(
    r"[\u3400-\u9fff\u30a0-\u30ff]{1,8}(?:病院|医院|大学|医療センター|診療所|クリニック)|[\uac00-\ud7af]{1,8}(?:병원|의료원|대학교)"
)
_GENERIC = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "our",
        "outside",
        "local",
        "of",
        "at",
        "in",
        "from",
        "to",
        "with",
        "and",
        "or",
        "patient",
        "teaching",
        "academic",
        "university",
        "hospital",
        "clinic",
        "general",
        "by",
        "for",
        "same",
        "another",
        "other",
        "previous",
        "prior",
        "referring",
        "transferred",
        "admitted",
        "day",
        "night",
        "is",
        "was",
        "no",
        "children",
        "childrens",
        "eye",
        "dental",
        "outpatient",
        "inpatient",
        "pain",
    ]
)
_KINDS = frozenset(
    [
        "hosp",
        "klinik",
        "klinikum",
        "krankenhaus",
        "medical",
        "center",
        "centre",
        "infirmary",
        "health",
        "healthcare",
        "system",
        "institute",
        "trust",
        "foundation",
        "imaging",
        "services",
        "radiology",
        "associates",
        "nursing",
        "home",
        "hospice",
        "regional",
        "community",
        "memorial",
        "national",
        "county",
    ]
)
_PLACE_WORDS = frozenset(
    [
        "st",
        "saint",
        "mount",
        "valley",
        "lake",
        "river",
        "hill",
        "hills",
        "park",
        "green",
        "north",
        "south",
        "east",
        "west",
        "central",
        "cross",
        "royal",
        "queen",
        "king",
        "bay",
        "beach",
        "city",
        "grace",
        "mercy",
        "forest",
        "wood",
        "field",
        "church",
        "bridge",
        "new",
        "old",
        "red",
        "white",
        "black",
        "grand",
        "spring",
        "springs",
        "creek",
        "island",
        "harbor",
        "harbour",
        "ridge",
        "sacred",
        "holy",
        "heart",
    ]
)
_STOP = frozenset(
    [
        "by",
        "with",
        "for",
        "at",
        "in",
        "on",
        "of",
        "and",
        "or",
        "to",
        "from",
        "the",
        "is",
        "was",
        "has",
        "had",
        "no",
        "not",
        "per",
        "via",
        "into",
        "after",
        "before",
        "during",
        "as",
    ]
)


def clean_text(text: str, identity: Identity, days: int | None, month_first: bool = True) -> str:
    """The text without what identifies; unchanged (the same object) when nothing does."""
    cleaned = _clean(text, identity, days, month_first)
    return text if cleaned == text else cleaned


@lru_cache(maxsize=16384)
def _clean(text: str, identity: Identity, days: int | None, month_first: bool) -> str:
    folded, origin = fold(text)
    spans = [(start, end, "") for start, end in identity.spans(folded) + _written(text, identity, origin)]
    spans += _dates(folded, identity, days, month_first)
    spans += [(s, e, "") for s, e in _forms(folded)]
    spans += [(s, e, "") for s, e in _people(text, folded, origin)]
    if not spans:
        return text
    return _cut(text, spans, origin)


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


def _dates(folded: str, identity: Identity, days: int | None, month_first: bool) -> list[tuple[int, int, str]]:
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
    return out


def _forms(folded: str) -> list[tuple[int, int]]:
    spans = []
    if any(char.isdigit() for char in folded):
        spans += [m.span() for m in _ADDRESS.finditer(folded)]
        spans += [m.span() for m in _ID_CUE.finditer(folded)]
        spans += [m.span() for m in _LONG_NUMBER.finditer(folded)]
        spans += [m.span() for m in _UID.finditer(folded) if not m[0].startswith("1.2.840.10008.")]
        spans += [m.span("a") if m["a"] else m.span("b") for m in _AGE.finditer(folded)]
    spans += [m.span() for m in _CONTACTS.finditer(folded)]
    for match in _PLACE.finditer(folded):
        span = _trimmed_place(match, folded)
        if span:
            spans.append(span)
    if not folded.isascii():
        spans += [m.span() for m in _CJK_PLACE.finditer(folded)]
    return spans


def _trimmed_place(match: re.Match[str], folded: str) -> tuple[int, int] | None:
    """The institution's own words before (or after) its kind, back to a word such as "from"; None when there are none."""
    words = list(re.finditer(r"[^\W_][\w'’]*", match[0]))
    if match["head"] is None:
        own = [w for w in words[1:] if w[0] not in _GENERIC and w[0] not in _KINDS]
        return match.span() if own else None
    head = match.start("head") - match.start()
    start, distinctive = None, False
    for word in reversed([w for w in words if w.start() < head]):
        if word[0] in _STOP or (word[0] in _GENERIC and distinctive):
            break
        if word[0] in _GENERIC or word[0] in _KINDS:
            continue
        if word[0] in common_words() and word[0] not in _PLACE_WORDS and word[0] not in last_names():
            break
        start, distinctive = word.start(), True
    return None if start is None else (match.start() + start, match.end())


def _people(text: str, folded: str, origin: list[int] | None) -> list[tuple[int, int]]:
    spans = [m.span() for m in _CARET.finditer(folded) if not set(re.split(r"\^+", m[0])) - {""} <= vocabulary()]
    page = _Page(text, folded, origin)
    for pattern, trim in (
        (_TITLE, page.titled),
        (_BY, page.named),
        (_LABEL, page.named),
        (_ROLE, page.sure),
        (_CREDENTIAL, page.before),
    ):
        pos = 0
        while (match := pattern.search(folded, pos)) is not None:
            span = trim(match)
            if span is not None:
                spans.append(span)
            pos = max(span[1] if span else match.start("n"), match.start() + 1)
    return spans + page.listed()


class _Page:
    """One text in both spellings; tells which words after (or before) a cue are a name."""

    def __init__(self, text: str, folded: str, origin: list[int] | None) -> None:
        self.text, self.folded, self.origin = text, folded, origin
        letters = [c for c in text if c.isalpha()]
        self.shouting = bool(letters) and sum(c.isupper() for c in letters) > 0.7 * len(letters)

    def capital(self, position: int) -> bool:
        return self.text[self.origin[position] if self.origin else position].isupper()

    def _name(self, word: str, position: int, known: bool = False) -> bool:
        """Whether a word can be a name: written with a capital, and no ordinary word unless it is also a surname."""
        if word in _STOP or not (self.capital(position) or self.shouting):
            return False
        if word in last_names() or word in first_names():
            return not (self.shouting and word in common_words())
        return not known and word not in vocabulary()

    def _run(self, match: re.Match[str], accept: Callable[[int, str, int], bool]) -> tuple[int, int] | None:
        """From the start of the match over the words that are accepted."""
        start = end = match.start("n")
        found = False
        for index, word in enumerate(re.finditer(_NAME, match["n"])):
            where = start + word.start()
            if len(word[0]) == 1 and not found:
                continue
            if word[0] in _PARTICLES and found:
                continue
            if not accept(index if not found else index + 1, word[0], where):
                break
            if word[0] in EPONYMS and used_as_eponym(self.folded, start + word.end()):
                break
            end, found = start + word.end(), True
        return (start, end) if found else None

    def titled(self, match: re.Match[str]) -> tuple[int, int] | None:
        """After a title the first word is a name even if it is an ordinary word written with a capital."""
        followed = match.end("t") < len(self.folded)

        def accept(index: int, word: str, where: int) -> bool:
            if index == 0 or where == match.start("n"):
                plain = word in vocabulary() and word not in last_names()
                return followed and word not in _STOP and (not plain or (self.capital(where) and not self.shouting))
            return self._name(word, where)

        return self._run(match, accept)

    def named(self, match: re.Match[str]) -> tuple[int, int] | None:
        """After "read by" and "operator:" any word that is no ordinary word is a name."""
        first = match.start("n")

        def accept(index: int, word: str, where: int) -> bool:
            if word in vocabulary() and where == first:
                return self._name(word, where, known=True)
            return word not in vocabulary() or self._name(word, where)

        return self._run(match, accept)

    def sure(self, match: re.Match[str]) -> tuple[int, int] | None:
        """After a role only what is known as a name."""
        return self._run(match, lambda index, word, where: self._name(word, where, known=index == 0))

    def before(self, match: re.Match[str]) -> tuple[int, int] | None:
        """Before a credential, backwards to the first ordinary word."""
        words = list(re.finditer(_NAME, match["n"]))
        start = end = match.end("n")
        for word in reversed(words):
            where = match.start("n") + word.start()
            single = len(word[0]) == 1 and start != end
            if not single and not self._name(word[0], where):
                break
            start = where
        return (start, end) if end > start else None

    def listed(self) -> list[tuple[int, int]]:
        """Given name and surname side by side, in either order, when written with capitals."""
        words = list(_CANDIDATE.finditer(self.folded))
        spans = []
        for one, two in pairwise(words):
            between = self.folded[one.end() : two.start()]
            if not _BETWEEN.fullmatch(between) or not (self.capital(one.start()) and self.capital(two.start())):
                continue
            pair = (one[0], two[0])
            if two[0] in EPONYMS and used_as_eponym(self.folded, two.end()):
                continue
            first = [w in first_names() and w not in common_words() for w in pair]
            other = [w in last_names() or w not in vocabulary() for w in pair]
            if (first[0] and other[1]) or (first[1] and other[0]):
                spans.append((one.start(), two.end()))
        return spans


_PARTICLES = frozenset(
    ["van", "von", "de", "der", "den", "la", "le", "del", "di", "da", "dos", "bin", "al", "el", "ter"]
)
_BETWEEN = re.compile(r"[\s,^]{1,2}(?:[a-z]\.?\s)?(?:(?:van|von|de|der|den|la|le|del|di|da|dos|bin|al|el|ter)\s)*")
_CANDIDATE = re.compile(r"(?<![^\W_])[^\W\d_][^\W\d_'’\-]+(?![^\W_])")


def _cut(text: str, spans: list[tuple[int, int, str]], origin: list[int] | None) -> str:
    """Replace the spans (in folded positions), the longest first where they overlap, and mend the blanks left."""
    merged: list[tuple[int, int, str]] = []
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
