"""Shifts dates by whole days in DA, DT and running text, so that every interval and every time of day is kept."""

# ruff: noqa: E501 - patterns read better whole
from __future__ import annotations

import datetime
import re
from functools import cache

from anonymizer.calendars import MONTH, MONTHS, ROMAN, SHORT_MONTH, SURE_MONTH, month_like
from anonymizer.spoken import spoken_dates
from anonymizer.words import fold

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


_Y, _M, _D = r"(?P<y>(?:1[89]|20)\d\d)", r"(?P<m>0?[1-9]|1[0-2])", r"(?P<d>0?[1-9]|[12]\d|3[01])"
_MM, _DD = r"(?P<m>0[1-9]|1[0-2])", r"(?P<d>0[1-9]|[12]\d|3[01])"
_NO_SIZE = r"(?!\d|\.\d)(?!\s?(?:mm|cm|m\b|ml|x\b))"
_THAI_MONTHS = "มกราคม กุมภาพันธ์ มีนาคม เมษายน พฤษภาคม มิถุนายน กรกฎาคม สิงหาคม กันยายน ตุลาคม พฤศจิกายน ธันวาคม"
_THAI = "|".join(fold(_THAI_MONTHS)[0].split())
_CLOCK = r"(?P<t>\s\d{1,2}:\d\d(?::\d\d)?\s)"
_WHEN = r"(?:on|dated?|since|from|prior|until|till|exam|visit|seen|scan(?:ned)?|lmp|am|vom|le|el|comp(?:arison)?)"
# (regular expression, how to write the result; "" removes it); searched in folded text, "_" counting as a space
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (rf"(?<!\d){_Y}{_MM}{_DD}(?P<t>(?:[012]\d[0-5]\d(?:[0-5]\d)?)?(?:\.\d+)?)(?!\d)", "{y}{m:02d}{d:02d}{t}"),
        (rf"(?<!\d){_Y}(?P<s>[-/.])\s?{_M}(?P=s)\s?{_D}(?!\d)", "{y}{s}{m:02d}{s}{d:02d}"),
        (rf"(?<!\d){_Y} {_MM} {_DD}(?!\d)", "{y} {m:02d} {d:02d}"),
        (rf"{_Y}\s?年\s?{_M}\s?月\s?{_D}\s?日", "{y}年{m}月{d}日"),
        (rf"{_Y}\s?년\s?{_M}\s?월\s?{_D}\s?일", "{y}년 {m}월 {d}일"),
        (
            r"(?:明治|大正|昭和|平成|令和)\s?(?:元|\d{1,2})\s?年(?:\s?\d{1,2}\s?月)?(?:\s?\d{1,2}\s?日)?|(?<![a-z])(?<!release )(?<!version )(?<!software )(?<!philips )[mtshr]\d{1,2}\.\d{1,2}\.\d{1,2}(?![\d.]|\s?(?:sp|lp|patch|rev|l)\s?\d)",
            "",
        ),
        (r"(?:民國|民国)\s?\d{1,3}\s?年(?:\s?\d{1,2}\s?月)?(?:\s?\d{1,2}\s?日)?", ""),
        (r"[〇零○一二三四五六七八九]{4}年(?:[一二三四五六七八九十]{1,2}月)?(?:[一二三四五六七八九十]{1,3}[日号])?", ""),
        (r"ngay\s\d{1,2}\sthang\s\d{1,2}(?:\snam\s\d{4})?", ""),
        (rf"{_D}\s?(?:{_THAI})\s?\d{{4}}", ""),
        (rf"(?<![\d.]){_D}(?P<s>[-/.])\s?{_M}(?P=s)\s?{_Y}(?!\d)", "DMY"),
        (rf"(?<![\d.]){_M}(?P<s>[-/])\s?{_D}(?P=s)\s?{_Y}(?!\d)", "MDY"),
        (
            rf"(?<!\d){_D}(?:st|nd|rd|th|er|\.)?[ \-/]?(?:of |de |ב)?(?P<b>{MONTH})\.?,?(?: de| del)?(?P<g>[ \-/]?){_Y}(?!\d)",
            "DBY",
        ),
        (rf"(?<!\d){_Y}(?P<s>[.\-/]?\s?)(?P<b>{MONTH})\.?(?P<g>[\- /]?){_D}(?:st|nd|rd|th)?(?!\d)", "{y}{s}{b}{g}{d}"),
        (
            rf"(?<![\d.]){_D}(?P<s>[-/. ]\s?|(?=[ivx]))(?P<r>{'|'.join(reversed(ROMAN))})(?P=s)(?:{_Y}|(?<![\dvx ])(?P<yy>\d\d))(?![\da-z])",
            "{d}{s}{r}{s}{y}",
        ),
        (rf"(?<![a-z])(?P<b>{MONTH})\.?[ \-]?{_D}(?:st|nd|rd|th)?,?[ \-]{_Y}(?!\d)", "{b} {d}, {y}"),
        (rf"(?<![a-z])(?P<b>{MONTH})\.?\s{_D}{_CLOCK}{_Y}(?!\d)", "{b} {d}{t}{y}"),
        (rf"(?<![\d.]){_D}(?P<s>[-/.]){_M}(?P=s)(?P<yy>\d\d){_NO_SIZE}", "DMY"),
        (rf"(?<![\d.]){_M}(?P<s>[-/.]){_D}(?P=s)(?P<yy>\d\d){_NO_SIZE}", "MDY"),
        (rf"(?<!\d){_D}(?:\.\s?|[ \-]?)(?P<b>{SHORT_MONTH})\.?(?P<g>[ \-]?)['’]?(?P<yy>\d\d)(?![\d:])", "DBY"),
        (rf"(?<!\d){_DD}{_MM}{_Y}(?!\d)", "{d:02d}{m:02d}{y}"),
        (rf"(?<!\d){_MM}{_DD}{_Y}(?!\d)", "{m:02d}{d:02d}{y}"),
        (rf"(?<![a-z])(?P<b>{MONTH})\.?,?[ \-]{_Y}(?!\d)", ""),
        (rf"(?<![a-z])(?P<b>{MONTH})\.?\s?['’]\d\d(?!\d)", ""),
        (rf"(?<![\d./\-]){_M}/{_Y}(?!\d)", ""),
        (rf"(?<![\d.]){_M}\.{_D}\.{_Y}(?!\d)", ""),
        (
            r"(?<![\d.\-/a-z])(?<!\d\.\.)(?:19[5-9]|20[0-4])\d[\-/](?:0[1-9]|1[0-2])(?![\d\-/]|\.\d)|(?<=\d\.\.)(?:19[5-9]|20[0-4])\d[\-/](?:0[1-9]|1[0-2])(?!\d)",
            "",
        ),
        (r"(?<![\d.\-/])(?:0[1-9]|1[0-2])[.\-](?:19[5-9]|20[0-4])\d(?![\d.\-])", ""),
        (
            r"(?<!\d)20\d\d-?w[0-5]\d(?:-?[1-7])?(?![\da-z])|(?<![a-z])(?:week|kw|wk|semaine|uge|vecka)\s?\d{1,2}[\s/,]{1,2}(?:of\s)?20\d\d",
            "",
        ),
        (r"\d{1,2}\s?月\s?\d{1,2}\s?[日号]|\d{1,2}\s?월\s?\d{1,2}\s?일", ""),
        # a day without its year: nothing says how far to move it
        (
            rf"(?<!\d){_D}(?:st|nd|rd|th)\s(?:of\s)?(?P<b>{MONTH})(?![a-z])|(?<![a-z]){MONTH}\.?\s\d{{1,2}}(?:st|nd|rd|th)(?![a-z])",
            "",
        ),
        (
            rf"(?<![\d.]){_D}\.?\s(?:de\s)?(?P<b>{SURE_MONTH}|march)(?![a-z])(?!\s(?:fracture|views?))|(?<![a-z]){SURE_MONTH}\.?\s(?:[12]\d|3[01]|0?[1-9])(?![\d.:/])(?!\s?(?:mm|cm|ml|views?|x))",
            "",
        ),
        (rf"(?<=\s){_D}\s(?:may|mai)(?![a-z])(?=\s*(?:$|[,.;)]|at\s|um\s))", ""),
        (
            rf"(?<![a-z]){_WHEN}[\s:]+(?P<only>(?:0[1-9]|1[0-2])[/.](?:0[1-9]|[12]\d|3[01])|(?:0[1-9]|[12]\d|3[01])[/.](?:0[1-9]|1[0-2]))(?![\d/.])",
            "",
        ),
        (
            r"(?<![a-z])(?:on|dated|yesterday|today|tomorrow)[\s:]+(?P<only>(?:1[0-2]|0?[1-9])[/\-](?:3[01]|[12]\d)|(?:3[01]|1[3-9]|2\d)[/\-](?:1[0-2]|0?[1-9]))(?![\d/.%\-])",
            "",
        ),
        (  # a day and month beside a clock time
            r"(?<![\d/.])(?:(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])|(?:[12]\d|3[01])/(?:0?[1-9]|1[0-2]))(?=,?\s(?:at\s|@\s?|um\s|a\s)?\d{1,2}:\d\d)",
            "",
        ),
        (r"(?<![\d/])\d{1,2}/\d{1,2}(?=\s?[\-–]\s?\d{1,2}/\d{1,2}/\d{2,4})", ""),
    )
)


def dates_in(folded: str, days: int | None, month_first: bool = True) -> list[tuple[int, int, str]]:
    """(start, end, replacement) of each date in a folded text; the replacement is empty when ``days`` is None.

    A date such as 03/04/2020 is read month first or day first as asked; dates without a day or a year are removed.
    """
    return [(start, end, new) for start, end, new, _ in dates_read(folded, days, month_first)]


def dates_read(folded: str, days: int | None, month_first: bool = True) -> list[tuple[int, int, str, str]]:
    """As `dates_in`, with the date itself as YYYYMMDD ("" when it is not whole) for comparison."""
    found = spoken_dates(folded, days, MONTHS, MONTH)
    if not any(ch.isdigit() for ch in folded) and "年" not in folded:
        return found
    for pattern, form in _month_first() if month_first else _FORMS:
        for match in pattern.finditer(folded):
            start, end = match.span("only") if "only" in pattern.groupindex else match.span()
            if any(start < e and s < end for s, e, *_ in found):
                continue
            found.append((start, end, *_rewritten(match, form, days)))
    return found


@cache
def _month_first() -> tuple[tuple[re.Pattern[str], str], ...]:
    """The forms with each pair of day-first and month-first exchanged."""
    forms = list(_FORMS)
    for index, (_, form) in enumerate(_FORMS[:-1]):
        if form == "DMY":
            forms[index], forms[index + 1] = forms[index + 1], forms[index]
    return tuple(forms)


def _rewritten(match: re.Match[str], form: str, days: int | None) -> tuple[str, str]:
    """(replacement, the date as YYYYMMDD or "")."""
    part = match.groupdict()
    if not form:
        return "", ""
    short = part.get("yy")
    year = int(part["y"]) if part.get("y") else int(short or 0) + (2000 if int(short or 0) <= 30 else 1900)
    month, day = _month_of(part), int(part["d"])
    moved, same = shifted(year, month, day, days or 0), f"{year:04d}{month:02d}{day:02d}"
    if moved is None or days is None:
        return "", same
    sep = part.get("s") or ""
    form = {"DMY": "{d:02d}{s}{m:02d}{s}{y}", "MDY": "{m:02d}{s}{d:02d}{s}{y}", "DBY": "{d}{g}{b}{g}{y}"}.get(
        form, form
    )
    text = f"{moved.year % 100:02d}" if short else f"{moved.year:04d}"
    gap = " " if part.get("g") is None else part["g"]
    clock = " " if part.get("t") is None else part["t"]
    made = form.format(
        y=text, m=moved.month, d=moved.day, s=sep, g=gap, t=clock,
        b=month_like(part.get("b"), moved.month), r=ROMAN[moved.month - 1].upper(),
    )  # fmt: skip
    return made, same


def _month_of(part: dict[str, str | None]) -> int:
    if part.get("r"):
        return ROMAN.index(str(part["r"])) + 1
    return int(part["m"] or 0) if part.get("m") else MONTHS[str(part["b"])]
