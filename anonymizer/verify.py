"""The last gate: searches the finished output for every value that was removed, in every encoding it could stand in.

It knows nothing of how the output was made; it sees the output's bytes and the removed values only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from anonymizer.identity import Identity
from anonymizer.words import fold

_LETTER = re.compile(rb"[a-z0-9]")


def residual(header: bytes, streams: Iterable[bytes | memoryview], identity: Identity, uids: Iterable[str]) -> str:
    """ "" when the output is clean, else which kind of value is still there (never the value).

    ``header`` is everything but the picture, ``streams`` are compressed frames. Native pixels are not searched as text.
    """
    lowered = header.lower()
    for uid in uids:
        raw = uid.encode("latin-1")
        if len(raw) >= 10 and _stands(lowered, raw.lower()):
            return "an original UID"
    tokens = [token for token in identity.verify if not (token.isdigit() and len(token) < 8)]
    for token in tokens:
        for raw in _encodings(token):
            if raw in lowered and _stands(lowered, raw):
                return "an identifying value"
    for stream in streams:
        for token in tokens:
            raw = token.encode("utf-8")
            if len(raw) < 6:
                continue
            small = bytes(stream).lower() if len(stream) < 1 << 16 else None
            body = small if small is not None else bytes(stream)
            if any(form in body for form in {raw, raw.upper(), raw.title()}):
                return "an identifying value in a code stream"
    return ""


def _encodings(token: str) -> list[bytes]:
    if token.isascii():
        raw = token.encode("ascii")
        return [raw, b"\0".join(raw[i : i + 1] for i in range(len(raw)))]
    out = []
    for codec in (
        "utf-8",
        "utf-16-le",
        "utf-16-be",
        "gb18030",
        "shift_jis",
        "euc_jp",
        "euc_kr",
        "iso2022_jp",
        "iso8859_5",
        "latin-1",
    ):
        for form in {token, token.capitalize(), token.upper()}:
            try:
                out.append(form.encode(codec).lower())
            except UnicodeEncodeError:
                continue
    return [raw for raw in out if len(raw) >= 4]


def _stands(data: bytes, raw: bytes) -> bool:
    """Whether the token stands somewhere on its own, not inside a longer word or number."""
    pos = data.find(raw)
    digits = raw[:1].isdigit()
    while pos >= 0:
        before, after = data[pos - 1 : pos] if pos else b"", data[pos + len(raw) : pos + len(raw) + 1]
        inside = (
            (before.isdigit() or after.isdigit()) if digits else bool(_LETTER.match(before) or _LETTER.match(after))
        )
        if not inside:
            return True
        pos = data.find(raw, pos + 1)
    return False


def folded_tokens(values: Iterable[str]) -> list[str]:
    """Values in the form in which they are searched for."""
    return [fold(value)[0] for value in values]
