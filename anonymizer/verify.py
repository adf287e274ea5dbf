"""The last gate: searches the finished output for every value that was removed, in every encoding it could stand in.

It knows nothing of how the output was made; it sees the output's bytes and the removed values only.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from anonymizer.identity import Identity

_CODECS: tuple[str, ...] = (
    "utf-8",
    "utf-16-le",
    "utf-16-be",
    "latin-1",
    "iso8859-2",
    "iso8859-5",
    "iso8859-7",
    "gb18030",
    "shift_jis",
)
_CODECS += ("euc_jp", "euc_kr", "iso2022_jp", "iso2022_kr", "johab", "big5", "cp1251", "koi8-r")


def residual(header: bytes, streams: Iterable[bytes | memoryview], identity: Identity, uids: Iterable[str]) -> str:
    """ "" when the output is clean, else which kind of value is still there (never the value).

    ``header`` is everything but the picture, ``streams`` are compressed frames. Native pixels are not searched as text.
    """
    lowered = header.lower()
    for uid in uids:
        raw = uid.encode("latin-1")
        if len(raw) >= 10 and _stands_uid(lowered, raw.lower()):
            return "an original UID"
    words, spelled = _forms(identity)
    if any(raw in lowered and _stands(lowered, raw) for raw in words) or any(
        raw in header for raw in (*spelled, *identity.raw)
    ):
        return "an identifying value"
    for stream in streams:
        body = bytes(stream)
        if any(form in body for raw in words if len(raw) >= 6 for form in (raw, raw.upper(), raw.title())):
            return "an identifying value in a code stream"
    return ""


def stands_in(value: bytes, identity: Identity) -> bool:
    """Whether a text's bytes hold a part of a name in some encoding other than the declared one."""
    return any(raw in value for raw in (*_forms(identity)[1], *identity.raw))


@lru_cache(maxsize=512)
def _forms(identity: Identity) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Search strings in lower-case ASCII (also with the zero bytes of UTF-16), and spellings beyond ASCII as they are."""
    words: list[bytes] = []
    for token in identity.verify:
        if token.isascii() and not (token.isdigit() and len(token) < 8):
            raw = token.encode("ascii")
            words += [raw, b"\0".join(raw[i : i + 1] for i in range(len(raw)))]
    spelled: set[bytes] = set()
    for word in identity.spelled:
        for form in {word, word.upper(), word.lower(), word.capitalize()}:
            for codec in _CODECS:
                try:
                    spelled.add(form.encode(codec))
                except UnicodeEncodeError:
                    continue
    return tuple(words), tuple(sorted(raw for raw in spelled if len(raw) >= 4))


def _stands(data: bytes, raw: bytes) -> bool:
    """Whether the token stands somewhere on its own, not inside a longer word or number."""
    pos = data.find(raw)
    while pos >= 0:
        before, after = data[pos - 1 : pos] if pos else b"", data[pos + len(raw) : pos + len(raw) + 1]
        if not (_joined(before, raw[:1]) or _joined(raw[-1:], after)):
            return True
        pos = data.find(raw, pos + 1)
    return False


def _stands_uid(data: bytes, raw: bytes) -> bool:
    """Whether a UID stands somewhere whole, not as the beginning or the end of a longer one."""
    pos = data.find(raw)
    while pos >= 0:
        before, after = data[max(0, pos - 2) : pos], data[pos + len(raw) : pos + len(raw) + 2]
        longer = after[:1].isdigit() or (after[:1] == b"." and after[1:].isdigit())
        if not (longer or before[-1:].isdigit() or (before[-1:] == b"." and before[:1].isdigit())):
            return True
        pos = data.find(raw, pos + 1)
    return False


def _joined(left: bytes, right: bytes) -> bool:
    """Whether two neighbouring bytes belong to one word or one number."""
    return (left.isdigit() and right.isdigit()) or (left.isalpha() and right.isalpha())
