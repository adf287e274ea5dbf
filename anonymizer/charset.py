"""Decodes and encodes text values in any Specific Character Set of PS3.3 C.12.1.1.2, also wrongly declared ones."""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.charset import convert_encodings, decode_bytes, encode_string, python_encoding

_PARTS = re.compile(r"([\r\n\t\f\\^=])")
# what bytes with the high bit and no escape sequence are when a set of ISO 2022 was declared for the language
_UNESCAPED = {
    "ISO 2022 IR 87": ("shift_jis", "euc_jp"),
    "ISO 2022 IR 159": ("shift_jis", "euc_jp"),
    "ISO 2022 IR 149": ("euc_kr",),
    "ISO 2022 IR 58": ("gb18030",),
}
_DELIMITERS = {"\r", "\n", "\t", "\f", "\\", "^", "="}


_MULTIBYTE = frozenset(["utf8", "utf-8", "utf_8", "gb18030", "gbk", "shift_jis"])


class Charset:
    """One data set's character repertoire."""

    def __init__(self, declared: tuple[str, ...]) -> None:
        known = [name for name in declared if name in python_encoding]
        self.encodings: list[str] = convert_encodings(list(known or [""]))
        self.declared = declared

    def decode(self, raw: bytes) -> tuple[str, str]:
        """(text, how to encode it again): "" for the declared set, else the codec that fits the bytes."""
        if len(raw) >= 8 and not any(raw[1::2]):  # UTF-16, which no character set of DICOM is
            return raw[::2].decode("latin-1"), ""
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii"), ""
        if len(self.encodings) == 1 and b"\x1b" not in raw:
            codec = self.encodings[0]
            # a text in one byte a letter is hardly ever UTF-8 by chance, one of several bytes may be
            order = (codec, "utf-8") if codec in _MULTIBYTE else ("utf-8", codec)
            for attempt in order if codec != "iso8859" else ("utf-8",):
                try:
                    return raw.decode(attempt), "" if attempt == codec else attempt
                except (UnicodeDecodeError, LookupError):
                    continue
            return raw.decode("latin-1"), "latin-1"
        if b"\x1b" not in raw:
            for attempt in ("utf-8", *(c for name in self.declared for c in _UNESCAPED.get(name, ()))):
                try:
                    return raw.decode(attempt), attempt
                except UnicodeDecodeError:
                    continue
        try:
            text = decode_bytes(raw, self.encodings, _DELIMITERS)
        except (UnicodeError, LookupError, ValueError):
            return raw.decode("latin-1"), "latin-1"
        return text, ""

    def encode(self, text: str, how: str) -> bytes:
        """The bytes of a cleaned text, in the way its original was encoded; characters that do not fit become "?"."""
        if text.isascii():
            return text.encode("ascii")
        if how:
            return text.encode(how, "replace")
        try:
            if len(self.encodings) == 1:
                return encode_string(text, self.encodings)
            # each line and component begins anew in the first set (PS3.5 6.1.2.5.3)
            return b"".join(encode_string(part, self.encodings) for part in _PARTS.split(text) if part)
        except (UnicodeError, LookupError, ValueError):
            return text.encode("ascii", "replace")


@lru_cache(maxsize=256)
def charset(raw: bytes, inherited: tuple[str, ...] = ()) -> Charset:
    """The character set that a (0008,0005) value declares."""
    names = tuple(part.strip(" \0") for part in raw.decode("ascii", "replace").split("\\"))
    return Charset(names if any(names) else inherited)
