"""Finds dates whose day or year is written in words ("the fifteenth of March two thousand nineteen") in folded text."""
# ruff: noqa: E501 - patterns and word lists read better whole

from __future__ import annotations

import datetime
import re
from functools import cache

_UNITS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth"
    " sixteenth seventeenth eighteenth nineteenth twentieth"
)
_GERMAN = "ein zwei drei vier funf sechs sieben acht neun zehn elf zwolf dreizehn vierzehn funfzehn sechzehn siebzehn achtzehn neunzehn"
_FRENCH = (
    "premier deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit"
    " dix-neuf vingt vingt-et-un vingt-deux vingt-trois vingt-quatre vingt-cinq vingt-six vingt-sept vingt-huit"
    " vingt-neuf trente trente-et-un"
)
_SPANISH = (
    "uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete dieciocho"
    " diecinueve veinte veintiuno veintidos veintitres veinticuatro veinticinco veintiseis veintisiete veintiocho"
    " veintinueve treinta"
)
_ITALIAN = (
    "uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette"
    " diciotto diciannove venti ventuno ventidue ventitre ventiquattro venticinque ventisei ventisette ventotto"
    " ventinove trenta trentuno"
)
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}


_TENS_FR = "vingts?|trente|quarante|cinquante|soixante"
_TENS_ES = "cuarenta|cincuenta|sesenta|setenta|ochenta|noventa"


@cache
def _numbers() -> dict[str, int]:
    """Cardinal numbers from 1 to 99 in English, and to 31 in German, French, Spanish and Italian."""
    english = {word: number for number, word in enumerate(_UNITS.split(), 1)}
    found = dict(english)
    for tens, value in _TENS.items():
        found[tens] = value
        for word in _UNITS.split()[:9]:
            found |= {f"{tens}-{word}": value + english[word], f"{tens} {word}": value + english[word]}
    german = {word: number for number, word in enumerate(_GERMAN.split(), 1)}
    found |= german | {"zwanzig": 20, "dreissig": 30, "einunddreissig": 31, "zweitausend": 0}
    found |= {f"{unit}undzwanzig": 20 + german[unit] for unit in _GERMAN.split()[:9]}
    for words in (_FRENCH, _SPANISH, _ITALIAN):
        found |= {word: number for number, word in enumerate(words.split(), 1)}
    return found


@cache
def _days() -> dict[str, int]:
    """Days of a month in words, cardinal and ordinal."""
    found = {word: number for word, number in _numbers().items() if 0 < number <= 31}
    ordinals = {word: number for number, word in enumerate(_ORDINALS.split(), 1)} | {"thirtieth": 30}
    for tens in ("twenty", "thirty"):
        for word in _ORDINALS.split()[: 9 if tens == "twenty" else 1]:
            ordinals |= {f"{tens}{gap}{word}": _TENS[tens] + ordinals[word] for gap in "- "}
    found |= ordinals
    for word, number in (*_german_days(), ("erste", 1), ("dritte", 3), ("siebte", 7), ("achte", 8)):
        found |= {word + ending: number for ending in ("", "n", "r")}
    return found


def _german_days() -> list[tuple[str, int]]:
    numbers = _numbers()
    low = [(f"{word}te", number) for number, word in enumerate(_GERMAN.split(), 1)]
    high = [(f"{word}ste", n) for word, n in numbers.items() if word.endswith(("zwanzig", "dreissig"))]
    return low + high


def _any_of(words: dict[str, int]) -> str:
    return "|".join(sorted(map(re.escape, words), key=lambda word: (-len(word), word)))


@cache
def _patterns(month: str) -> tuple[re.Pattern[str], ...]:
    number, day = _any_of(_numbers()), _any_of(_days())
    year = (
        rf"(?:(?P<y>(?:1[89]|20)\d\d)|(?:two thousand|deux mille|dos mil|duemila|zweitausend)(?:\s?and)?[\s\-]?(?P<k>(?:{number})?)"
        rf"|(?P<c>nineteen|twenty)[\s\-](?:hundred(?:\sand)?\s)?(?:oh[\s\-])?(?P<r>{number})"
        rf"|(?P<o>neunzehnhundert[a-z]+|mille neuf cents?(?:[\s\-](?:et|{_TENS_FR}|{number}))*|mil novecientos(?:\s(?:y|{_TENS_ES}|{number}))*|millenovecento[a-z]+))"
    )
    gap = r"[\s,]{1,2}"
    return (
        re.compile(
            rf"(?<![^\W_])(?P<d>{day})[\s\-](?:of\s|de\s|di\s)?(?P<b>{month})(?:{gap}(?:de\s|del\s|of\s)?{year})?(?![^\W_])"
        ),
        re.compile(rf"(?<![^\W_])(?P<b>{month})[\s\-](?:the\s)?(?P<d>{day})(?:{gap}(?:of\s)?{year})?(?![^\W_])"),
        re.compile(
            rf"(?<![^\W_])(?P<n>\d{{1,2}})(?:st|nd|rd|th|\.)?\s(?:of\s|de\s)?(?P<b>{month}){gap}(?:de\s|del\s)?{year}(?![^\W_])"
        ),
        re.compile(rf"(?<![^\W_])(?P<b>{month})\s(?P<n>\d{{1,2}})(?:st|nd|rd|th)?{gap}{year}(?![^\W_])"),
    )


def spoken_dates(folded: str, days: int | None, months: dict[str, int], month: str) -> list[tuple[int, int, str, str]]:
    """(start, end, replacement, YYYYMMDD or "") of dates in words; moved by ``days`` they are written in digits.

    A date without its year, or with one that cannot be read, is removed. ``months``: names in folded text and their
    numbers; ``month``: the regular expression of any of them.
    """
    if not _likely(folded):
        return []
    found: list[tuple[int, int, str, str]] = []
    for pattern in _patterns(month):
        for match in pattern.finditer(folded):
            if any(match.start() < end and start < match.end() for start, end, *_ in found):
                continue
            part = match.groupdict()
            year = _year(part)
            doubtful = part.get("d") in _numbers() or part["b"] in ("may", "march")
            if year is None and doubtful and part["o"] is None:
                continue  # "two march", "second may": no date without its year
            if part.get("n") and part["y"]:
                continue  # written in digits but for the month: not spoken
            found.append((*match.span(), *_moved(part, year, months, days)))
    return found


def _moved(part: dict[str, str | None], year: int | None, months: dict[str, int], days: int | None) -> tuple[str, str]:
    day = int(part["n"] or 0) if part.get("n") else _days()[str(part["d"])]
    try:
        date = datetime.date(year or 0, months[str(part["b"])], day)
        same = f"{date:%Y%m%d}"
        if days is None:
            return "", same
        date += datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return "", ""
    return f"{date.day} {date:%B %Y}", same


def _year(part: dict[str, str | None]) -> int | None:
    if part["y"]:
        return int(part["y"])
    if part["k"] is not None:
        return 2000 + _numbers().get(part["k"], 0)
    if part["c"]:
        return (1900 if part["c"] == "nineteen" else 2000) + _numbers()[str(part["r"])]
    return None


_SIGNS = re.compile(
    r"teenth|fifth|first|second|third|fourth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|twentieth|thirtieth|thousand"
    r"|twenty|thirty|nineteen|(?:st|zehn)e[nr]?(?![a-z])|te[nr]?\s|mille|\bmil\b|mila\b|tausend|hundert|prem|vingt|trent|\bde [a-z]"
    r"|(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|teen)\s[a-z]"
)


def _likely(folded: str) -> bool:
    """Whether a text has any word that such a date needs: a quick look before the slow one."""
    return _SIGNS.search(folded) is not None
