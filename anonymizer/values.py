"""Treats single values: one method per handler that a plan may name; each gives the new bytes, KEEP or None (remove)."""

from __future__ import annotations

import re
from typing import Any

from anonymizer.charset import Charset
from anonymizer.documents import placeholder
from anonymizer.identity import Identity
from anonymizer.model import Action
from anonymizer.plan import MANUFACTURER, NUMBERS, TERMS, Step
from anonymizer.pseudonym import Pseudonyms
from anonymizer.shift import is_tm, shift_da, shift_dt
from anonymizer.tables import dictionary_vr
from anonymizer.text import clean_text, clean_tokens
from anonymizer.verify import stands_in
from anonymizer.words import VENDORS

KEEP = True
_MAKERS = VENDORS | {
    "medical",
    "systems",
    "healthcare",
    "healthineers",
    "ag",
    "inc",
    "corporation",
    "co",
    "ltd",
    "the",
    "and",
    "se",
}
Treated = bytes | bool | None
Met = tuple[int, bytes, bytes, int, Charset]  # tag, VR, value, the place it stands in, its character set
_MOST, REMEMBERED = 8192, 256  # how many values a patient's context remembers, and of how many bytes at most

_DS = re.compile(rb"[0-9+\-eE. \\\0]*$")
_CS = re.compile(r"[A-Z0-9_ \\]*\0?$")
_AS = re.compile(r"(\d{3})([DWMY])$")
WAVEFORM_DATA = 0x54001010
_UNWRITTEN = re.compile(r"[^A-Za-z0-9 .,^@:/_\-'()+#=\"&;\\]")
_WRITTEN = re.compile(r"[A-Z]?[a-z]{3}|[A-Z]{4}|\d{4}|\d\d[./\-]\d\d|(?:^|[ ^])[A-Z][a-z](?:[ ^]|$)")
_PLAIN_UID = re.compile(rb"1\.2\.840\.10008\.[0-9.]+$")
_DUMMY = {
    b"PN": b"REMOVED",
    b"DA": b"19000101",
    b"DT": b"19000101000000",
    b"TM": b"000000",
    b"AS": b"000Y",
    b"DS": b"0",
    b"IS": b"0",
    b"UI": b"",
    b"AE": b"REMOVED",
}


def padded(value: bytes, vr: bytes) -> bytes:
    """To even length, with NUL for UI and binary, blank for text."""
    if len(value) & 1:
        return value + (b"\0" if vr in (b"UI", b"OB", b"UN") else b" ")
    return value


class Values:
    """The value handlers for one object: its identity, its patient's shift and the site's pseudonyms."""

    def __init__(self, pseudonyms: Pseudonyms, identity: Identity, days: int, patient: str, month_first: bool) -> None:
        self.pseudonyms, self.identity, self.days, self.patient = pseudonyms, identity, days, patient
        self.month_first = month_first
        self.text_days: int | None = days
        self.uids: set[str] = set()
        self.patient_id = ""
        self.additions: dict[object, list[tuple[int, bytes]]] = {}
        self.actions: dict[tuple[tuple[int, Step], ...], list[Action]] = {}
        self.met: dict[Met, tuple[Step, Any]] = {}
        self.facts: dict[tuple[int, bytes], str] = {}

    def treat(self, name: str, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        """Apply the handler of that name."""
        treated: Treated = getattr(self, name)(tag, vr, raw, charset)
        return treated

    def remember(self, key: Met, decided: tuple[Step, Any]) -> None:
        """Keep what was decided about a short value, for the same one in this patient's other instances."""
        if len(self.met) >= _MOST:
            self.met.clear()
        self.met[key] = decided

    # Each handler: (tag, vr, raw value, character set) -> KEEP, None (remove the attribute) or the new value.

    def empty(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return KEEP if not raw else b""

    def dummy(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        if vr in NUMBERS:
            return bytes(NUMBERS[vr])
        if vr in (b"OB", b"OW", b"UN", b"OF", b"OD", b"OL", b"OV"):
            return bytes(2 if vr != b"OF" and vr != b"OL" else 8)
        return padded(_DUMMY.get(vr, b"REMOVED"), vr)

    def document(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        """An encapsulated document gives way to an empty one of its kind."""
        return padded(placeholder(raw), b"OB")

    def patient_value(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return padded(self.patient.encode(), vr)

    def uid(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        if not raw.strip(b" \0"):
            return KEEP
        out = []
        for part in raw.split(b"\\"):
            original = part.strip(b" \0")
            if _PLAIN_UID.match(original) or not original:
                out.append(original)
                continue
            text = original.decode("latin-1")
            self.uids.add(text)
            out.append(self.pseudonyms.uid(text).encode())
        return padded(b"\\".join(out), b"UI")

    def class_uid(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        parts = [part.strip(b" \0") for part in raw.split(b"\\")]
        if all(re.fullmatch(rb"[0-9.]{0,64}", part) for part in parts):
            return KEEP
        return self.uid(tag, vr, raw, charset)

    def _each(self, raw: bytes, convert: object) -> list[str] | None:
        try:
            text = raw.decode("ascii")
        except UnicodeDecodeError:
            return None
        out = [convert(part.strip(" \0")) for part in text.split("\\")]  # type: ignore[operator]
        return None if None in out else out

    def date(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        moved = self._each(raw, lambda v: shift_da(v, self.days))
        if moved is None:
            moved = self._each(raw, lambda v: shift_dt(v, self.days))
        return b"" if moved is None else padded("\\".join(moved).encode(), vr)

    def datetime(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        moved = self._each(raw, lambda v: shift_dt(v, self.days))
        return b"" if moved is None else padded("\\".join(moved).encode(), vr)

    def time(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        ok = self._each(raw, lambda v: v if is_tm(v) else None)
        return b"" if ok is None else KEEP

    def temporal_full(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        ok = re.fullmatch(rb"[0-9.:+\-/\\ \0]*", raw)
        return KEEP if ok else b""

    def age(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        match = _AS.match(raw.decode("latin-1").strip(" \0"))
        if match is None:
            return b""
        years = int(match[1]) / {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]]
        return b"090Y" if years >= 90 else KEEP

    def age_number(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        """An age as a number, which its unit follows elsewhere: capped as if it were years."""
        try:
            return padded(b"90", vr) if float(raw.strip(b" \0")) > 89 else KEEP
        except ValueError:
            return padded(b"0", vr)

    def decimal(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        if not _DS.match(raw):
            return b""
        value = raw.strip(b" \0")
        if len(value) >= 5 and value.isdigit() and value.decode() == self.patient_id:
            return b""
        return KEEP

    def number(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        if vr in NUMBERS and len(raw) % NUMBERS[vr]:
            return None
        if len(raw) >= 8 and vr not in (b"FD", b"FL") and _looks_like_text(raw):
            return self.binary(tag, vr, raw, charset)
        return KEEP

    def binary(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        """Bulk data that is no picture: kept unless it holds a token or what looks like a person, a contact or a date."""
        samples = vr in (b"OW", b"OF", b"OD", b"OL", b"OV") or tag == WAVEFORM_DATA
        return None if self.residual_in(raw, 12 if samples else 6) else KEEP

    def residual_in(self, raw: bytes, shortest: int = 6) -> bool:
        """Whether bytes hold a token, or at least ``shortest`` characters on end that read as text and identify."""
        if stands_in(raw, self.identity):
            return True
        lowered = raw.lower()
        for token in self.identity.verify:
            for codec in ("utf-8", "utf-16-le", "utf-16-be"):
                if token.encode(codec) in lowered:
                    return True
        for run in re.findall(rb"[\x20-\x7e]{%d,}" % shortest, raw):
            text = run.decode("ascii")
            if _reads_as_text(text, shortest) and clean_text(text, self.identity, None) != text:
                return True
        return False

    def text(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        decoded, how = charset.decode(raw)
        stripped = decoded.strip(" \0")
        if not stripped:
            return KEEP if not raw.strip(b" \0") else b""
        values = [stripped] if vr in (b"ST", b"LT", b"UT") else stripped.split("\\")
        cleaned = [clean_text(v, self.identity, self.text_days, self.month_first) for v in values]
        out = KEEP if cleaned == values else padded(charset.encode("\\".join(cleaned), how), vr)
        # bytes that are no text in the declared set may still spell a name in another: then all of it goes
        return b"" if not raw.isascii() and stands_in(raw if out is KEEP else bytes(out), self.identity) else out

    def term(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        decoded, how = charset.decode(raw)
        stripped = decoded.strip(" \0")
        if vr == b"CS" and not _CS.match(stripped) and not re.fullmatch(r"[\w .\\/+\-]*", stripped):
            return self.text(tag, vr, raw, charset)
        cleaned = clean_tokens(stripped, self.identity)
        if b"CS" in (vr, dictionary_vr(tag)) and tag not in TERMS:
            # a code string is a word of the standard; one that is all name, number or place is none
            parts = cleaned.split("\\")
            cleaned = "\\".join(
                p if clean_text(p, self.identity, self.text_days, self.month_first) else "" for p in parts
            )
        if cleaned != stripped and tag == MANUFACTURER and set(re.findall(r"[a-z]+", stripped.lower())) <= _MAKERS:
            return KEEP  # a known maker's name says nothing of a patient who bears the same
        return KEEP if cleaned == stripped else padded(charset.encode(cleaned, how), vr)

    def retained(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        """A value that an option or the site keeps: nothing is taken out but this patient's own names and numbers."""
        decoded, how = charset.decode(raw)
        stripped = decoded.strip(" \0")
        cleaned = clean_tokens(stripped, self.identity)
        return KEEP if cleaned == stripped else padded(charset.encode(cleaned, how), vr)

    def person(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return KEEP if not raw.strip(b" \0") else b""

    def _required(self, name: str, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        treated = getattr(self, name)(tag, vr, raw, charset)
        if isinstance(treated, bytes) and not treated.strip(b" \0") and raw.strip(b" \0"):
            return self.dummy(tag, vr, raw, charset)
        return treated

    def text_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("text", tag, vr, raw, charset)

    def term_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("term", tag, vr, raw, charset)

    def person_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("person", tag, vr, raw, charset)

    def date_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("date", tag, vr, raw, charset)

    def datetime_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("datetime", tag, vr, raw, charset)

    def time_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("time", tag, vr, raw, charset)

    def age_required(self, tag: int, vr: bytes, raw: bytes, charset: Charset) -> Treated:
        return self._required("age", tag, vr, raw, charset)


def _reads_as_text(run: str, shortest: int) -> bool:
    """Whether printable bytes can be written words or numbers: samples and look-up tables hold such runs by chance."""
    for part in _UNWRITTEN.split(run):
        ramp = list(part) in (sorted(part), sorted(part, reverse=True))
        # words of two bytes, the higher of which hardly changes
        samples = shortest > 6 and min(len(set(part[::2])), len(set(part[1::2]))) <= 2
        if len(part) >= shortest and not ramp and not samples and _WRITTEN.search(part):
            return True
    return False


def _looks_like_text(raw: bytes) -> bool:
    printable = sum(32 <= b < 127 for b in raw.rstrip(b" \0"))
    return printable >= 6 and printable >= 0.8 * len(raw.rstrip(b" \0"))
