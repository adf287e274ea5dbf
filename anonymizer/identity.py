"""What is known to identify people in one object: names, identifiers and places from its own attributes, as search tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from anonymizer.charset import Charset
from anonymizer.words import VENDORS, common_words, fold, other_kana, spellings, vocabulary

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_LONG_WORD = re.compile(r"(?<![^\W_])[^\W\d_]{5,}(?![^\W_])")
_MIXED_WORD = re.compile(r"(?<![^\W_])(?=[a-z]*\d[a-z\d]*[a-z]|[a-z]{5,}\d)[a-z\d]{6,}(?![^\W_])")
_LOOKALIKE = str.maketrans("01345", "oleas")
_FLEETING_E = re.compile(r"[bcdfghjklmnprstvz]e[kcl]$")  # West Slavic surnames that lose it in other cases
_QUANTITY = re.compile(r"[+\-]\d{1,7}|[+\-]?\d{1,4}\.\d{1,4}")  # a zone or a measure that stands in many places
_SHORT_MIXED = re.compile(r"[a-z]{1,3}[\-/ ]?\d{1,2}|\d{1,2}[\-/ ]?[a-z]{2,3}")
# letters that stand before or behind a number in any report: levels, sequences, modalities, units
_BEFORE_NUMBERS = """
    a b c d e f g h i l m n p r s t v ct mr us pt nm cr dx xa mg th co ca st iv mm cm ml kg gy kv mt hz bq mbq tr te ti fa nr no
    seg fr im se ser vol ph art dwi adc tse dl br qr hr bi pi li az el in per sec min day ap pa lat ii iii lao rao
    rv lv la ra ef gcs bp spo hb inr crp cea psa afp ki her er pr cd il bmp mp max avg rad sd
"""
_LEVELS = frozenset(_BEFORE_NUMBERS.split())
# cities that scales, criteria and makers are named after: in an institution's address they are where it lies
_CITIES = frozenset(["berlin", "boston", "cambridge", "groningen", "moscow", "munich", "oxford", "tokyo"])
_TITLES = frozenset(
    {"dr", "md", "prof", "mr", "mrs", "ms", "miss", "jr", "sr", "ii", "iii", "iv", "rn", "rt", "phd"}
    | {"do", "herr", "frau", "dipl", "med", "von", "van", "de", "der", "la", "le", "du"}
)
_NO_NAME = frozenset(
    {"anonymous", "anonymized", "anon", "anonymised", "unknown", "none", "patient", "test", "phantom", "na"}
    | {"null", "unnamed", "removed", "no", "name", "noname"}
)


class Source(NamedTuple):
    """A removed value: its kind ("name", "id", "place", "birth" or "day") and its text."""

    kind: str  # also "raw": the bytes of a name's part, as Latin-1
    text: str


Told = tuple[str, bytes, Charset]  # the kind of a removed value, its bytes, and the character set they are written in


def sources_of(told: Iterable[Told]) -> frozenset[Source]:
    """The removed values of one object as texts."""
    sources: set[Source] = set()
    for kind, value, chars in told:
        text = chars.decode(value)[0].strip(" \0")
        if kind == "name" and not value.isascii():
            sources.update(Source("raw", part.decode("latin-1")) for part in raw_parts(value))
        if kind in ("birth", "day"):
            text = re.sub(r"\D", "", text)[:8]
        if text:
            sources.update(Source(kind, part) for part in text.split("\\"))
    return frozenset(sources)


@dataclass(frozen=True)
class Identity:
    """Compiled search tokens. ``pattern`` matches folded text; ``verify`` are folded tokens that must not survive."""

    pattern: re.Pattern[str] | None
    cjk: re.Pattern[str] | None
    verify: tuple[str, ...]
    birth_dates: frozenset[str]
    inside: re.Pattern[str] | None = None
    spelled: tuple[str, ...] = ()  # words with letters beyond ASCII, as they were written
    raw: tuple[bytes, ...] = ()  # parts of names as their bytes stood, whatever character set was meant
    days: frozenset[str] = frozenset()  # YYYYMMDD of the object's own dates, to be known again when written short
    names: tuple[str, ...] = ()  # long parts of names, to be known again with a slip of the pen
    everyday: frozenset[str] = frozenset()  # parts of names that are everyday words
    short: frozenset[str] = frozenset()  # parts of names of two letters

    def spans(self, folded: str) -> list[tuple[int, int]]:
        """Where a folded text holds a token."""
        found = [] if self.pattern is None else [m.span() for m in self.pattern.finditer(folded)]
        if self.inside is not None:
            found += [span for m in self.inside.finditer(folded) if (span := _whole_word(folded, m)) is not None]
        if self.cjk is not None and not folded.isascii():
            found += [m.span() for m in self.cjk.finditer(folded)]
        if self.names:
            found += [m.span() for m in _LONG_WORD.finditer(folded) if self._misspelt(m[0])]
            found += [m.span() for m in _MIXED_WORD.finditer(folded) if m[0].translate(_LOOKALIKE) in self.names]
        return found

    def _misspelt(self, word: str) -> bool:
        """Whether an unknown word is a part of a name but for one letter added, left out, changed or two exchanged."""
        near = [name for name in self.names if abs(len(name) - len(word)) <= 1 and name[0] == word[0]]
        return bool(near) and word not in vocabulary() and any(_one_slip(name, word) for name in near)


def raw_parts(value: bytes) -> list[bytes]:
    """Components of a person name's bytes that are beyond ASCII and long enough to be looked for as they are."""
    parts = re.split(rb"[\\^=\x1b]|\x1b.{2,3}?(?=[\x21-\xff])", value)
    return [part.strip() for part in parts if len(part.strip()) >= 4 and not part.isascii()]


def _one_slip(one: str, two: str) -> bool:
    """Whether two different words are one edit (or one exchange of neighbours) apart."""
    if len(one) > len(two):
        one, two = two, one
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    if len(one) < len(two):
        return one[at:] == two[at + 1 :]
    return one[at + 1 :] == two[at + 1 :] or (
        one[at : at + 2] == two[at : at + 2][::-1] and one[at + 2 :] == two[at + 2 :]
    )


def _whole_word(folded: str, match: re.Match[str]) -> tuple[int, int] | None:
    """The word around a match, None when it is an ordinary word ("anders" in "andersartig" is not the patient)."""
    start, end = match.span()
    while start and folded[start - 1].isalpha():
        start -= 1
    while end < len(folded) and folded[end].isalpha():
        end += 1
    return None if folded[start:end] in vocabulary() else (start, end)


def _stems(word: str) -> list[str]:
    """A Russian or Ukrainian name without the ending that its other cases change ("Соколова", "Соколовой")."""
    if len(word) < 6 or not "а" <= word[0] <= "я":
        return []
    return (
        [word[:-2]]
        if word[-2:] in ("ий", "ыи", "ои", "ая", "яя", "ый", "ой")
        else [word[:-1]]
        if word[-1] in "аяьйи"
        else []
    )


def _name_parts(text: str) -> tuple[list[list[str]], list[str]]:
    """(component groups as lists of words, whole spellings) of a person name."""
    groups = []
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) not in ("Mn", "Mc"))
    for group in re.split(r"[=\\]", text):
        words = [w for w in _WORD.findall(group.replace("^", " ")) if fold(w)[0] not in _TITLES]
        if words:
            groups.append(words)
    return groups, [g for g in re.split(r"[=\\]", text) if g.strip()]


class _Builder:
    """Collects alternatives of the compiled patterns."""

    def __init__(self) -> None:
        self.words: set[str] = set()  # matched at word boundaries
        self.glued: set[str] = set()  # matched anywhere, long enough to be unmistakable
        self.pairs: set[str] = set()  # regular expressions of ambiguous words beside each other
        self.cjk: set[str] = set()
        self.verify: set[str] = set()
        self.spelled: set[str] = set()
        self.names: set[str] = set()
        self.everyday: set[str] = set()
        self.short: set[str] = set()
        self.raw: set[bytes] = set()

    def name(self, text: str) -> None:
        for words in _name_parts(text)[0]:
            self.spelled.update(w for w in words if not w.isascii() and len(w) >= (2 if _CJK.search(w) else 4))
            latin = [w for w in words if not _CJK.search(w)]
            for word in words:
                if _CJK.search(word):
                    self._cjk(word, words)
            self._latin(latin)
        for component in re.split(r"[=\\^]", text):
            self._whole(_WORD.findall(component))

    def _whole(self, words: list[str]) -> None:
        """A component of several words with its particles: "van der Berg", "vanderberg"."""
        plain = [fold(word)[0] for word in words if not _CJK.search(word)]
        letters = "".join(plain)
        if len(plain) >= 2 and len(letters) >= 5 and not set(plain) <= _NO_NAME | _TITLES and not self._usual(plain):
            self.pairs.add(r"[\s.\-]{0,2}".join(map(re.escape, plain)))

    @staticmethod
    def _usual(plain: list[str]) -> bool:
        """Whether the words are ordinary ones that may stand together anywhere ("left hand")."""
        return set(plain) <= common_words()

    def _cjk(self, word: str, words: list[str]) -> None:
        whole = [fold(w)[0] for w in words if _CJK.search(w)]
        folded = fold(word)[0]
        self.cjk.add(r"[\s・·]?".join(map(re.escape, whole)))
        self.cjk.add(r"[\s・·]?".join(map(re.escape, reversed(whole))))
        if len(folded) >= 2:
            self.cjk.add(re.escape(folded))
            self.verify.add(folded)
            turned = fold(other_kana(unicodedata.normalize("NFKC", word)))[0]
            if turned != folded and len(turned) >= 3:
                self.cjk.add(re.escape(turned))
                self.verify.add(turned)
        else:
            self.cjk.add(re.escape(folded) + r"(?=\s?(?:先生|さん|様|氏|女士|小姐|씨|님|군|양|医師|医生))")

    def _latin(self, words: list[str]) -> None:
        pieces = [piece for w in words for piece in (w, *re.split(r"['’\-]", w)) if len(piece) > 2]
        parts = [s for w in pieces for s in spellings(w)]
        strong = {p for p in parts if len(p) >= 3 and p not in common_words() and p not in _NO_NAME}
        self.everyday |= {p for p in parts if len(p) >= 3 and p in common_words() and p not in _NO_NAME}
        for stem in (s for part in strong for s in _stems(part)):
            self.words.add(stem)
        for part in strong:
            if len(part) >= 5 and _FLEETING_E.search(part):  # Dvořáček, of Dvořáčka
                self.pairs.add(rf"{re.escape(part[:-2] + part[-1])}(?:a|u|i|y|em|om|ovi|owi|iem|ach|ami)")
        for part in strong:
            self.words.add(part)
            if (len(part) >= 4 or not part.isascii()) and part not in VENDORS:
                self.verify.add(part)
            if len(part) >= 6 and part.isalpha():
                self.names.add(part)
                self.pairs.add(r"[\s.\-]{0,2}".join(part))  # s p e l t or bro ken
        plain = [fold(w)[0] for w in words]
        self.short |= {p for p in plain if len(p) == 2 and p not in _NO_NAME | _TITLES}
        if len(plain) >= 2 and len(plain[0]) + len(plain[1]) >= 6 and not set(plain[:2]) <= _NO_NAME:
            one, two = plain[:2]
            self.verify.update((f"{one}^{two}", f"{one} {two}", f"{two} {one}", f"{one}, {two}", f"{one}_{two}"))
        for first in plain:
            for second in plain:
                long = len(first) + len(second) >= (4 if {first, second} - common_words() else 5)
                if first != second and long and not {first, second} <= _NO_NAME:
                    if first not in strong or second not in strong:
                        self.pairs.add(rf"{re.escape(first)}[\s,^.\-]{{1,3}}{re.escape(second)}")
                    if first not in _NO_NAME and second not in _NO_NAME and len(first) + len(second) >= 5:
                        self.glued.add(first + second)
        for part in strong:
            for initial in {p[0] for p in plain if p != part}:
                self.pairs.add(rf"{re.escape(part)}[\s,^.]{{1,3}}{initial}(?:\.|(?![^\W_]))")
                self.pairs.add(rf"(?<![^\W_]){initial}[\s.^]{{1,3}}{re.escape(part)}")

    def identifier(self, text: str) -> None:
        folded = fold(text.strip(" \0"))[0].strip()
        digits = sum(c.isdigit() for c in folded)
        if _SHORT_MIXED.fullmatch(folded) and not {folded, *re.findall("[a-z]+", folded)} & _LEVELS:
            self.words.add(folded)  # "QX-0", also spelt "QX 0"
            return
        if len(folded) < 4 or folded in common_words() or folded in _NO_NAME or _QUANTITY.fullmatch(folded):
            return
        if digits == 0 and any(w in common_words() for w in _WORD.findall(folded)):
            return
        if (digits >= 1 and len(folded) >= 5) or len(folded) >= 6:
            self.glued.add(folded)
            self.verify.add(folded)
        elif digits >= 3 or digits == 0:
            self.words.add(folded)
        bare = re.sub(r"[^0-9a-z]", "", folded)
        if bare != folded and len(bare) >= 6 and digits >= 4:
            self.glued.add(bare)
        numeric = re.fullmatch(r"\D{1,5}(\d{6,})", folded)
        if numeric:
            self.glued.add(numeric[1])

    def place(self, text: str) -> None:
        folded = re.sub(r"\s+", " ", fold(text.strip(" \0"))[0].strip())
        words = _WORD.findall(folded)
        usual = (common_words() | VENDORS) - _CITIES
        distinctive = [w for w in words if len(w) >= 4 and w not in usual and not w.isdigit()]
        if len(folded) >= 5 and (distinctive or len(words) >= 3):
            self.glued.add(folded)
            self.verify.add(folded)
        for word in distinctive:
            self.words.add(word)
            if len(word) >= 5:
                self.verify.add(word)
        if _CJK.search(folded):
            self.cjk.add(re.escape(folded))

    def build(self, birth_dates: frozenset[str], days: frozenset[str]) -> Identity:
        words = sorted(self.words, key=lambda w: (-len(w), w))
        glued = sorted(self.glued, key=lambda w: (-len(w), w))
        latin = [re.escape(w) + (r"(?:[а-я]{0,3})" if re.search("[а-я]", w) else r"(?:['’]?s)?") for w in words]
        anywhere = [_anywhere(w) for w in glued]
        bounded = [*sorted(self.pairs, key=lambda w: (-len(w), w)), *latin]
        alternatives = anywhere + ([rf"(?<![^\W_])(?:{'|'.join(bounded)})(?![^\W_])"] if bounded else [])
        long = sorted(
            (w for w in self.words if len(w) >= 5 and w.isalpha() and w not in vocabulary()), key=len, reverse=True
        )
        cjk = "|".join(sorted(self.cjk, key=lambda w: (-len(w), w)))
        return Identity(
            re.compile("|".join(alternatives)) if alternatives else None,
            re.compile(cjk) if cjk else None,
            tuple(sorted(self.verify)),
            birth_dates,
            re.compile("|".join(map(re.escape, long))) if long else None,
            tuple(sorted(self.spelled)),
            tuple(sorted(self.raw)),
            days,
            tuple(sorted(self.names)),
            frozenset(self.everyday),
            frozenset(self.short),
        )


def _anywhere(token: str) -> str:
    """A token as part of longer words, but a number never as part of a longer number."""
    before = r"(?<!\d)" if token[0].isdigit() else ""
    after = r"(?!\d)" if token[-1].isdigit() else ""
    if token.isalpha():
        before, after = r"(?<![^\W\d_])", r"(?![^\W\d_])"
    return before + re.escape(token).replace(r"\ ", r"[\s\-]{1,2}") + after


@lru_cache(maxsize=512)
def identity(sources: frozenset[Source]) -> Identity:
    """Compile the removed values of one object; cached, since the instances of a series share them."""
    builder = _Builder()
    for source in sources:
        if source.kind == "name":
            builder.name(source.text)
        elif source.kind == "id":
            builder.identifier(source.text)
        elif source.kind == "raw":
            builder.raw.add(source.text.encode("latin-1"))
        elif source.kind == "place":
            builder.place(source.text)
    births, days = (
        frozenset(s.text for s in sources if s.kind == kind and len(s.text) == 8) for kind in ("birth", "day")
    )
    return builder.build(births, days - births)
