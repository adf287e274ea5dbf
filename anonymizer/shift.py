"""Shifts dates by whole days in DA, DT and running text, so that every interval and every time of day is kept."""

from __future__ import annotations

import datetime
import re
import unicodedata
from functools import cache

_DA = re.compile(r"(\d{4})([.\-/]?)(\d{2})\2(\d{2})$")
_DT = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{0,6}(?:\.\d{1,6})?)([+-]\d{4})?$")
_TM = re.compile(r"\d{2}(:?[0-5]\d(:?[0-6]\d(\.\d{1,6})?)?)?$|\d{2}(-)$")


def shifted(year: int, month: int, day: int, days: int) -> datetime.date | None:
    """The date moved by ``days``; None when it is no date or leaves the calendar."""
    try:
        return datetime.date(year, month, day) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None


def shift_da(value: str, days: int) -> str | None:
    """A DA value or range (also the old YYYY.MM.DD form) moved; None when it is no date."""
    if not value:
        return value
    if value.count("-") == 1 and (len(value) > 10 or value[0] == "-" or value[-1] == "-"):
        ends = [shift_da(part.strip(), days) for part in value.split("-")]
        return None if None in ends else "-".join(end or "" for end in ends)
    match = _DA.match(value)
    if match is None:
        return None
    moved = shifted(int(match[1]), int(match[3]), int(match[4]), days)
    return None if moved is None else match[2].join((f"{moved.year:04d}", f"{moved.month:02d}", f"{moved.day:02d}"))


def shift_dt(value: str, days: int) -> str | None:
    """A DT value moved with its time of day, precision and zone kept; None when it is no date time."""
    if not value:
        return value
    match = _DT.match(value)
    if match is None:
        return shift_da(value, days)
    if match[4] and not match[3]:
        return None
    moved = shifted(int(match[1]), int(match[2] or 7), int(match[3] or 1 if match[2] else 1), days)
    if moved is None:
        return None
    text = f"{moved.year:04d}" + (f"{moved.month:02d}" if match[2] else "") + (f"{moved.day:02d}" if match[3] else "")
    return text + match[4] + (match[5] or "")


def is_tm(value: str) -> bool:
    """Whether a TM value (or range) is a time and nothing else."""
    return all(not part or _TM.match(part) for part in value.split("-"))


_CALENDARS = tuple(
    tuple(names.split())
    for names in (
        "January February March April May June July August September October November December",
        "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
        "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "Jänner Februar März April Mai Juni Juli August Sept Okt November Dez",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "januari februari maart april mei juni juli augustus september oktober november december",
        "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
        "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
    )
)


def _folded(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c)).replace(
        "ł", "l"
    )


_MONTHS = {_folded(name): number for names in reversed(_CALENDARS) for number, name in enumerate(names, 1)}
_MONTHS["sept"] = 9
_MONTH = "(?:" + "|".join(sorted(_MONTHS, key=lambda name: (-len(name), name))) + ")"
_SURE_MONTH = (
    "(?:"
    + "|".join(
        sorted(
            (m for m in _MONTHS if m not in ("may", "mar", "march", "mai", "mars", "marca", "sep", "dec")),
            key=len,
            reverse=True,
        )
    )
    + ")"
)
_Y, _M, _D = r"(?P<y>(?:1[89]|20)\d\d)", r"(?P<m>0?[1-9]|1[0-2])", r"(?P<d>0?[1-9]|[12]\d|3[01])"
_MM, _DD = r"(?P<m>0[1-9]|1[0-2])", r"(?P<d>0[1-9]|[12]\d|3[01])"
_NO_SIZE = r"(?![\d.])(?!\s?(?:mm|cm|m\b|ml|x\b))"
_CLOCK = r"(?P<t>\s\d{1,2}:\d\d(?::\d\d)?\s)"
_WHEN = r"(?:on|dated?|since|from|prior|until|till|exam|visit|seen|scan(?:ned)?|lmp|am|vom|le|el|comp(?:arison)?)"
# (regular expression, how to write the result; "" removes it); searched in folded text, "_" counting as a space
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (rf"(?<!\d){_Y}{_MM}{_DD}(?=(?:[012]\d[0-5]\d(?:[0-5]\d)?)?(?:\.\d+)?(?!\d))", "{y}{m:02d}{d:02d}"),
        (rf"(?<!\d){_Y}(?P<s>[-/.])\s?{_M}(?P=s)\s?{_D}(?!\d)", "{y}{s}{m:02d}{s}{d:02d}"),
        (rf"(?<!\d){_Y} {_MM} {_DD}(?!\d)", "{y} {m:02d} {d:02d}"),
        (rf"{_Y}\s?年\s?{_M}\s?月\s?{_D}\s?日", "{y}年{m}月{d}日"),
        (rf"{_Y}\s?년\s?{_M}\s?월\s?{_D}\s?일", "{y}년 {m}월 {d}일"),
        (
            r"(?:明治|大正|昭和|平成|令和)\s?(?:元|\d{1,2})\s?年(?:\s?\d{1,2}\s?月)?(?:\s?\d{1,2}\s?日)?|(?<![a-z])[mtshr]\d{1,2}\.\d{1,2}\.\d{1,2}(?!\d)",
            "",
        ),
        (rf"(?<![\d.]){_D}(?P<s>[-/.])\s?{_M}(?P=s)\s?{_Y}(?!\d)", "DMY"),
        (rf"(?<![\d.]){_M}(?P<s>[-/])\s?{_D}(?P=s)\s?{_Y}(?!\d)", "MDY"),
        (
            rf"(?<!\d){_D}(?:st|nd|rd|th|er|\.)?[ \-/]?(?:of |de )?(?P<b>{_MONTH})\.?,?(?: de)?(?P<g>[ \-/]?){_Y}(?!\d)",
            "DBY",
        ),
        (rf"(?<![a-z])(?P<b>{_MONTH})\.?[ \-]?{_D}(?:st|nd|rd|th)?,?[ \-]{_Y}(?!\d)", "{b} {d}, {y}"),
        (rf"(?<![a-z])(?P<b>{_MONTH})\.?\s{_D}{_CLOCK}{_Y}(?!\d)", "{b} {d}{t}{y}"),
        (rf"(?<![\d.]){_D}(?P<s>[-/.]){_M}(?P=s)(?P<yy>\d\d){_NO_SIZE}", "DMY"),
        (rf"(?<![\d.]){_M}(?P<s>[-/.]){_D}(?P=s)(?P<yy>\d\d){_NO_SIZE}", "MDY"),
        (rf"(?<!\d){_D}(?:\.\s?|[ \-]?)(?P<b>{_MONTH})\.?(?P<g>[ \-]?)['’]?(?P<yy>\d\d)(?![\d:])", "DBY"),
        (rf"(?<!\d){_DD}{_MM}{_Y}(?!\d)", "{d:02d}{m:02d}{y}"),
        (rf"(?<!\d){_MM}{_DD}{_Y}(?!\d)", "{m:02d}{d:02d}{y}"),
        (rf"(?<![a-z])(?P<b>{_MONTH})\.?,?[ \-]{_Y}(?!\d)", ""),
        (rf"(?<![\d./\-]){_M}/{_Y}(?!\d)", ""),
        (rf"(?<![\d.]){_M}\.{_D}\.{_Y}(?!\d)", ""),
        # a day without its year: nothing says how far to move it
        (
            rf"(?<!\d){_D}(?:st|nd|rd|th)\s(?:of\s)?(?P<b>{_MONTH})(?![a-z])|(?<![a-z]){_MONTH}\.?\s\d{{1,2}}(?:st|nd|rd|th)(?![a-z])",
            "",
        ),
        (
            rf"(?<![\d.]){_D}\.?\s(?:de\s)?(?P<b>{_SURE_MONTH}|march)(?![a-z])(?!\s(?:fracture|views?))|(?<![a-z]){_SURE_MONTH}\.?\s(?:[12]\d|3[01]|0?[1-9])(?![\d.:/])(?!\s?(?:mm|cm|ml|views?|x))",
            "",
        ),
        (rf"(?<=\s){_D}\s(?:may|mai)(?![a-z])(?=\s*(?:$|[,.;)]|at\s|um\s))", ""),
        (
            rf"(?<![a-z]){_WHEN}[\s:]+(?P<only>(?:0[1-9]|1[0-2])[/.](?:0[1-9]|[12]\d|3[01])|(?:0[1-9]|[12]\d|3[01])[/.](?:0[1-9]|1[0-2]))(?![\d/.])",
            "",
        ),
        (r"(?<![\d/])\d{1,2}/\d{1,2}(?=\s?[\-–]\s?\d{1,2}/\d{1,2}/\d{2,4})", ""),
    )
)


def dates_in(folded: str, days: int | None, month_first: bool = True) -> list[tuple[int, int, str]]:
    """(start, end, replacement) of each date in a folded text; the replacement is empty when ``days`` is None.

    A date such as 03/04/2020 is read month first or day first as asked; dates without a day or a year are removed.
    """
    found: list[tuple[int, int, str]] = []
    if not any(ch.isdigit() for ch in folded):
        return found
    for pattern, form in _month_first() if month_first else _FORMS:
        for match in pattern.finditer(folded):
            start, end = match.span("only") if "only" in pattern.groupindex else match.span()
            if any(start < e and s < end for s, e, _ in found):
                continue
            found.append((start, end, _rewritten(match, form, days)))
    return found


@cache
def _month_first() -> tuple[tuple[re.Pattern[str], str], ...]:
    """The forms with each pair of day-first and month-first exchanged."""
    forms = list(_FORMS)
    for index, (_, form) in enumerate(_FORMS[:-1]):
        if form == "DMY":
            forms[index], forms[index + 1] = forms[index + 1], forms[index]
    return tuple(forms)


def _rewritten(match: re.Match[str], form: str, days: int | None) -> str:
    part = match.groupdict()
    if days is None or not form:
        return ""
    month = int(part["m"]) if part.get("m") else _MONTHS[part["b"]]
    short = part.get("yy")
    year = int(part["y"]) if part.get("y") else int(short or 0) + (2000 if int(short or 0) <= 30 else 1900)
    moved = shifted(year, month, int(part["d"]), days)
    if moved is None:
        return ""
    sep = part.get("s") or ""
    form = {"DMY": "{d:02d}{s}{m:02d}{s}{y}", "MDY": "{m:02d}{s}{d:02d}{s}{y}", "DBY": "{d}{g}{b}{g}{y}"}.get(
        form, form
    )
    text = f"{moved.year % 100:02d}" if short else f"{moved.year:04d}"
    gap, clock = " " if part.get("g") is None else part["g"], part.get("t") or " "
    return form.format(
        y=text, m=moved.month, d=moved.day, s=sep, g=gap, t=clock, b=_month_like(part.get("b"), moved.month)
    )


def _month_like(word: str | None, month: int) -> str:
    """The month's name in the language and length of ``word``."""
    calendar = next((names for names in _CALENDARS if word and word in map(_folded, names)), _CALENDARS[1])
    if word == "may":
        calendar = _CALENDARS[0]
    return calendar[month - 1]
