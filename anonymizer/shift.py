"""Shifts dates by whole days in DA, DT and running text, so that every interval and every time of day is kept."""

from __future__ import annotations

import datetime
import re

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
    if len(value) > 10 and value.count("-") == 1:
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


_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "jan january januar janvier enero gennaio janeiro",
            "feb february februar fevrier febrero febbraio",
            "mar march marz mars marzo marco",
            "apr april avril abril aprile",
            "may mai mayo maggio maio",
            "jun june juni juin junio giugno",
            "jul july juli juillet julio luglio",
            "aug august aout agosto",
            "sep sept september septembre septiembre settembre",
            "oct october oktober okt octobre octubre ottobre",
            "nov november novembre noviembre",
            "dec december dezember dez decembre diciembre dicembre",
        ),
        1,
    )
    for name in names.split()
}
_MONTH = "(?:" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + ")"
_Y, _M, _D = r"(?P<y>(?:1[89]|20)\d\d)", r"(?P<m>0?[1-9]|1[0-2])", r"(?P<d>0?[1-9]|[12]\d|3[01])"
_MM, _DD = r"(?P<m>0[1-9]|1[0-2])", r"(?P<d>0[1-9]|[12]\d|3[01])"
# (regular expression, how to write the result); searched in folded text, "_" counting as a space
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (rf"(?<!\d){_Y}{_MM}{_DD}(?=(?:[012]\d[0-5]\d(?:[0-5]\d)?)?(?:\.\d+)?(?!\d))", "{y}{m:02d}{d:02d}"),
        (rf"(?<!\d){_Y}(?P<s>[-/.])\s?{_M}(?P=s)\s?{_D}(?!\d)", "{y}{s}{m:02d}{s}{d:02d}"),
        (rf"(?<!\d){_Y} {_MM} {_DD}(?!\d)", "{y} {m:02d} {d:02d}"),
        (rf"{_Y}\s?年\s?{_M}\s?月\s?{_D}\s?日", "{y}年{m}月{d}日"),
        (rf"{_Y}\s?년\s?{_M}\s?월\s?{_D}\s?일", "{y}년 {m}월 {d}일"),
        (rf"(?<![\d.]){_D}(?P<s>[-/.])\s?{_M}(?P=s)\s?{_Y}(?!\d)", "DMY"),
        (rf"(?<![\d.]){_M}(?P<s>[-/])\s?{_D}(?P=s)\s?{_Y}(?!\d)", "{m:02d}{s}{d:02d}{s}{y}"),
        (
            rf"(?<!\d){_D}(?:st|nd|rd|th|\.)?[ \-/]?(?:of |de )?(?P<b>{_MONTH})\.?,?(?: de)?[ \-/]?{_Y}(?!\d)",
            "{d} {b} {y}",
        ),
        (rf"(?<![a-z])(?P<b>{_MONTH})\.?[ \-]?{_D}(?:st|nd|rd|th)?,?[ \-]{_Y}(?!\d)", "{b} {d}, {y}"),
        (rf"(?<![\d.]){_D}(?P<s>[-/.]){_M}(?P=s)(?P<yy>\d\d)(?![\d.])(?!\s?(?:mm|cm|m\b|ml|x\b))", "DMy"),
        (rf"(?<![\d.]){_M}(?P<s>[-/.]){_D}(?P=s)(?P<yy>\d\d)(?![\d.])(?!\s?(?:mm|cm|m\b|ml|x\b))", "MDy"),
        (rf"(?<!\d){_D}[ \-]?(?P<b>{_MONTH})[ \-]?(?P<yy>\d\d)(?!\d)", ""),
        (rf"(?<!\d){_DD}{_MM}{_Y}(?!\d)", "{d:02d}{m:02d}{y}"),
        (rf"(?<!\d){_MM}{_DD}{_Y}(?!\d)", "{m:02d}{d:02d}{y}"),
        (rf"(?<![a-z])(?P<b>{_MONTH})\.?,?[ \-]{_Y}(?!\d)", ""),
        (rf"(?<![\d./\-]){_MM}/{_Y}(?!\d)", ""),
        (rf"(?<![\d.]){_M}\.{_D}\.{_Y}(?!\d)", ""),
    )
)
_NAMES = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def dates_in(folded: str, days: int | None, month_first: bool = True) -> list[tuple[int, int, str]]:
    """(start, end, replacement) of each date in a folded text; the replacement is empty when ``days`` is None.

    A date such as 03/04/2020 is read month first or day first as asked; partial dates (month and year) are removed.
    """
    found: list[tuple[int, int, str]] = []
    if not any(ch.isdigit() for ch in folded):
        return found
    for pattern, form in _FORMS:
        if form == "DMY" and month_first:
            pattern, form = _FORMS[6]
        elif form.startswith("{m:02d}{s}") and month_first:
            pattern, form = _FORMS[5]
        for match in pattern.finditer(folded):
            if any(match.start() < end and start < match.end() for start, end, _ in found):
                continue
            found.append((match.start(), match.end(), _rewritten(match, form, days)))
    return found


def _rewritten(match: re.Match[str], form: str, days: int | None) -> str:
    part = match.groupdict()
    if days is None or not form or form in ("DMy", "MDy"):
        return ""
    month = int(part["m"]) if part.get("m") else _MONTHS[part["b"]]
    moved = shifted(int(part["y"]), month, int(part["d"]), days)
    if moved is None:
        return ""
    sep = part.get("s") or ""
    if form == "DMY":
        form = "{d:02d}{s}{m:02d}{s}{y}"
    name = _NAMES[moved.month - 1].capitalize()
    return form.format(y=f"{moved.year:04d}", m=moved.month, d=moved.day, s=sep, b=name)
