"""One image before and after de-identification: its header element by element, and its picture."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

Change = Literal["kept", "changed", "emptied", "removed", "added"]
LONGEST = 64
_BULK = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")


@dataclass(frozen=True)
class HeaderRow:
    """One element on both sides; `path` is its keyword, below sequences with ›."""

    tag: str
    path: str
    before: str
    after: str
    change: Change


def compare(before: Dataset, after: Dataset) -> list[HeaderRow]:
    """Every element of either side except bulk data, in tag order."""
    left, right = dict(_flat(before)), dict(_flat(after))
    rows = []
    for key in sorted(left.keys() | right.keys()):
        tag = key[-1][0]
        one, other = left.get(key), right.get(key)
        rows.append(HeaderRow(tag, " › ".join(name for _, name in key), one or "", other or "", _change(one, other)))
    return rows


def picture(data: Dataset, widest: int = 0) -> bytes:
    """The first frame as PNG, bright = dense whatever its Photometric Interpretation; at most `widest` pixels wide (0: any).

    Raises what pydicom raises for pixels it cannot decode.
    """
    image = Image.fromarray(grey_levels(data))
    if widest and image.width > widest:
        image = image.resize((widest, max(1, image.height * widest // image.width)))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def grey_levels(data: Dataset) -> np.ndarray:
    """The first frame as uint8 [rows, columns] or [rows, columns, 3]; monochrome is stretched over what the frame holds."""
    pixels = data.pixel_array
    if int(data.get("NumberOfFrames") or 1) > 1:
        pixels = pixels[0]
    values = pixels.astype(np.float64)
    if values.ndim == 2:
        low, high = float(values.min()), float(values.max())
        values = (values - low) / max(high - low, 1.0) * 255
        if data.PhotometricInterpretation == "MONOCHROME1":
            values = 255 - values
    return values.clip(0, 255).astype(np.uint8)


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
        elif element.VR not in _BULK and element.keyword != "PixelData":
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
