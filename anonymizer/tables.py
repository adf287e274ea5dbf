"""Reads the shipped tables: PS3.15 Table E.1-1, safe private attributes, attribute Types, and the data dictionary's VRs."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_keyword, dictionary_VR

DATA = Path(__file__).parent / "data"


@cache
def table_e1_1() -> dict[str, Any]:
    """{"edition", "options_edition", "rows": {"GGGGEEEE": {"name", "basic", <option>: action}}}."""
    return json.loads((DATA / "table_e1_1.json").read_text())


@cache
def safe_private() -> dict[str, dict[int, tuple[bytes, bool]]]:
    """{creator: {group << 8 | low byte: (VR, listed in Table E.3.10-1)}}."""
    creators = json.loads((DATA / "safe_private.json").read_text())["creators"]
    return {
        creator: {int(key[:4], 16) << 8 | int(key[4:], 16): (row[0].encode(), row[1]) for key, row in rows.items()}
        for creator, rows in creators.items()
    }


@cache
def _types() -> dict[str, Any]:
    return json.loads((DATA / "attribute_types.json").read_text())


def attribute_type(sop_class: str, tag: int, parent: int = 0) -> str:
    """ "1", "1C", "2", "2C" or "3" for the attribute in this SOP class's IOD, "" when the IOD or the attribute is unknown."""
    data = _types()
    types = data["types"].get(data["sop_classes"].get(sop_class, ""), {})
    return str(types.get((f"{parent:08X}/" if parent else "") + f"{tag:08X}", ""))


@cache
def required() -> frozenset[int]:
    """Textual attributes that have Type 1 or 1C in some IOD: an empty value would make an object invalid."""
    return frozenset(int(tag, 16) for tag in _types()["required"])


@lru_cache(maxsize=65536)
def dictionary_vr(tag: int) -> bytes:
    """The VR of a standard attribute in the data dictionary (the first of several), b"" when it is not in it."""
    entry = DicomDictionary.get(tag)
    if entry is not None:
        return entry[0][:2].encode()
    if tag >> 16 & 1:
        return b""
    if tag & 0xFFFF == 0:
        return b"UL"
    try:
        return dictionary_VR(tag)[:2].encode()
    except KeyError:
        return b""


@lru_cache(maxsize=65536)
def keyword(tag: int) -> str:
    """The attribute's keyword, "" for private and unknown attributes."""
    entry = DicomDictionary.get(tag)
    if entry is not None:
        return entry[4]
    if tag >> 16 & 1:
        return ""
    try:
        return dictionary_keyword(tag)
    except KeyError:
        return ""
