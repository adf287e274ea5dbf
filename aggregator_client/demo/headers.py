"""One image of the demo before and after de-identification, matched by its pixels."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread

from dicom_node.comparison import Change, HeaderRow, compare, picture


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
            return BeforeAfter(compare(before, after), _uri(picture(before)), _uri(picture(after)), same_pixels=True)
    return None


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
