"""One image before and after de-identification: its header element by element, and its picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

Change = Literal["kept", "changed", "emptied", "removed", "added"]
LONGEST = 64


@dataclass(frozen=True)
class HeaderRow:
    """One element on both sides; `path` is its keyword, below sequences with ›."""

    tag: str
    path: str
    before: str
    after: str
    change: Change


@dataclass(frozen=True)
class BeforeAfter:
    """`picture_before` and `picture_after` are PNG data URIs; `same_pixels` tells whether the stored values agree."""

    rows: list[HeaderRow]
    picture_before: str
    picture_after: str
    same_pixels: bool

    def count(self, change: Change) -> int:
        return sum(row.change == change for row in self.rows)


def before_after(identified: Path, candidates: Iterator[Path] | list[Path]) -> BeforeAfter | None:
    """Compare `identified` with the de-identified file that holds the same pixels; None when there is none.

    Matching by pixels needs neither the crosswalk nor the key, which stay in the hospital's vault.
    """
    before = dcmread(identified)
    wanted = before.pixel_array
    for candidate in candidates:
        after = dcmread(candidate)
        if (after.Rows, after.Columns) == wanted.shape and np.array_equal(after.pixel_array, wanted):
            return BeforeAfter(compare(before, after), picture(before), picture(after), same_pixels=True)
    return None


def compare(before: Dataset, after: Dataset) -> list[HeaderRow]:
    """Every element of either side except bulk data, in tag order."""
    left, right = dict(_flat(before)), dict(_flat(after))
    rows = []
    for key in sorted(left.keys() | right.keys()):
        tag = key[-1][0]
        one, other = left.get(key), right.get(key)
        rows.append(HeaderRow(tag, " › ".join(name for _, name in key), one or "", other or "", _change(one, other)))
    return rows


def picture(data: Dataset) -> str:
    """The image as a PNG data URI, bright = dense whatever its Photometric Interpretation."""
    values = data.pixel_array.astype(np.float64) / (2**data.BitsStored - 1)
    if data.PhotometricInterpretation == "MONOCHROME1":
        values = 1.0 - values
    stream = io.BytesIO()
    Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


Key = tuple[tuple[str, str], ...]


def _flat(data: Dataset, above: Key = ()) -> Iterator[tuple[Key, str]]:
    for element in data:
        key = (*above, (f"({element.tag.group:04X},{element.tag.element:04X})", _name(element)))
        if element.VR == "SQ":
            for number, item in enumerate(element.value, start=1):
                name = key[-1][1] + (f" {number}" if len(element.value) > 1 else "")
                below = (*above, (key[-1][0], name))
                if "CodeValue" in item and "CodeMeaning" in item:  # a coded concept reads as one thing (PS3.3 8.8)
                    yield below, f"{item.CodeMeaning} ({item.CodeValue}, {item.get('CodingSchemeDesignator', '')})"
                else:
                    yield from _flat(item, below)
        elif element.VR not in ("OB", "OW", "OF", "OD", "UN") and element.keyword != "PixelData":
            yield key, _value(element)


def _name(element: DataElement) -> str:
    return element.keyword or (f"private, {element.private_creator}" if element.private_creator else "private creator")


def _value(element: DataElement) -> str:
    value = element.value
    text = "\\".join(map(str, value)) if element.VM > 1 else str(value if value is not None else "")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _change(before: str | None, after: str | None) -> Change:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if before == after:
        return "kept"
    return "changed" if after else "emptied"
